"""Data as a network takes it: arguments of one call, batches of a loader, and what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from minq.graph import beside, fixed


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


def arguments_for(model: nn.Module, batch: Any) -> tuple[tuple, dict]:
    """Of a batch what the model takes, beside it; labels come behind, or by another name."""
    args, kwargs = as_arguments(batch)
    parameters = inspect.signature(model.forward).parameters
    kinds = [p.kind for p in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        args = args[: sum(kind.name.startswith("POSITIONAL") for kind in kinds)]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        kwargs = {k: v for k, v in kwargs.items() if k in parameters}
    return beside(model, (args, kwargs))


def as_batches(data: Any) -> list[Any]:
    """A tensor or a dict is one batch; of anything else, each item is (see ``as_arguments``)."""
    if isinstance(data, (Tensor, Mapping)):
        return [data]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise TypeError(
            "the data must be one batch (a tensor or a dict) or an iterable of batches, "
            f"not {type(data).__name__}"
        )
    batches = list(data)
    if not batches:
        raise ValueError("there is no data; at least one batch is needed")
    return batches


def batches_of(gm: fx.GraphModule, data: Any) -> list[list[Any]]:
    """Data as a list of batches, each a list with one value for every input of ``gm``, beside it.

    What comes after the inputs, such as the labels of a data loader, is left out. Raises where a
    batch does not fit what the model was captured with, or is not finite.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    batches = []
    for batch in as_batches(data):
        args, kwargs = as_arguments(batch)
        named = [kwargs[k] for k in gm.meta.get("keywords", ()) if k in kwargs]
        values = tree_leaves((args, named))
        if len(values) < len(inputs):
            raise ValueError(f"a batch has {len(values)} values, the model takes {len(inputs)}")
        batches.append(beside(gm, values[: len(inputs)]))
        for node, value in zip(inputs, batches[-1], strict=True):
            _check_input(node, value)
    return batches


def flat(outputs: Any) -> Tensor:
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
    fits = value.ndim == expected.ndim and all(
        not fixed(e) or int(e) == v for e, v in zip(expected.shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"input {node.name} has shape {tuple(value.shape)}; the model was captured with "
            f"{tuple(expected.shape)}, where letters may vary"
        )
    if value.numel() == 0:
        raise ValueError(f"input {node.name} is empty; at least one sample is needed")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise ValueError(f"input {node.name} has NaN or infinite values; clean the data first")
