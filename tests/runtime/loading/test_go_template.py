"""Go templates of Modelfiles give the text that Ollama makes of them; what cannot be translated is named."""

from __future__ import annotations

import pytest

from branchwork.runtime.gateway.chat import frames, render
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.go_template import is_go, to_jinja
from branchwork.runtime.loading.hub import find_model
from branchwork.runtime.loading.tokenizer import chat_template

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
LOOP = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
<|im_start|>{{ .Role }}
{{ .Content }}{{ if or (ne .Role "assistant") (not $last) }}<|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}"""
TOOLS = """{{- if .Messages }}
{{- if or .System .Tools }}<s>{{ .System }}
{{- if .Tools }}
Tools:
{{- range .Tools }}
{{ json . }}
{{- end }}
{{- end }}</s>
{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}<u>{{ .Content }}</u>
{{- else if eq .Role "assistant" }}<a>{{ if .Content }}{{ .Content }}{{ else if .ToolCalls }}
{{- range .ToolCalls }}[{{ .Function.Name }} {{ .Function.Arguments }}]{{ end }}{{ end }}</a>
{{- else if eq .Role "tool" }}<t>{{ .Content }}</t>
{{- end }}
{{- end }}<a>
{{- else }}{{ .Prompt }}{{ end }}{{ .Response }}"""

CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
]
WRITTEN = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n"
)


def text(template: str, messages: list[dict[str, object]] | None = None, **context: object) -> str:
    return render(to_jinja(template), messages or CHAT, generate=True, **context)


@pytest.mark.parametrize("template", [CHATML, LOOP])
def test_a_conversation_is_written_as_ollama_writes_it(template: str) -> None:
    own = chat_template(find_model("sapling")) or ""
    assert text(template) == WRITTEN == render(own, CHAT, generate=True)


@pytest.mark.parametrize("template", [CHATML, LOOP])
def test_roles_are_framed_by_a_translated_template(template: str) -> None:
    found = frames(to_jinja(template))
    said = "".join(
        frame.begin + content + frame.end
        for frame, content in [(found.roles[turn["role"]], turn["content"]) for turn in CHAT]
    )
    assert said + found.roles["assistant"].begin == WRITTEN


def test_tools_and_their_calls_are_written() -> None:
    call = {"function": {"name": "look", "arguments": {"at": 1}}}
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "R"},
    ]
    written = text(TOOLS, messages, tools=[{"type": "function"}])
    assert written == '<s>\nTools:\n{"type": "function"}</s>\n<u>U</u><a>[look {"at": 1}]</a><t>R</t><a>'


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{ .Prompt }}", "U1A1U2"),
        (
            "[INST] {{ if .System }}<<{{ .System }}>> {{ end }}{{ .Prompt }} [/INST]",
            "[INST] <<S>> U1 [/INST]A1[INST] U2 [/INST]",
        ),
        ("a  {{- /* no */ -}}  b {{ .Prompt }}", "ab U1A1ab U2"),
        (
            '{{ "{{" }} {%x%} {#y#} \\ "q" é😀{{ .Prompt }}\n',
            '{{ {%x%} {#y#} \\ "q" é😀U1\nA1{{ {%x%} {#y#} \\ "q" é😀U2\n',
        ),
        ("{{ range .Messages }}{{ if eq .Role `user` }}{{ .Content | json }}{{ end }}{{ end }}", '"U1""U2"'),
        ("{{ (index .Messages 1).Content }}{{ len .Messages }}", "U14"),
        ("{{ with .Messages }}{{ $n := len . }}{{ if gt $n 3 }}{{ print $n `!` }}{{ end }}{{ end }}", "4!"),
        (
            "{{ range .Messages }}{{ .Content }}{{ else }}none{{ end }}{{ if and .System (not .Tools) }}.{{ end }}",
            "SU1A1U2.",
        ),
    ],
)
def test_the_language_means_what_it_means_in_go(template: str, written: str) -> None:
    assert text(template) == written


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ .Nonsense }}", "`.Nonsense`"),
        ("x\n{{ template `x` }}", "line 2 of the template: `template`"),
        ("{{ define `x` }}{{ end }}", "`define`"),
        ("{{ printf `%d` 1 }}", "the function `printf`"),
        ("{{ if .System }}", "if without its end"),
        ("{{ end }}", "`end` that belongs to nothing"),
        ("{{ .System", "an action that never ends"),
        ("{{ if .System }}{{ .Response }}{{ end }}", ".Response inside an if"),
        ("{{ eq }}", "cannot be translated"),
        ("{{ .System & }}", "cannot be translated"),
        ("{{ (.System }}", "`(` without `)`"),
        ("{{ if }}x{{ end }}", "without a value"),
    ],
)
def test_what_cannot_be_translated_is_named(template: str, told: str) -> None:
    with pytest.raises(LoadError) as caught:
        to_jinja(template)
    assert caught.value.code == "template" and told in caught.value.message
    assert "the model's own template is used" in caught.value.message


def test_go_and_jinja_are_told_apart() -> None:
    assert all(map(is_go, (CHATML, LOOP, TOOLS, "{{ .Prompt }}", "{{- if .System }}x{{ end }}")))
    jinja = (
        chat_template(find_model("sapling")),
        "{{ messages[0].content }}",
        "{% for m in messages %}{% endfor %}",
        "",
    )
    assert not any(is_go(template or "") for template in jinja)
