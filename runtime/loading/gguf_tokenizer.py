"""The tokenizer that a GGUF file's metadata describes.

Knows: vocabularies of the kinds gpt2 (byte-level BPE) and llama (sentencepiece BPE). Must not know: tensors, prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_config import (
    BYTE,
    CONTROL,
    LLAMA3,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    tokenizer_config_of,
)
from branchwork.runtime.loading.gguf_file import GgufFile

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = (rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",)
_QWEN2 = (rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",)
_DIGITS = (r"\p{N}", _GPT2)
_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"

# tokenizer.ggml.pre -> the patterns that cut a text before pairs are merged, one after the other
SPLITS: Mapping[str, tuple[str, ...]] = {
    "default": (_GPT2,),
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    **dict.fromkeys((*LLAMA3, "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    "tekken": (rf"{_WORD[0]}|{_WORD[1]}|\p{{N}}|{_SLASHED}",),
    "gpt-4o": (rf"{_WORD[0]}{_ENDINGS}?|{_WORD[1]}{_ENDINGS}?|\p{{N}}{{1,3}}|{_SLASHED}",),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}", _GPT2),
}
_WHOLE_WORDS_FIRST = (*LLAMA3, "tekken", "gpt-4o")  # a word that is a token stays one, whatever the merges say
_NORMALIZED = ("qwen2", "deepseek-r1-qwen")


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer, without padding or truncation. A whole tokenizer.json among the metadata wins.

    Raises LoadError (tokenizer) naming the file and what is missing or unknown.
    """
    whole = file.text("tokenizer.huggingface.json")
    try:
        if whole:
            tokenizer = Tokenizer.from_str(whole)
        else:
            kind = file.text("tokenizer.ggml.model")
            if kind not in _KINDS:
                known = ", ".join(_KINDS)
                raise _refused(file, f"tokenizer.ggml.model {kind!r} is not supported; supported: {known}")
            tokenizer = _KINDS[kind](file)
            tokenizer.add_tokens([*_added(file)])
            _begin_with_bos(file, tokenizer)
    except LoadError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for every fault of its input
        raise _refused(file, f"the tokenizer in its metadata cannot be built: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _gpt2(file: GgufFile) -> Tokenizer:
    """GPT-2's kind: bytes as printable characters, pairs merged in the listed order."""
    split = file.text("tokenizer.ggml.pre", "default")
    if split not in SPLITS:
        raise _refused(file, f"tokenizer.ggml.pre {split!r} is not known; known: {', '.join(SPLITS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in file.listed("tokenizer.ggml.merges")]
    whole = split in _WHOLE_WORDS_FIRST
    tokenizer = Tokenizer(models.BPE(_vocabulary(file), merges, ignore_merges=whole))
    if split in _NORMALIZED:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[split]]
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _llama(file: GgufFile) -> Tokenizer:
    """Sentencepiece's BPE: of all neighbours that form a token, the pair whose token scores highest merges first."""
    vocabulary = _vocabulary(file)
    types, scores = file.listed("tokenizer.ggml.token_type"), file.listed("tokenizer.ggml.scores")
    if not len(types) == len(scores) == len(file.listed("tokenizer.ggml.tokens")):
        raise _refused(file, "tokenizer.ggml.tokens, scores and token_type must be equally long")
    words = {word: number for word, number in vocabulary.items() if types[number] == NORMAL}
    pairs = sorted(
        (-scores[number], words[word[:cut]], words[word[cut:]], word[:cut], word[cut:])
        for word, number in words.items()
        for cut in range(1, len(word))
        if word[:cut] in words and word[cut:] in words
    )
    unknown = next((word for word, number in vocabulary.items() if types[number] == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for *_, left, right in pairs],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


_KINDS = {"gpt2": _gpt2, "llama": _llama}


def _vocabulary(file: GgufFile) -> dict[str, int]:
    tokens = file.listed("tokenizer.ggml.tokens")
    if not tokens:
        raise _refused(file, "it has no tokenizer.ggml.tokens: it holds no vocabulary")
    return {token: number for number, token in enumerate(tokens)}


def _added(file: GgufFile) -> Iterator[AddedToken]:
    """Tokens that are found in a text as a whole, before anything is merged; control tokens are special."""
    for token, kind in zip(file.listed("tokenizer.ggml.tokens"), file.listed("tokenizer.ggml.token_type")):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and token:
            yield AddedToken(token, special=kind != USER_DEFINED, normalized=False)


def _begin_with_bos(file: GgufFile, tokenizer: Tokenizer) -> None:
    said = tokenizer_config_of(file)
    bos = said.get("bos_token")
    if bos and said["add_bos_token"]:
        number = file.count("tokenizer.ggml.bos_token_id")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, number)]
        )


def _refused(file: GgufFile, what: str) -> LoadError:
    return LoadError("tokenizer", f"{file.path}: {what}")
