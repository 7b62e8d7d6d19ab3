"""How states become a vector is read from sentence-transformers' files; what they ask beyond that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from encoders import write_modules

from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.pooling import Pooling, load_pooling
from tests.checkpoints import checkpoint


@pytest.mark.parametrize("pooling, kind", [("mean", "mean"), ("cls", "first"), ("last", "last")])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_and_scaling_are_what_the_modules_say(pooling: str, kind: str, normalize: bool, tmp_path: Path) -> None:
    write_modules(tmp_path, pooling, normalize, longest=128)
    assert load_pooling(tmp_path) == Pooling(kind, normalize, 128, True)  # type: ignore[arg-type]


def test_newer_files_name_the_pooling(tmp_path: Path) -> None:
    write_modules(tmp_path, "mean", normalize=False)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    assert load_pooling(tmp_path).kind == "last"


def test_without_modules_it_is_the_mean_scaled_to_length_1() -> None:
    assert load_pooling(checkpoint("llama")) == Pooling("mean", True, 0, False)


def test_modules_and_poolings_that_are_not_served_are_refused_by_name(tmp_path: Path) -> None:
    write_modules(tmp_path, "mean", normalize=True)
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(LoadError, match="pooling by pooling_mode_max_tokens is not supported"):
        load_pooling(tmp_path)
    file.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}))
    with pytest.raises(LoadError, match="pooling_mode_mean_tokens, pooling_mode_cls_token"):
        load_pooling(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LoadError, match="module 'Dense' is not supported"):
        load_pooling(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(LoadError, match="holds no list of modules"):
        load_pooling(tmp_path)
