"""Batch norm while a quantized network trains: section 4.2 of the paper, eq. (40) to (43).

On the device batch norm is part of the layer in front of it. While the network trains there are
three ways to deal with it, here with y = W x and the batch's own mean and deviation mu_B, sigma_B:

    fold     once, before training: W~ and b~ are trained, and nothing is normalized any more
    refold   in every step, by the running statistics; the output is corrected to those of the
             batch: gamma / sigma_B (y - mu_B) + beta, with q(gamma W / sigma) for the weights
    keep     not at all: the quantized layer is followed by batch norm. Its factor gamma / sigma can
             move into the weight's scale afterwards, if every channel has a scale of its own

Every network comes here folded and calibrated, so that all three start from the same function.
``restore`` puts batch norms back in front of which nothing changes: their statistics are those that
folding remembered, gamma is sigma and beta is mu. ``remove`` folds them for good.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minq import graph
from minq.batches import arguments_for
from minq.network import operator, operator_name
from minq.quantizer import Quantizer
from minq.simulate import is_weight

WAYS = ("fold", "refold", "keep")


class KeptBatchNorm(_BatchNorm):
    """Batch norm of any layer's outputs, (N, C, ...)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class RefoldedLayer(KeptBatchNorm):
    """A layer and its batch norm, folded anew in every step.

    While it trains, the layer is computed twice: y = W x in full precision tells the batch's
    statistics, and q(gamma W / sigma) x, corrected by sigma / sigma_B, is the output. In eval mode
    only the second is computed, with the running statistics.
    """

    def __init__(self, layer: Any, quantizer: Quantizer, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.layer, self.quantizer = layer, quantizer

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        sigma = (self.running_var + self.eps).sqrt()
        mean, correction = self.running_mean, torch.ones_like(sigma)
        if self.training:
            y = self.layer(x, weight)
            y = y.to(torch.promote_types(y.dtype, sigma.dtype))  # under autocast it is half
            others = [k for k in range(y.ndim) if k != 1]
            mean = y.mean(others)
            variance = (y - _columns(mean, y)).square().mean(others)  # y.var is much slower
            correction = sigma / (variance + self.eps).sqrt()
            self._remember(mean.detach(), variance.detach(), y.numel() // y.shape[1])
        factor = self.weight / sigma
        y = self.layer(x, self.quantizer(self.layer.scaled(weight, factor)))  # eq. (11)
        shift = self.bias - factor * correction * mean  # eq. (12)
        return y * _columns(correction, y) + _columns(shift, y)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Running statistics, as ``torch.nn.functional.batch_norm`` keeps them."""
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * count / max(count - 1, 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _Layer:
    """A layer's operator with all its arguments but data, weight and bias."""

    def __init__(self, node: fx.Node, quantizer: str) -> None:
        self.quantizer = quantizer  # the name that its quantizer will have again
        self.target, self.rest = node.target, node.args[3:]
        self.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
        self.transposed = graph.op(node) in graph.TRANSPOSED
        self.groups = graph.groups_of(node)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"target": operator_name(self.target)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"target": operator(state["target"])})

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.target(x, weight, None, *self.rest, **self.kwargs)

    def scaled(self, weight: Tensor, factor: Tensor) -> Tensor:
        """The weight with every output multiplied, in the layout that the operator reads."""
        if self.transposed:
            weight = graph.turn(weight, self.groups)
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        return graph.turn(scaled, self.groups) if self.transposed else scaled


def _columns(v: Tensor, y: Tensor) -> Tensor:
    """One value a channel, as it broadcasts against (N, C, ...)."""
    return v.reshape(-1, *[1] * (y.ndim - 2))


# --- Putting batch norms back, and folding them for good ------------------------------------------


def restore(gm: fx.GraphModule, way: str) -> fx.GraphModule:
    """Give every layer that had a batch norm one again; ``gm`` is changed and returned.

    way: "refold", or "keep", which needs a scale for each channel. In eval mode the network does
    what it did before.

    Raises ValueError for another way, or "keep" with a weight that has one scale for all channels.
    """
    if way not in WAYS[1:]:
        raise ValueError(f"way must be refold or keep, not {way!r}")
    for name, node in graph.layers(gm).items():
        source = graph.weight_node(node)
        if "moments" not in node.meta or not is_weight(source):
            continue
        quantizer = gm.get_submodule(source.target)
        if way == "keep" and quantizer.granularity.axis is None:
            raise ValueError(
                f"{name} has one scale for all channels, so batch norm cannot be folded into it "
                "after training; pass per_channel=True, or batch_norm='fold'"
            )
        mean, variance = node.meta["moments"]
        place = graph.unused(gm, f"{name}.batch_norm".lstrip("."))
        bias = graph.bias_of(gm, node)
        if way == "keep":
            gm.add_submodule(place, _identity(KeptBatchNorm(len(mean)), mean, variance, bias))
            with gm.graph.inserting_after(node):
                new = gm.graph.call_module(place, (node,))
            node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
            node.args = (*node.args[:2], None, *node.args[3:])
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
        else:
            module = RefoldedLayer(_Layer(node, source.target), quantizer, len(mean))
            gm.add_submodule(place, _identity(module, mean, variance, bias))
            with gm.graph.inserting_after(node):
                new = gm.graph.call_module(place, (graph.input_of(node), source.args[0]))
            node.replace_all_uses_with(new)
        new.meta |= {k: v for k, v in node.meta.items() if k != "moments"}
    return graph.tidy(gm)


