"""Plain prompts on a backend: one text in, what the model writes out, each as a program of a single gen.

Knows: states, gens. Must not know: which backend it is, processes, sockets.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from branchwork.lang.backend import Backend
from branchwork.lang.expr import gen
from branchwork.lang.live import LiveProgram
from branchwork.lang.state import ProgramState

Params = Mapping[str, Any]
Completion = dict[str, Any]  # text: what the model wrote; meta_info: as ProgramState.meta
_NAME = "text"


def begin(backend: Backend, prompt: str, params: Params | None = None, *, stream: bool = False) -> ProgramState:
    """Start one completion; its text is variable "text". params: what gen takes, SGLang's names too (max_new_tokens).

    Raises TypeError and ValueError like gen, and BackendError when the backend cannot take it.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is a text, got {type(prompt).__name__}; token ids are not taken")
    asked = gen(_NAME, **(params or {}))
    state = ProgramState(LiveProgram(backend, stream=stream))
    try:
        state += prompt + asked
    except BaseException as error:
        state.live.end(error=error)
        raise
    state.live.end()
    return state


def complete(
    backend: Backend, prompt: str | Sequence[str], params: Params | Sequence[Params] | None = None
) -> Completion | list[Completion]:
    """A completion, or for several prompts (side by side) a list of them in order; with n > 1 a list for each prompt.

    params: the same for all prompts, or one of a list each. Raises ProgramError for one that failed.
    """
    texts, each = _pairs(prompt, params)
    states: list[ProgramState] = []
    try:
        for text, one in zip(texts, each):
            states.append(begin(backend, text, one))
        done = [_completion(state) for state in states]
    except BaseException:
        _cancel(states)
        raise
    return done[0] if isinstance(prompt, str) else _flat(done)


async def complete_async(
    backend: Backend, prompt: str | Sequence[str], params: Params | Sequence[Params] | None = None
) -> Completion | list[Completion]:
    """The same for a task of any event loop. Cancelling it cancels what runs."""
    texts, each = _pairs(prompt, params)
    states: list[ProgramState] = []
    try:
        for text, one in zip(texts, each):
            states.append(begin(backend, text, one))
        for state in states:
            await state.get(_NAME)
    except BaseException:
        _cancel(states)
        raise
    done = [_completion(state) for state in states]
    return done[0] if isinstance(prompt, str) else _flat(done)


def pieces(backend: Backend, prompt: str, params: Params | None = None) -> Iterator[Completion]:
    """The completion as far as it has come, again and again; the last one has its meta_info. Wants n of 1."""
    state, so_far = begin(backend, prompt, params, stream=True), ""
    try:
        for piece in state.text_iter(_NAME):
            so_far += piece
            yield {"text": so_far, "meta_info": {}}
        yield _final(state)
    except BaseException:
        state.cancel()
        raise


async def pieces_async(backend: Backend, prompt: str, params: Params | None = None) -> AsyncGenerator[Completion, None]:
    """The same for `async for`."""
    state, so_far = begin(backend, prompt, params, stream=True), ""
    try:
        async for piece in state.text_async_iter(_NAME):
            so_far += str(piece)
            yield {"text": so_far, "meta_info": {}}
        yield _final(state)
    except BaseException:
        state.cancel()
        raise


def _pairs(
    prompt: str | Sequence[str], params: Params | Sequence[Params] | None
) -> tuple[Sequence[str], Sequence[Params | None]]:
    """Every prompt and its parameters."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    if params is None or isinstance(params, Mapping):
        return texts, [params] * len(texts)
    if isinstance(prompt, str):
        raise TypeError("several sampling_params for a single prompt; give one dict")
    if len(params) != len(texts):
        raise ValueError(f"{len(params)} sampling_params for {len(texts)} prompts; give one dict, or one for each")
    return texts, params


def _cancel(states: Sequence[ProgramState]) -> None:
    for state in states:
        state.cancel()


def _completion(state: ProgramState) -> Completion | list[Completion]:
    text, meta = state[_NAME], state.meta(_NAME)
    if isinstance(text, list):
        return [{"text": one, "meta_info": about} for one, about in zip(text, meta)]
    return {"text": text, "meta_info": meta}


def _final(state: ProgramState) -> Completion:
    done = _completion(state)
    return done[0] if isinstance(done, list) else done


def _flat(done: Sequence[Completion | list[Completion]]) -> list[Completion]:
    """All samples in one list, those of a prompt next to each other."""
    return [one for item in done for one in (item if isinstance(item, list) else [item])]
