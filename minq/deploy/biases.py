"""Biases in steps of s_w s_x, for integers, C and ONNX alike: too many of them, or too coarse."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, fx

from minq import graph
from minq.quantizer import Quantizer
from minq.simulate import is_quantizer, place_of

MOST = 2.0**30
"""The largest |b_int|: half of what 32 bits hold. The other half is left to the products."""


def wide_enough(quantizer: Quantizer, bias: Tensor, s_x: Tensor | float) -> Quantizer:
    """The quantizer of a weight, with steps that are wide enough for the bias behind it.

        b_int = round(b / (s_w s_x)),    |b_int| <= 2^30    where    s_w >= |b| / (2^30 s_x)

    The weights of a channel that is all but dead have tiny steps, and its bias is so many steps of
    s_w s_x that no accumulator of 32 bits holds it. Such an s_w becomes the least that is allowed;
    the smallest power of two above it, where steps are powers of two. M weights move by half a step
    at most, so with inputs of 8 bits the output moves by less than M |b| / 2^23.

    Args:
        quantizer: of the weight, frozen or learned; it is left alone.
        bias: (N,), real numbers.
        s_x: the scale of the layer's input.

    Returns:
        The same quantizer where its steps are wide enough, else a frozen copy.

    >>> quantizer = Quantizer(8, signed=True, symmetric=True, axis=0)
    >>> quantizer = quantizer.set_range(*torch.tensor([[-127.0, -1e-9], [127.0, 1e-9]])).freeze()
    >>> wide_enough(quantizer, torch.tensor([1.0, 2.0]), 0.5).scale.log2()
    tensor([  0., -28.])
    """
    scale = quantizer.scale_zero_point()[0].detach()
    least = bias.detach().double().abs() / (MOST * float(s_x))
    if quantizer.power_of_two:
        least = torch.exp2(torch.log2(least).ceil())
    least = least.float().to(scale)  # in single precision, whoever asks
    least = least if scale.ndim else least.max()
    if bool((scale >= least).all()):
        return quantizer
    wider = copy.deepcopy(quantizer).freeze()
    wider.scale.data = torch.maximum(scale, least)
    return wider


@torch.no_grad()
def warn_of_coarse(gm: fx.GraphModule) -> None:
    """Name the layers that round a bias by more than one step s_y of their output.

        |b - s_w s_x round(b / (s_w s_x))| > s_y

    One channel of the input is then so much larger than what counts that s_x is no step for the
    others. The simulation adds biases as they are, and does not show it.
    """
    found: dict[str, float] = {}
    sources: set[str] = set()
    for name, node in graph.layers(gm).items():
        bias, weight = graph.bias_of(gm, node), _quantizer(gm, graph.weight_node(node))
        before = _before(node.args[0])
        x, y = (_quantizer(gm, n) for n in (before, _behind(node)))
        if before is None or bias is None or weight is None or x is None or y is None:
            continue
        s_w, s_x, s_y = (q.scale_zero_point()[0].double() for q in (weight, x, y))
        if s_x.ndim or s_y.ndim or s_w.shape not in ((), bias.shape):  # more scales: in float
            continue
        step = wide_enough(weight, bias, s_x).scale_zero_point()[0].double() * s_x
        off = (bias.double() - step * torch.round(bias.double() / step)).abs().max() / s_y
        if off > 1:
            found[name] = float(off)
            sources.add(place_of(before))
    if found:
        names = ", ".join(f"{k} (by up to {v:.0f} steps of its output)" for k, v in found.items())
        more = dict.fromkeys(sorted(sources), {"activations": 16})
        warnings.warn(
            f"32-bit integers round the biases of {names}: a step of the input is too coarse for "
            f"them; give it more bits, layers={more}",
            stacklevel=5,
        )


def _quantizer(gm: fx.GraphModule, node: fx.Node | None) -> Quantizer | None:
    """What a node rounds with, if it has a range that stays."""
    if node is None or not is_quantizer(node):
        return None
    quantizer = gm.get_submodule(node.target)
    return None if quantizer.stage in ("off", "observe") or quantizer.dynamic else quantizer


def _before(node: fx.Node) -> fx.Node | None:
    """The rounding that a layer's input comes from, through moves."""
    while isinstance(node, fx.Node) and not is_quantizer(node):
        if graph.traits(node).role != "move" or len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]
    return node


def _behind(node: fx.Node) -> fx.Node | None:
    """The rounding behind a layer, through moves and activation functions."""
    while not is_quantizer(node):
        if len(node.users) != 1:
            return None
        node = next(iter(node.users))
        if not is_quantizer(node) and graph.traits(node).role not in ("move", "activation"):
            return None
    return node
