"""Tiny random encoders, and decoders that make vectors, as sentence-transformers lays their directories out.

Knows: transformers, tokenizers. Must not know: the runtime under test.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from tests.checkpoints import checkpoint

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "quick", "brown", "fox", "jump", "##s", "##ed", "over", "dog", "a"]
VOCAB = 96
# name -> (transformers config class, its fields)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {}),
    "roberta": ("RobertaConfig", {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66}),
    "xlm-roberta": ("XLMRobertaConfig", {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66}),
    "distilbert": ("DistilBertConfig", {}),
}
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_DISTIL = {
    "vocab_size": VOCAB,
    "dim": 48,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 72,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def encoder(name: str, where: Path, pooling: str = "mean", normalize: bool = True, longest: int = 0) -> Path:
    """A directory below `where` with an encoder, its tokenizer, and how its states become vectors."""
    kind, changes = ENCODERS[name]
    sizes = _DISTIL if name == "distilbert" else _SIZES
    torch.manual_seed(7)
    model: Any = transformers.AutoModel.from_config(getattr(transformers, kind)(**{**sizes, **changes}))
    for parameter in model.parameters():  # biases and norms start as constants, which would hide that they are ignored
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, -0.3, 1.2)
    directory = where / name
    model.save_pretrained(directory)
    write_word_pieces(directory)
    write_modules(directory, pooling, normalize, longest)
    return directory


def write_modules(directory: Path, pooling: str, normalize: bool, longest: int = 0) -> None:
    """modules.json and the files it names. pooling: cls_token | lasttoken | mean_tokens, or without the last part."""
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{name}" if n else "", "type": f"sentence_transformers.models.{name}"}
        for n, name in enumerate(names)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    full = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}[pooling]
    modes = {f"pooling_mode_{mode}": mode == full for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **modes}))
    if longest:
        (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))


def write_word_pieces(directory: Path) -> None:
    """A WordPiece tokenizer that writes [CLS] text [SEP], in lower case."""
    vocabulary = {word: n for n, word in enumerate([*WORDS, *(f"w{n}" for n in range(VOCAB - len(WORDS)))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def states(directory: Path, ids: list[int]) -> Tensor:
    """The last hidden states of one text as transformers computes them, float32 [T, C]."""
    loading: Any = transformers.AutoModel.from_pretrained
    model = loading(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return found


def vector(found: Tensor, pooling: str, normalize: bool) -> Tensor:
    """What sentence-transformers makes of a text's states [T, C]."""
    pooled = {"mean": found.mean(0), "cls": found[0], "first": found[0], "last": found[-1]}[pooling]
    return torch.nn.functional.normalize(pooled, dim=0) if normalize else pooled


def decoder(name: str, where: Path, pooling: str) -> Path:
    """A copy of a decoder's checkpoint that says how its states become vectors."""
    directory = Path(shutil.copytree(checkpoint(name), where / name))
    write_modules(directory, pooling, normalize=True)
    return directory
