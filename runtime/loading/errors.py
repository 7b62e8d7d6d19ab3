"""The one error of loading: a checkpoint, tokenizer or download that cannot be used.

Knows: nothing. Must not know: what was being loaded; the message says that.
"""

from __future__ import annotations


class LoadError(Exception):
    """A model cannot be loaded. code: short and stable; message: what is wrong, where, and what to do.

    Codes: not_found, offline, gated, config, unsupported, tokenizer, weights_missing, weights_damaged,
    weights_mismatch, device, memory; of the library: name, exists, damaged, ambiguous, checksum, disk, modelfile,
    template, parameter.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
