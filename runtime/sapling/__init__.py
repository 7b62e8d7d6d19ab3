"""The model that ships inside the package: weights, tokenizer, card, and the code that grew it."""
