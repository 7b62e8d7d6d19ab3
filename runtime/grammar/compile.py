"""compile(constraint, vocabulary) -> Grammar: the blocking door to constrained decoding.

Knows: which compiler serves which vocabulary. Must not know: engines, processes, requests. An engine's loop, which may
not wait, has a pool.Compiler of its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from branchwork.lang.constraint import Constraint
from branchwork.runtime.grammar.matcher import Grammar
from branchwork.runtime.grammar.pool import Compiler
from branchwork.runtime.grammar.processes import Pool
from branchwork.runtime.grammar.recipe import Options
from branchwork.runtime.grammar.vocabulary import Vocabulary

__all__ = ["Options", "compile"]

_WORKERS = 2
_COMPILERS = 8  # vocabularies and options in use at once

_lock = threading.Lock()
_pools: dict[int, Pool] = {}  # by memory limit
_compilers: OrderedDict[tuple[str, Options], Compiler] = OrderedDict()


def compile(constraint: Constraint, vocabulary: Vocabulary, options: Options | None = None) -> Grammar:
    """The grammar of a constraint: from the cache, or compiled within the limits of `options` in a worker process.

    Raises Invalid, Unsupported or TooBig (all ConstraintError). Any number of threads may call it; a constraint that
    several ask for is compiled once.
    """
    return _compiler(vocabulary, options or Options()).wait(constraint)


def _compiler(vocabulary: Vocabulary, options: Options) -> Compiler:
    name = (vocabulary.fingerprint, options)
    with _lock:
        found = _compilers.get(name)
        if found is None:
            if options.memory not in _pools:
                _pools[options.memory] = Pool(_WORKERS, options.memory)
            found = _compilers[name] = Compiler(vocabulary, options, pool=_pools[options.memory])
            while len(_compilers) > _COMPILERS:
                _compilers.popitem(last=False)
        _compilers.move_to_end(name)
        return found
