"""Implementations for CPUs: native C where it pays, tuned torch where it does not."""
