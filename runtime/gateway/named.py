"""What a library name adds to the model that is served under it: system prompt, template, runtime options.

Knows: what the library says of a name, chat frames. Must not know: manifests' files, engines, clients.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from branchwork.lang.protocol import ChatFrames
from branchwork.lang.transcript import frame_of
from branchwork.runtime.gateway.chat import frames
from branchwork.runtime.loading.hub import Resolved
from branchwork.runtime.loading.tokenizer import chat_template, special_texts


def template_of(found: Resolved) -> str | None:
    """The Jinja template that serves: the library's, else the model's own, None for neither."""
    return found.template or chat_template(found.path)


def frames_of(found: Resolved) -> ChatFrames:
    """The frames of that template; the library's system prompt stands wherever a conversation has none of its own."""
    made = frames(template_of(found), **special_texts(found.path))
    if found.system is None:
        return made
    frame = frame_of(made, "system")
    text = frame.begin + found.system + frame.end if found.system else ""
    return msgspec.structs.replace(made, default_system=text)


def options_of(found: Resolved, given: Sequence[str]) -> list[str]:
    """The runtime's name=value options: those given, then the library's for what was not given."""
    names = {option.partition("=")[0] for option in given}
    return [*given, *(option for option in found.options if option.partition("=")[0] not in names)]
