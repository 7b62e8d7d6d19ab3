"""From logits to token ids: mask, penalties, temperature, filters, draw, logprobs."""
