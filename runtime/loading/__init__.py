"""Checkpoints: finding them, reading weights and tokenizers strictly, with clear errors."""
