"""The definition of every op in plain torch: slow, readable, right on any device."""
