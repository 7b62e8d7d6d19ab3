"""Tensors: a Plan becomes a Step, a Step a forward, a forward a Result."""
