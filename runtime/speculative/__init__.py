"""Drafts: guesses at the next tokens, and what becomes of them."""
