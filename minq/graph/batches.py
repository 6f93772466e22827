"""Data as a network takes it: arguments of one call, batches of a loader, and what comes out."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from minq.graph.network import check_shape, check_sizes
from minq.graph.notes import network_notes
from minq.graph.parameters import to_device_of


def as_arguments(example: Any) -> tuple[tuple, dict]:
    """What to call a model with: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)) and example:
        return tuple(example), {}
    raise TypeError(
        "the example must be a tensor, a tuple of arguments, or a dict of keywords, "
        f"not {type(example).__name__}"
    )


_LABELS = re.compile(r"(.*_)?(labels?|targets?|label_ids)|(start|end)_positions")
"""Names that loaders give to the right answers; a forward that takes them computes its loss."""


def arguments_for(model: nn.Module, batch: Any) -> tuple[tuple, dict]:
    """Of a batch what the model takes, beside it; labels come behind, or by another name.

    Left out are labels that ``forward`` could take to compute its loss, and None where that is its
    default. A dict whose keys are no parameters is the one argument of a ``forward`` that takes
    one.
    """
    args, kwargs = as_arguments(batch)
    parameters = inspect.signature(model.forward).parameters
    kinds = [p.kind for p in parameters.values()]
    if kwargs and parameters.keys().isdisjoint(kwargs):
        needed = [p for p in parameters.values() if p.default is p.empty]
        if len(needed) == 1 and needed[0].kind.name.startswith("POSITIONAL"):
            args, kwargs = (kwargs,), {}
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        places = [p for p in parameters.values() if p.kind.name.startswith("POSITIONAL")]
        args = args[: len(places)]
        while args and _left_out(args[-1], places[len(args) - 1], args[0]):
            args = args[:-1]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        kwargs = {k: v for k, v in kwargs.items() if k in parameters}
    for k in [k for k in kwargs if k in parameters]:
        default = parameters[k].default
        if (kwargs[k] is None or _LABELS.fullmatch(k)) and default is None:
            del kwargs[k]
    return to_device_of(model, (args, kwargs))


def _left_out(value: Any, parameter: inspect.Parameter, first: Any) -> bool:
    """Whether the last value of a batch is none of the inputs: None, or labels."""
    if parameter.default is not None:
        return False
    if value is None or _LABELS.fullmatch(parameter.name):
        return True
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    if whole and value.ndim == 1 and isinstance(first, Tensor) and len(value) == len(first):
        warnings.warn(
            f"the last value of a batch, {len(value)} whole numbers, is taken for labels, not for "
            f"{parameter.name!r}, which forward can do without; to give it, pass dicts of keywords",
            stacklevel=4,
        )
        return True
    return False


def normal(x: Tensor) -> Tensor:
    """A tensor that autograd may see, also where it was made in inference mode."""
    return x.clone() if x.is_inference() else x


def as_batches(data: Any) -> Sequence[Any]:
    """A tensor or a dict is one batch; of anything else, each item is (see ``as_arguments``)."""
    if isinstance(data, (Tensor, Mapping)):
        return [data]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise TypeError(
            "the data must be one batch (a tensor or a dict) or an iterable of batches, "
            f"not {type(data).__name__}"
        )
    batches = data if isinstance(data, tuple) else list(data)
    if not batches:
        raise ValueError("there is no data; at least one batch is needed")
    return batches


def batches_of(gm: fx.GraphModule, data: Any) -> list[list[Any]]:
    """Data as a list of batches, each a list with one value for every input of ``gm``.

    What comes after the inputs, such as the labels of a data loader, is left out.

    Args:
        gm: a captured network.
        data: one batch or several, see ``as_batches``.

    Returns:
        The batches, on the network's device.

    Raises:
        TypeError, ValueError: a batch does not fit what the model was captured with, or is not
            finite.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    batches = []
    try:
        for batch in as_batches(data):
            values = _values(gm, batch)
            if len(values) < len(inputs):
                raise ValueError(f"a batch has {len(values)} values, the model takes {len(inputs)}")
            batches.append(tree_map_only(Tensor, normal, to_device_of(gm, values[: len(inputs)])))
            for node, value in zip(inputs, batches[-1], strict=True):
                _check_input(node, value)
            check_sizes(gm, batches[-1])
    except (TypeError, ValueError) as error:
        if not isinstance(data, tuple):
            raise
        raise type(error)(
            f"{error}. A tuple is read as several batches here; one batch of several inputs is "
            "[(x, ...)]"
        ) from error
    return batches


@torch.no_grad()
def watch(
    gm: fx.GraphModule, batches: Sequence[Any], see: Callable[[fx.Node, Any], None]
) -> None:
    """Compute a network on all data, and call ``see`` with each node and its value.

    Args:
        gm: a captured graph.
        batches: from ``batches_of``.
        see: what is done with them; a value is gone after its last reader.
    """

    class Watched(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            see(node, value)
            return value

    for batch in batches:
        Watched(gm).run(*batch)


def _values(gm: fx.GraphModule, batch: Any) -> list[Any]:
    """The leaves of a batch, in the order of the inputs."""
    args, kwargs = as_arguments(batch)
    notes = network_notes(gm)
    if keys := notes.keys:
        whole = kwargs or args[0]
        if missing := [k for k in keys if k not in whole]:
            raise ValueError(f"a batch has no {', '.join(missing)}; the model takes {list(keys)}")
        return tree_leaves({k: whole[k] for k in keys})
    named = [kwargs[k] for k in notes.keywords if k in kwargs]
    return tree_leaves((args, named))


def flatten_outputs(outputs: Any) -> Tensor:
    """All real numbers that a network answers, in one vector."""
    tensors = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in tensors])


def _check_input(node: fx.Node, value: Any) -> None:
    """Data that the model was not captured for is named before it fails deep inside."""
    expected = node.meta.get("val")
    if not isinstance(expected, Tensor):
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"input {node.name} must be a tensor, not {type(value).__name__}")
    check_shape(node, value)
    if value.numel() == 0:
        raise ValueError(f"input {node.name} is empty; at least one sample is needed")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise ValueError(f"input {node.name} has NaN or infinite values; clean the data first")
