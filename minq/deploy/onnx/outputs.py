"""What a network returns, written down: tensors by number, and the containers around them.

write(tree, name)      JSON of nested containers; their leaves are numbers of tensors, or constants
read(text, tensors)    the same containers again, with tensors in the places of their numbers

A named tuple, or another class of container, is made of its own class where the program that reads
knows it; else it is a named tuple of the same fields, or a dict.
"""

from __future__ import annotations

import json
import sys
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """A tensor, by its number."""

    number: int


def write(tree: Any, name: str = "output") -> str:
    """JSON of a nest of dicts, lists and tuples around places, numbers, words and None.

    Raises ValueError for anything else, naming its place: "output_scores".

    >>> write((Place(0), None, {"loss": 0.5}))
    '{"tuple": [{"tensor": 0}, {"constant": null}, {"dict": {"loss": {"constant": 0.5}}}]}'
    """
    return json.dumps(_written(tree, name))


def read(text: str, tensors: Sequence[Any]) -> Any:
    """The nest that ``write`` wrote down.

    >>> read(write((Place(0), None, {"loss": 0.5})), ["a tensor"])
    ('a tensor', None, {'loss': 0.5})
    """
    return _read(json.loads(text), tensors)


def _written(tree: Any, name: str) -> dict[str, Any]:
    if isinstance(tree, Place):
        return {"tensor": tree.number}
    if tree is None or type(tree) in (bool, int, float, str):
        return {"constant": tree}
    kind = type(tree)
    if hasattr(kind, "_fields"):
        tree = dict(zip(kind._fields, tree, strict=True))
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        items = {key: _written(value, f"{name}_{key}") for key, value in tree.items()}
        named = {} if kind is dict else {"class": [kind.__module__, kind.__qualname__]}
        return {"fields" if hasattr(kind, "_fields") else "dict": items, **named}
    if kind in (list, tuple):
        return {kind.__name__: [_written(v, f"{name}_{k}") for k, v in enumerate(tree)]}
    raise ValueError(
        f"{name} is a {kind.__name__}, which a file cannot hold; let the network return "
        "tensors, numbers, words and None, in tuples, lists and dicts with words as keys"
    )


def _read(form: dict[str, Any], tensors: Sequence[Any]) -> Any:
    if "tensor" in form:
        return tensors[form["tensor"]]
    if "constant" in form:
        return form["constant"]
    for kind in (list, tuple):
        if kind.__name__ in form:
            return kind(_read(f, tensors) for f in form[kind.__name__])
    named = "fields" in form
    items = {key: _read(f, tensors) for key, f in form["fields" if named else "dict"].items()}
    if "class" not in form:
        return items
    module, name = form["class"]
    known: Any = sys.modules.get(module)  # what a file names is never imported
    for part in name.split("."):
        known = getattr(known, part, None)
    if named:
        fits = getattr(known, "_fields", None) == tuple(items)
        return (known if fits else namedtuple(name.rpartition(".")[2], items))(**items)  # noqa: PYI024
    return known(items) if isinstance(known, type) and issubclass(known, dict) else items
