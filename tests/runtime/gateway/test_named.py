"""What a library name adds to a served model: frames of its template, its system prompt, options nobody gave."""

from __future__ import annotations

import pytest

from branchwork.runtime.gateway.named import frames_of, options_of, template_of
from branchwork.runtime.loading.hub import Resolved, find_model


def sapling(**settings: object) -> Resolved:
    return Resolved("mine", find_model("sapling"))._replace(**settings)


def test_a_model_without_settings_keeps_its_own_frames() -> None:
    assert frames_of(sapling()).default_system == ""
    assert template_of(sapling()) is not None
    assert set(frames_of(sapling()).roles) >= {"system", "user", "assistant"}


def test_a_system_prompt_stands_where_a_conversation_has_none() -> None:
    assert frames_of(sapling(system="Be brief.")).default_system == "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize(("system", "left"), [(None, "[D]"), ("", ""), ("S", "SYSTEM: S\n")])
def test_it_replaces_the_one_of_the_template(system: str | None, left: str) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}[D]"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    )
    assert frames_of(sapling(template=template, system=system)).default_system == left


def test_options_that_were_given_win() -> None:
    found = sapling(options=("context=512", "threads=2"))
    assert options_of(found, ["threads=1", "pages=9"]) == ["threads=1", "pages=9", "context=512"]
