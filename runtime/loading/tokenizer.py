"""A model's tokenizer: the tokenizer itself, every token's bytes, end tokens, chat template. Of a directory or a GGUF.

Knows: tokenizer.json and its companions. Must not know: torch, transformers, prompts, weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from branchwork.lang.reasoning import MODEL_TYPES
from branchwork.lang.toolformats import FORMATS
from branchwork.runtime.loading.companions import companion
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_file import is_gguf, open_gguf
from branchwork.runtime.loading.gguf_tokenizer import gguf_tokenizer

# special tokens that set calls and thinking apart: what a model writes with them has to be read, so they are text
_SPOKEN = {mark for row in FORMATS.values() for mark in row.markers}
_SPOKEN |= {mark for row in MODEL_TYPES.values() for mark in (row.begin, row.end)}


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory or GGUF file, without padding or truncation. Raises LoadError (tokenizer)."""
    if is_gguf(directory):
        return gguf_tokenizer(open_gguf(directory))
    path = directory / "tokenizer.json"
    if not path.is_file():
        slow = (directory / "tokenizer.model").is_file()
        hint = (
            "it has only tokenizer.model: save it again with transformers' AutoTokenizer" if slow else "download again"
        )
        raise LoadError("tokenizer", f"{directory} has no tokenizer.json; {hint}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every fault of the file
        raise LoadError("tokenizer", f"{path} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def has_tokenizer(model: Path) -> bool:
    """Whether a model brings a tokenizer of its own; drafts made for one model need none."""
    return is_gguf(model) or (model / "tokenizer.json").is_file()


def token_bytes(directory: Path, tokenizer: Tokenizer | None = None) -> list[bytes]:
    """The bytes each token stands for, by id; b"" for special tokens, but for those that set calls and
    thinking apart, and for ids without a token.

    tokenizer: the directory's own, where somebody has read it already (reading a large one takes a second).

    As long as the larger of the tokenizer and config.json's vocab_size, since weights are often padded.
    Raises LoadError (tokenizer) for a vocabulary that is neither byte-level, sentencepiece-like nor WordPiece.
    """
    tokenizer = tokenizer or load_tokenizer(directory)
    return spell(tokenizer, directory, companion(directory, "config.json").get("vocab_size") or 0)


def spell(tokenizer: Tokenizer, source: Path, least: int = 0) -> list[bytes]:
    """The same of a tokenizer already read from `source`, the table at least `least` long."""
    to_bytes = _speller(tokenizer, source)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=-1) + 1
    table = [b""] * max(size, least)
    for token, number in vocabulary.items():
        table[number] = to_bytes(token)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        table[number] = b"" if added.special and added.content not in _SPOKEN else added.content.encode()
    return table


def eos_ids(directory: Path, tokenizer: Tokenizer | None = None) -> tuple[int, ...]:
    """Every id that ends an answer by any of the model's files, sorted. tokenizer: as for token_bytes.

    Raises LoadError (tokenizer).
    """
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        given = companion(directory, name).get("eos_token_id")
        ends.update([given] if isinstance(given, int) else given or [])
    eos = special_texts(directory).get("eos_token")
    number = (tokenizer or load_tokenizer(directory)).token_to_id(eos) if eos else None
    return tuple(sorted(ends if number is None else ends | {number}))


def special_texts(directory: Path) -> dict[str, str]:
    """Texts of the special tokens that chat templates name (bos_token, eos_token, pad_token, unk_token), those set."""
    said = companion(directory, "special_tokens_map.json") | companion(directory, "tokenizer_config.json")
    texts = {name: _content(said.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {name: text for name, text in texts.items() if text}


def adds_bos(directory: Path) -> bool:
    """Whether the model expects its bos token before a prompt that no template wrote."""
    bos = special_texts(directory).get("bos_token")
    said = companion(directory, "tokenizer_config.json").get("add_bos_token")
    if bos is None or said is not None:
        return bos is not None and bool(said)
    return json.dumps(bos, ensure_ascii=False) in _state(load_tokenizer(directory).post_processor)


def chat_template(directory: Path) -> str | None:
    """The Jinja text, None when the model has none. chat_template.jinja wins over the others, as in transformers."""
    own = directory / "chat_template.jinja"
    if not is_gguf(directory) and own.is_file():
        return own.read_text(encoding="utf-8")
    inline = companion(directory, "tokenizer_config.json").get("chat_template")
    inline = companion(directory, "chat_template.json").get("chat_template", inline)
    if isinstance(inline, list):  # named templates
        inline = {item["name"]: item["template"] for item in inline}.get("default")
    return inline if isinstance(inline, str) else None


def _speller(tokenizer: Tokenizer, source: Path) -> Callable[[str], bytes]:
    """How this vocabulary writes bytes: GPT-2's alphabet, sentencepiece's ▁ and <0xNN>, or WordPiece's ##."""
    decoder, before = _state(tokenizer.decoder), _state(tokenizer.pre_tokenizer)
    if '"ByteLevel"' in decoder or '"ByteLevel"' in before:
        alphabet = _byte_level_alphabet()
        return lambda token: b"".join(alphabet.get(char) or char.encode() for char in token)
    if "▁" in decoder or '"Metaspace"' in decoder:
        return _sentencepiece
    if '"WordPiece"' in decoder:
        return _wordpiece
    raise LoadError(
        "tokenizer",
        f"the tokenizer of {source} is neither byte-level, sentencepiece-like nor WordPiece "
        f"(decoder: {decoder[:80] or 'none'}), so the bytes of its tokens are unknown",
    )


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _wordpiece(token: str) -> bytes:
    """A word begins with a space; what the tokenizer made of the text (lower case, no accents) stays so."""
    return token[2:].encode() if token.startswith("##") else f" {token}".encode()


@cache
def _byte_level_alphabet() -> dict[str, bytes]:
    """GPT-2's map from printable characters to bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    pairs = [(byte, byte) for byte in printable] + [(256 + i, byte) for i, byte in enumerate(others)]
    return {chr(char): bytes([byte]) for char, byte in pairs}


def _state(part: Any) -> str:
    """A tokenizer component as its JSON, with characters rather than escapes; "" for none."""
    return "" if part is None else part.__getstate__().decode()


def _content(token: Any) -> str:
    """A special token's text: files hold a string or an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
