"""Prompts without a program, the way SGLang's Engine runs them: an embedded runtime and dicts of what came of it.

Knows: Runtime, plain prompts. Must not know: processes, sockets, nodes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from branchwork.lang import prompts
from branchwork.lang.backends import spellings
from branchwork.lang.backends.runtime import Runtime
from branchwork.lang.errors import CapabilityError
from branchwork.lang.prompts import Completion, Params

Sampling = Params | Sequence[Params] | None


class Engine:
    """A runtime of `model_path` for plain prompts. options: as of Runtime, whose errors it raises."""

    def __init__(self, model_path: str = spellings.SHIPPED, **options: Any) -> None:
        self.runtime = Runtime(model_path, **options)

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Sampling = None,
        *,
        stream: bool = False,
        **others: Any,
    ) -> Any:
        """{"text", "meta_info"} of a prompt, a list of these for several; with stream an iterator of growing ones.

        sampling_params: what gen takes, by SGLang's names too; a dict for all prompts, or a list of one each. others:
        return_logprob, logprob_start_len, top_logprobs_num. finish_reason in meta_info is a text (stop, length ...).
        Raises ProgramError for a prompt that failed, TypeError, ValueError, CapabilityError.
        """
        text, params = _checked(prompt, sampling_params, others)
        if stream:
            return self._pieces(_single(text), params)
        return prompts.complete(self.runtime, text, params)

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Sampling = None,
        *,
        stream: bool = False,
        **others: Any,
    ) -> Any:
        """The same to be awaited; with stream, what is awaited is an async iterator."""
        text, params = _checked(prompt, sampling_params, others)
        if stream:
            return self._pieces_async(_single(text), params)
        return await prompts.complete_async(self.runtime, text, params)

    def encode(self, prompt: str | Sequence[str]) -> Any:
        """Raises CapabilityError: there are no embeddings yet."""
        return self.runtime.encode(prompt)

    def flush_cache(self) -> dict[str, Any]:
        """Drop every cached prefix that nobody uses."""
        return self.runtime.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        """The model and the runtime's counters."""
        return self.runtime.get_server_info()

    def get_tokenizer(self) -> Any:
        """The model's tokenizer, as transformers makes it."""
        return self.runtime.get_tokenizer()

    def shutdown(self) -> None:
        """End the runtime and wait for it. Safe to call twice."""
        self.runtime.shutdown()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _pieces(self, prompt: str, params: Sampling) -> Iterator[Completion]:
        return prompts.pieces(self.runtime, prompt, _one(params))

    def _pieces_async(self, prompt: str, params: Sampling) -> AsyncIterator[Completion]:
        return prompts.pieces_async(self.runtime, prompt, _one(params))


_LOGPROBS = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")


def _checked(
    prompt: str | Sequence[str] | None, params: Sampling, others: Mapping[str, Any]
) -> tuple[str | Sequence[str], Sampling]:
    """The prompt, and its parameters with what SGLang's Engine takes beside them."""
    given = {name: value for name, value in others.items() if value is not None}
    for name in ("input_ids", "image_data", "video_data", "audio_data", "lora_path"):
        if name in given:
            raise CapabilityError(f"{name} is not taken: the model reads text only, as text")
    unknown = set(given) - set(_LOGPROBS)
    if unknown:
        raise TypeError(f"generate takes no {', '.join(sorted(unknown))}; it takes {', '.join(_LOGPROBS)}")
    if prompt is None:
        raise TypeError("generate needs a prompt, a text or a list of texts")
    if not given:
        return prompt, params
    if params is None or isinstance(params, Mapping):
        return prompt, {**(params or {}), **given}
    return prompt, [{**one, **given} for one in params]


def _single(prompt: str | Sequence[str]) -> str:
    if isinstance(prompt, str):
        return prompt
    raise TypeError("stream=True takes one prompt; stream several with one call each")


def _one(params: Sampling) -> Params | None:
    if params is None or isinstance(params, Mapping):
        return params
    raise TypeError("several sampling_params for a single prompt; give one dict")
