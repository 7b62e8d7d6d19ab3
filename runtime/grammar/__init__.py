"""Constrained decoding: constraints become grammars, grammars start matchers, matchers fill masks. Never torch."""
