"""Batch norm while a quantized network trains: section 4.2 of the paper, eq. (40) to (43).

On the device batch norm is part of the layer in front of it. While the network trains there are
three ways to deal with it, here with y = W x and the batch's own mean and deviation mu_B, sigma_B:

    Fold      once, before training: W~ and b~ are trained, and nothing is normalized any more
    Dynamic   folded in every step, by the running statistics; the output is corrected to those of
              the batch: gamma / sigma_B (y - mu_B) + beta, with q(gamma W / sigma) for the weights
    Keep      not at all: the quantized layer is followed by batch norm. Its factor gamma / sigma
              can move into the weight's scale afterwards, if every channel has a scale of its own

Every network comes here folded and calibrated, so that all three start from the same function.
Their ``restore`` gives layers batch norms again that change nothing: the statistics are those that
folding remembered, gamma is sigma and beta is mu. ``remove`` folds them for good.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minq import graph
from minq._checks import by_name
from minq.graph.batches import arguments_for
from minq.graph.network import operator, operator_name
from minq.quantizer import Quantizer
from minq.simulate import is_weight


class KeptBatchNorm(_BatchNorm):
    """Batch norm of any layer's outputs, (N, C, ...)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class DynamicallyFoldedLayer(KeptBatchNorm):
    """A layer and its batch norm, folded in every step.

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


class LayerOperator:
    """A layer's operator with all its arguments but data, weight and bias."""

    def __init__(self, node: fx.Node, quantizer: str) -> None:
        self.quantizer = quantizer  # the name that its quantizer will have again
        self.target, self.rest = node.target, node.args[3:]
        self.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
        self.transposed = graph.traits(node).role == "transposed"
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
            weight = graph.transpose_weight(weight, self.groups)
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        return graph.transpose_weight(scaled, self.groups) if self.transposed else scaled


def _columns(v: Tensor, y: Tensor) -> Tensor:
    """One value a channel, as it broadcasts against (N, C, ...)."""
    return v.reshape(-1, *[1] * (y.ndim - 2))


# --- Putting batch norms back, and folding them for good ------------------------------------------


class BatchNorm(ABC):
    """What becomes of batch norms while a network trains."""

    reestimate: int
    """After training, take their statistics anew from so many batches."""

    def restore(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Give every layer that had a batch norm one again; ``gm`` is changed and returned.

        In eval mode the network does what it did before.
        """
        for name, node in graph.layers(gm).items():
            known = graph.notes_of(node).statistics
            if known is None or not is_weight(graph.weight_node(node)):
                continue
            new = self.insert(gm, name, node, known)
            new.meta.update(node.meta)
            graph.note(new, statistics=None)
        return graph.tidy(gm)

    @abstractmethod
    def insert(
        self, gm: fx.GraphModule, name: str, layer: fx.Node, known: graph.Statistics
    ) -> fx.Node:
        """Put a batch norm behind one layer, or in its place; returns its node."""


@dataclass(frozen=True)
class Fold(BatchNorm):
    """Batch norms stay folded into the weights."""

    reestimate: int = field(default=0, init=False, repr=False)  # there are none

    def restore(self, gm: fx.GraphModule) -> fx.GraphModule:
        return gm

    def insert(
        self, gm: fx.GraphModule, name: str, layer: fx.Node, known: graph.Statistics
    ) -> fx.Node:
        return layer


@dataclass(frozen=True)
class Keep(BatchNorm):
    """Batch norms stay behind their layers, which need a scale for each channel.

    ``restore`` raises ValueError for a weight that has one scale for all channels.
    """

    reestimate: int = 0

    def insert(
        self, gm: fx.GraphModule, name: str, layer: fx.Node, known: graph.Statistics
    ) -> fx.Node:
        if gm.get_submodule(graph.weight_node(layer).target).granularity.axis is None:
            raise ValueError(
                f"{name} has one scale for all channels, so batch norm cannot be folded into it "
                "after training; pass per_channel=True, or batch_norm='fold'"
            )
        mean, variance = known
        module = _identity(KeptBatchNorm(len(mean)), mean, variance, graph.bias_of(gm, layer))
        place = _add(gm, name, module)
        with gm.graph.inserting_after(layer):
            new = gm.graph.call_module(place, (layer,))
        layer.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        layer.args = (*layer.args[:2], None, *layer.args[3:])
        layer.kwargs = {k: v for k, v in layer.kwargs.items() if k != "bias"}
        return new


@dataclass(frozen=True)
class Dynamic(BatchNorm):
    """Batch norms are folded in every step, by their running statistics."""

    reestimate: int = 0

    def insert(
        self, gm: fx.GraphModule, name: str, layer: fx.Node, known: graph.Statistics
    ) -> fx.Node:
        source = graph.weight_node(layer)
        mean, variance = known
        module = DynamicallyFoldedLayer(
            LayerOperator(layer, source.target), gm.get_submodule(source.target), len(mean)
        )
        place = _add(gm, name, _identity(module, mean, variance, graph.bias_of(gm, layer)))
        with gm.graph.inserting_after(layer):
            new = gm.graph.call_module(place, (graph.input_of(layer), source.args[0]))
        layer.replace_all_uses_with(new)
        return new


NAMES: dict[str, BatchNorm] = {"fold": Fold(), "dynamic": Dynamic(), "keep": Keep()}


def as_batch_norm(value: str | BatchNorm) -> BatchNorm:
    """What a short form stands for.

    Raises:
        ValueError: there is no such name.
        TypeError: it is something else.

    >>> as_batch_norm("keep")
    Keep(reestimate=0)
    """
    return by_name(value, BatchNorm, NAMES, "batch_norm", example="Keep()")


def _add(gm: fx.GraphModule, name: str, module: nn.Module) -> str:
    place = graph.unused(gm, f"{name}.batch_norm".lstrip("."))
    gm.add_submodule(place, module)
    return place


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
        if isinstance(module, DynamicallyFoldedLayer):
            layer = _plain_layer(gm, node, module)
            weight = graph.weight_of(gm, layer)
        else:
            layer = node.args[0]
            weight = graph.rounded_weight_of(gm, layer)
            _multiply_range(gm.get_submodule(graph.weight_node(layer).target), factor)
        graph.set_weight(gm, layer, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
        graph.set_bias(gm, layer, bias)
        beta, gamma = module.bias.detach(), module.weight.detach()
        graph.note(layer, statistics=graph.Statistics(beta.clone(), gamma**2))
        node.replace_all_uses_with(layer)
        gm.graph.erase_node(node)
    return graph.tidy(gm)


def _plain_layer(gm: fx.GraphModule, node: fx.Node, module: DynamicallyFoldedLayer) -> fx.Node:
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
    """Replace running statistics by their mean over some batches.

    While the weights move, the running statistics lag behind them, and rounded weights jump. After
    training both stand still. Nothing else changes: ranges and weights do not.

    Args:
        gm: a network in training; it is changed.
        batches: what the network is called with, with or without labels behind it.

    Returns:
        ``gm`` itself.

    Raises:
        ValueError: there is no batch.
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