def _identity(module: KeptBatchNorm, mean: Tensor, variance: Tensor, bias: Tensor | None):
    """Statistics of a layer whose bias moves into the batch norm, and no change of its outputs."""
    bias = torch.zeros_like(mean) if bias is None else bias
    module.to(mean)
    module.running_mean.data, module.running_var.data = mean - bias, variance.clone()
    module.weight.data = (variance + module.eps).sqrt()
    module.bias.data = mean.clone()
    return module


def remove(gm: fx.GraphModule) -> fx.GraphModule:
    """Fold what ``restore`` put there; ``gm`` is changed and returned.

    A kept batch norm multiplies its layer's integers by nothing: with f = gamma / sigma,

        f W_hat = (f s) W_int                                             eq. (41) to (43)

    Where f is negative they change their sign; n, which has no opposite on the grid, becomes p.
    """
    for node in list(gm.graph.nodes):
        module = gm.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(module, KeptBatchNorm):
            continue
        factor = (module.weight / (module.running_var + module.eps).sqrt()).detach()
        bias = module.bias.detach() - factor * module.running_mean  # eq. (42)
        if isinstance(module, RefoldedLayer):
            layer = _plain_layer(gm, node, module)
            weight = graph.weight_of(gm, layer)
        else:
            layer = node.args[0]
            weight = graph.rounded_weight_of(gm, layer)
            _multiply_range(gm.get_submodule(graph.weight_node(layer).target), factor)
        graph.set_weight(gm, layer, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
        graph.set_bias(gm, layer, bias)
        layer.meta["moments"] = module.bias.detach().clone(), module.weight.detach() ** 2
        node.replace_all_uses_with(layer)
        gm.graph.erase_node(node)
    return graph.tidy(gm)


def _plain_layer(gm: fx.GraphModule, node: fx.Node, module: RefoldedLayer) -> fx.Node:
    """The layer's own operator again, reading its weight through its quantizer."""
    x, parameter = node.args
    gm.add_submodule(module.layer.quantizer, module.quantizer)
    with gm.graph.inserting_before(node):
        weight = gm.graph.call_module(module.layer.quantizer, (parameter,))
        args = (x, weight, None, *module.layer.rest)
        layer = gm.graph.call_function(module.layer.target, args, module.layer.kwargs)
    weight.meta.update(parameter.meta)
    layer.meta.update(node.meta)
    return layer


@torch.no_grad()
def _multiply_range(quantizer: Quantizer, factor: Tensor) -> None:
    """The same integers for a weight that is ``factor`` times as large; a channel of zeros is 0."""
    size = torch.where(factor == 0, torch.ones_like(factor), factor.abs())
    ends = quantizer.low * factor, quantizer.high * factor
    quantizer.scale.data = quantizer.scale_zero_point()[0] * size  # eq. (43)
    if quantizer.log2_scale is not None:
        quantizer.log2_scale.data = quantizer.scale.detach().log2()
    quantizer.low.data, quantizer.high.data = torch.minimum(*ends), torch.maximum(*ends)


# --- Statistics -----------------------------------------------------------------------------------


def batch_norms(gm: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that train, by name."""
    return {name: m for name, m in gm.named_modules() if isinstance(m, _BatchNorm)}


@torch.no_grad()
def reestimate(gm: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Replace running statistics by their mean over some batches; ``gm`` is changed and returned.

    While the weights move, the running statistics lag behind them, and rounded weights jump. After
    training both stand still. batches: what the network is called with, with or without labels
    behind it. Nothing else changes: ranges and weights do not.

    Raises ValueError where there is no batch.
    """
    batches = iter(batches)
    if (first := next(batches, None)) is None:
        raise ValueError("there is no batch to take statistics from; at least one is needed")
    modules, was_training = batch_norms(gm).values(), gm.training
    momenta = [m.momentum for m in modules]
    for m in modules:
        m.reset_running_stats()
        m.momentum = None  # a plain mean
    gm.eval()
    for m in modules:
        m.train()
    for batch in chain([first], batches):
        args, kwargs = arguments_for(gm, batch)
        gm(*args, **kwargs)
    for m, momentum in zip(modules, momenta, strict=True):
        m.momentum = momentum
    return gm.train(was_training)


def freeze_statistics(gm: nn.Module) -> nn.Module:
    """Let batch norms use their running statistics although the network trains."""
    for m in batch_norms(gm).values():
        m.eval()
    return gm
