"""A Modelfile becomes a name of the library: its base is found, everything it says is checked, a manifest is put.

Knows: Modelfiles, manifests, where bases may lie. Must not know: the terminal, how models are run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from jinja2 import Environment, TemplateSyntaxError

from branchwork.runtime.loading import modelfile, parameters
from branchwork.runtime.loading.about import about
from branchwork.runtime.loading.errors import LoadError
from branchwork.runtime.loading.gguf_file import is_gguf
from branchwork.runtime.loading.hub import find_model, jinja
from branchwork.runtime.loading.store import RESERVED, Manifest, Store, canonical


def create(
    name: str, text: str, store: Store, *, folder: Path, pulled: Callable[[str], Manifest] | None = None
) -> Manifest:
    """Let `name` stand for what the Modelfile `text` says. folder: what FROM's relative paths begin at.

    pulled: brings a hub's model into the library; without it such a base is refused. A base of the library gives
    everything that the Modelfile does not say. Raises LoadError (modelfile, template, parameter, name, not_found ...).
    """
    canonical(name)
    said = modelfile.read(text)
    return put(name, said, _base(said.base, store, folder, pulled), store)


def put(name: str, said: modelfile.Modelfile, base: Manifest, store: Store) -> Manifest:
    """Let `name` stand for a base and what a Modelfile says besides. Raises LoadError (template, name)."""
    if said.template is not None:
        check_template(said.template)
    manifest = msgspec.structs.replace(
        base,
        system=base.system if said.system is None else said.system,
        template=base.template if said.template is None else said.template,
        parameters={**base.parameters, **said.parameters},
        messages=said.messages or base.messages,
        license=said.license or base.license,
    )
    store.put(name, manifest)
    return manifest


def check_template(text: str) -> None:
    """Raises LoadError (template) for one that is neither Jinja nor translatable."""
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(jinja(text) or "")
    except TemplateSyntaxError as error:
        raise LoadError("template", f"line {error.lineno} of the template: {error.message}") from error


def base_of(name: str, path: Path) -> Manifest:
    """A model that is no name of the library, as a manifest that adds nothing. Raises LoadError of its files."""
    kept = name if name in RESERVED else str(path.absolute())
    return Manifest(path=kept, source=name, about=about(path))


def notes(manifest: Manifest) -> list[str]:
    """What a person should know who has made a manifest, a sentence each."""
    idle = parameters.without_effect(manifest.parameters)
    return [f"without effect here: {', '.join(idle)}"] if idle else []


def _base(name: str, store: Store, folder: Path, pulled: Callable[[str], Manifest] | None) -> Manifest:
    if name not in RESERVED:
        found = store.find(name)
        if found is not None:
            return found
        path = folder / Path(name).expanduser()
        if path.is_dir() or is_gguf(path):
            return base_of(str(path), find_model(str(path)))
        if path.exists() or name.startswith((".", "~", "/")) or pulled is None:
            raise LoadError(
                "not_found", f"FROM {name}: no model of the library, no directory and no .gguf file in {folder}"
            )
        try:
            return pulled(name)
        except LoadError as error:
            if error.code == "name":
                raise LoadError("not_found", f"FROM {name}: there is no such model, and {error.message}") from error
            raise
    return base_of(name, find_model(name))
