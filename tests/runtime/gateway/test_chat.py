"""Frames derived from chat templates equal what the template itself writes around every turn."""

from __future__ import annotations

import pytest

from branchwork.lang.protocol import ChatFrames, Frame
from branchwork.runtime.gateway.chat import ChatTemplateError, frames, render

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + CHATML
)
HEADERS = (  # Llama-3-like: BOS first, headers, stripped content
    "{{ bos_token }}{% for m in messages %}{{ '<|h|>' + m['role'] + '<|/h|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
BRACKETS = (  # Mistral-like: no assistant opening, no system role, strict alternation
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
WORDS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS = [
    [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Ciao.")],
    [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")],
]


def written_with(found: ChatFrames, chat: list[tuple[str, str]]) -> str:
    text = found.start + (found.default_system if chat[0][0] != "system" else "")
    for role, content in chat:
        text += found.roles[role].begin + content + found.roles[role].end
    return text


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_DEFAULT, HEADERS, BRACKETS])
def test_frames_write_what_the_template_writes(template: str, chat: list[tuple[str, str]]) -> None:
    found = frames(template, **WORDS)
    if chat[0][0] == "system" and "system" not in found.roles:
        assert template == BRACKETS
        return
    messages = [{"role": role, "content": text} for role, text in chat]
    assert written_with(found, chat) == render(template, messages, generate=False, **WORDS)


def test_the_assistant_frame_opens_like_the_generation_prompt() -> None:
    found = frames(HEADERS, **WORDS)
    opened = found.start + found.roles["user"].begin + "Hi" + found.roles["user"].end + found.roles["assistant"].begin
    assert opened == render(HEADERS, [{"role": "user", "content": "Hi"}], generate=True, **WORDS)


def test_no_template_means_no_roles_but_the_start_text() -> None:
    assert frames(None, bos_token="<s>") == ChatFrames(start="<s>")


def test_a_template_that_refuses_says_so_in_its_own_words() -> None:
    with pytest.raises(ChatTemplateError, match="alternate"):
        render(BRACKETS, [{"role": "assistant", "content": "x"}], generate=False, **WORDS)


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(ChatTemplateError):
        render("{{ messages.__class__.__mro__[1].__subclasses__() }}", [], generate=False)


TOOLS = (  # Qwen-like: results of tools stand in a user's turn
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m['content'] + "
    "'\n</tool_response><|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def test_a_tools_result_gets_the_frame_the_template_writes() -> None:
    begin = "<|im_start|>user\n<tool_response>\n"
    assert frames(TOOLS).roles["tool"] == Frame(begin, "\n</tool_response><|im_end|>\n")
    assert frames(CHATML).roles["tool"] == Frame("<|im_start|>tool\n", "<|im_end|>\n")
    assert "tool" not in frames(BRACKETS, **WORDS).roles


def test_templates_may_ask_for_json_in_their_own_way_and_mark_what_is_generated() -> None:
    template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ {'b': 1, 'a': 'é<'} | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}"
    )
    assert render(template, [{"role": "user", "content": "hi"}], generate=False) == 'hi{"a":"\\u00e9<","b":1}'
