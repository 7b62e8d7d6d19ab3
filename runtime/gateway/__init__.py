"""Text side of the runtime: clients, chat frames, tokenization, supervision. No torch in this process."""
