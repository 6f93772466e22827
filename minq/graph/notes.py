"""What passes know of a node or a network, beyond its graph: typed notes.

Notes stay with their node or network when it is copied, moved, saved and loaded. They are values:
a pass that learns something puts new notes in place of the old ones (``note``), so that copies of a
graph never share what one of them changes. Torch's own entries of ``node.meta`` (``val``,
``nn_module_stack``) are beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

_KEY = "minq"


class Statistics(NamedTuple):
    """Mean and variance of a layer's outputs as batch norm made them, each (channels,)."""

    mean: Tensor
    variance: Tensor


class Share(NamedTuple):
    """What was added to a parameter: ``values * unit``, values in half floats up to 1 in size."""

    values: Tensor
    unit: float


@dataclass(frozen=True)
class NodeNotes:
    """What passes know of a node."""

    statistics: Statistics | None = None
    """Of a layer whose batch norm was folded into it."""
    constant: bool = False
    """Whether parameters and buffers alone decide its value (written by ``mark_constants``)."""
    smoothing: bool = False
    """Whether it is a factor that ``minq.ptq.places`` left: a product with it only rescales."""
    shares: Tensor | None = None
    """Of a weight, the share of its range that ``minq.ptq.awq`` found best for each scale."""


@dataclass(frozen=True)
class NetworkNotes:
    """What is known of a network."""

    captured: bool = False
    """Whether ``minq.capture`` made it: its operators are those that passes know."""
    keywords: tuple[str, ...] = ()
    """Names of the inputs that it is called with by keyword, in order."""
    arguments: int | None = None
    """How many inputs it is called with by position; None where that is not known."""
    keys: tuple[str, ...] = ()
    """Keys of the dict that is its one argument, in order."""
    sizes: tuple[str, ...] = ()
    """Conditions on the sizes of inputs, "x.shape[0] > 4"; see ``check_sizes``."""
    random: tuple[str, ...] = ()
    """The places of operators that draw random numbers."""
    trained: bool = False
    """Whether its weights were trained since it was quantized."""
    added: dict[str, Share] = field(default_factory=dict)
    """What rounding and bias correction added to parameters, by name; see ``minq.ptq.before``."""


def notes_of(node: Any) -> NodeNotes:
    """The notes of a node; empty ones where there are none.

    >>> notes_of(fx.Graph().placeholder("x")).statistics is None
    True
    """
    return node.meta.get(_KEY, _NOTHING) if isinstance(node, fx.Node) else _NOTHING


_NOTHING = NodeNotes()


def note(node: fx.Node, **known: Any) -> None:
    """Note something of a node, in place of what was known of that before.

    >>> x = fx.Graph().placeholder("x")
    >>> note(x, constant=True)
    >>> notes_of(x).constant
    True
    """
    node.meta[_KEY] = replace(notes_of(node), **known)


def is_captured(gm: Any) -> bool:
    """Whether a module is a network that ``minq.capture`` made."""
    return isinstance(gm, fx.GraphModule) and network_notes(gm).captured


def network_notes(gm: nn.Module) -> NetworkNotes:
    """The notes of a network; empty ones where there are none."""
    return getattr(gm, "meta", {}).get(_KEY, _EMPTY)


_EMPTY = NetworkNotes()


def note_network(gm: fx.GraphModule, **known: Any) -> None:
    """Note something of a network, in place of what was known of that before."""
    gm.meta[_KEY] = replace(network_notes(gm), **known)


def call_of(gm: fx.GraphModule) -> dict[str, Any]:
    """How a network is called, for the notes of another one with the same inputs."""
    notes = network_notes(gm)
    return {k: getattr(notes, k) for k in ("keywords", "arguments", "keys", "sizes")}


def convert_notes(gm: fx.GraphModule, convert: Callable[[Tensor], Tensor]) -> None:
    """Let the tensors in all notes go where the network's parameters go."""
    for node in gm.graph.nodes:
        if (known := notes_of(node).statistics) is not None:
            note(node, statistics=Statistics(*map(convert, known)))
        if (shares := notes_of(node).shares) is not None:
            note(node, shares=convert(shares))
