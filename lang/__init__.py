"""The language: programs as text and frozen nodes, and the client's half of running them. No tensors, no runtime."""
