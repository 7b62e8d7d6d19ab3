"""Where the references of a JSON Schema lead: $id, $anchor, $dynamicAnchor, JSON pointers, published meta-schemas.

Knows: the drafts' rules of resolution. Must not know: what keywords mean, grammars. Never goes to the network.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

from branchwork.lang.constraint import Invalid, Unsupported

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONES = (
    "not",
    "if",
    "then",
    "else",
    "items",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
)
_DRAFT = re.compile(r"draft-0?(\d+)/|draft/(\d{4})-")
NEWEST = 2020


class References:
    """All subschemas that can be referred to, and which resource and draft each belongs to."""

    def __init__(self, root: Any) -> None:
        self._resources: dict[str, Any] = {}
        self._anchors: dict[tuple[str, str], Any] = {}
        self._dynamic: dict[tuple[str, str], Any] = {}
        self._bound: dict[str, set[str]] = {}
        self._bases: dict[int, str] = {}
        self._drafts: dict[str, int] = {}
        self._kept: list[Any] = []
        self.uses_dynamic = False
        self._resources[""] = root
        self._index(root, "")

    def base(self, node: Any) -> str:
        return self._bases[id(node)]

    def draft(self, base: str) -> int:
        return self._drafts.get(base, self._drafts.get("", NEWEST))

    def resolve(self, reference: str, base: str) -> Any:
        """The node that `reference` means inside resource `base`. Raises Invalid, Unsupported."""
        if not isinstance(reference, str):
            raise Invalid(f"a $ref must be a string, not {reference!r}")
        whole = base + reference if reference.startswith("#") else _joined(base, reference)
        uri, fragment = urldefrag(whole)
        resource = self._resource(uri, reference)
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            found = self._anchors.get((uri, fragment))
            if found is None:
                raise Invalid(f"{reference} names an anchor that the schema does not have")
            return found
        return self._pointer(resource, uri, fragment, reference)

    def dynamic(self, reference: str, base: str, scope: tuple[str, ...]) -> Any:
        """What a $dynamicRef means when the resources in `scope` have been entered, outermost first."""
        found = self.resolve(reference, base)
        name = unquote(urldefrag(reference)[1])
        home = self._bases.get(id(found), base)
        if self._dynamic.get((home, name)) is not found:
            return found
        return next((self._dynamic[uri, name] for uri in scope if (uri, name) in self._dynamic), found)

    def enter(self, base: str, scope: tuple[str, ...]) -> tuple[str, ...]:
        """`scope` and `base`, if `base` is the first there to have some dynamic anchor: only such make a difference."""
        if base in scope:
            return scope
        new = self._bound.get(base, set())
        return (*scope, base) if new.difference(*(self._bound[uri] for uri in scope)) else scope

    def recursive(self, base: str, scope: tuple[str, ...]) -> Any:
        """What $recursiveRef "#" of 2019-09 means."""
        found = self._resources[base]
        if not (isinstance(found, dict) and found.get("$recursiveAnchor") is True):
            return found
        for uri in scope:
            outer = self._resources.get(uri)
            if isinstance(outer, dict) and outer.get("$recursiveAnchor") is True:
                return outer
        return found

    def _resource(self, uri: str, reference: str) -> Any:
        if uri not in self._resources:
            try:
                resource = REGISTRY.contents(uri)
            except Exception as error:
                raise Unsupported(
                    f"the reference {reference}", hint="only references into the schema itself are followed; use $defs"
                ) from error
            self._resources[uri] = resource
            self._index(resource, uri)
        return self._resources[uri]

    def _pointer(self, node: Any, base: str, pointer: str, reference: str) -> Any:
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and step in node:
                node = node[step]
            elif isinstance(node, list) and step.isdigit() and int(step) < len(node):
                node = node[int(step)]
            else:
                raise Invalid(f"{reference} leads nowhere: there is no {step!r}")
            base = self._bases.get(id(node), base)
        if id(node) not in self._bases:
            self._index(node, base)
        return node

    def _index(self, node: Any, base: str) -> None:
        if isinstance(node, bool):
            return
        if not isinstance(node, dict):
            raise Invalid(f"a schema is an object or a boolean, not {str(node)[:60]!r}")
        if id(node) in self._bases:
            return
        self._kept.append(node)
        base = self._identify(node, base)
        self._bases[id(node)] = base
        for key in _MAPS:
            inside = node.get(key)
            for value in inside.values() if isinstance(inside, dict) else ():
                if not (key == "dependencies" and isinstance(value, list)):
                    self._index(value, base)
        for key in _LISTS:
            inside = node.get(key)
            for value in inside if isinstance(inside, list) else ():
                self._index(value, base)
        for key in _ONES:
            if isinstance(node.get(key), (dict, bool)):
                self._index(node[key], base)

    def _identify(self, node: dict[str, Any], base: str) -> str:
        """Take down the names that the node has; the base that holds inside it."""
        declared = node.get("$schema")
        draft = self.draft(base)
        if isinstance(declared, str) and (found := _DRAFT.search(declared)):
            draft = int(found[1] or found[2])
        own = node.get("$id", node.get("id") if draft == 4 else None)
        if isinstance(own, str) and not ("$ref" in node and draft <= 7):
            uri, fragment = urldefrag(_joined(base, own))
            if own.startswith("#"):
                self._anchors[base, fragment] = node
            else:
                base = uri
                self._resources.setdefault(base, node)
        if declared is not None:
            self._drafts[base] = draft
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(node.get(key), str):
                self._anchors[base, node[key]] = node
        if isinstance(node.get("$dynamicAnchor"), str):
            self._dynamic[base, node["$dynamicAnchor"]] = node
            self._bound.setdefault(base, set()).add(node["$dynamicAnchor"])
        if node.get("$recursiveAnchor") is True:
            self._bound.setdefault(base, set()).add("")
        self.uses_dynamic |= "$dynamicRef" in node or "$recursiveRef" in node
        return base


def _joined(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError as error:
        raise Invalid(f"{reference} is no reference: {error}") from None
