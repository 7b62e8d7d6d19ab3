"""Implementations for NVIDIA and AMD GPUs, one Triton source for both."""
