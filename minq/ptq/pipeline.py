"""The standard pipeline of post-training quantization, figure 8 of the paper.

    capture, fold batch norms and constants                any nn.Module becomes a graph
    equalize layers, absorb high biases                    chapter 7
    insert quantizers, set the ranges of the weights       chapters 5 and 6
    with data:    AdaRound, or bias correction             chapters 9 and 8
                  set the ranges of the activations        chapter 6
    without data: analytic bias correction and ranges, from batch norm's statistics

``ptq`` is these steps in this order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from minq import graph
from minq._work import Bar
from minq.estimators import Shrunk
from minq.export import capture, outside
from minq.fold import fold
from minq.graph.batches import as_batches, batches_of
from minq.ptq import channels, readers
from minq.ptq.before import set_rounded_weight
from minq.ptq.checkpoint import Store
from minq.ptq.correction import correct_bias, may_have_bias
from minq.ptq.datafree import Moments, calibrate_without_data
from minq.ptq.rounding import AdaRound, Nearest, Rounding, as_rounding
from minq.ptq.walk import Walk, even_stride
from minq.quantizer import Quantizer
from minq.scheme import Scheme
from minq.simulate import insert_quantizers, is_quantizer, is_weight, place_of


@runtime_checkable
class Equalization(Protocol):
    """What changes channels before the quantizers come, and leaves the network's function."""

    def apply(self, gm: fx.GraphModule, batches: Sequence[Any], scheme: Scheme) -> None:
        """Change ``gm``, a captured network; ``batches`` are of ``minq.graph.batches``."""


@dataclass(frozen=True)
class Equalize:
    """How layers are equalized before they are quantized.

    Args:
        relu6: what becomes of ReLU6, see ``equalize_graph``.
        max_scale: the largest factor of a channel, and 1 / max_scale the smallest; None for any.
        absorb: also move high biases into the next layer, see ``absorb_biases``: True by what batch
            norm tells, "data" by eq. (24) on the calibration data.
    """

    relu6: str = "per_channel"
    max_scale: float | None = 2.0
    absorb: bool | str = False

    def __post_init__(self) -> None:
        channels.check_relu6(self.relu6)
        if self.absorb not in (True, False, "data"):
            raise ValueError(f'absorb must be True, False or "data", not {self.absorb!r}')

    def apply(self, gm: fx.GraphModule, batches: Sequence[Any], scheme: Scheme) -> None:
        channels.equalize_graph(gm, relu6=self.relu6, max_scale=self.max_scale)
        if self.absorb:
            channels.absorb_biases(gm, data=batches if self.absorb == "data" else None)


@outside()
def ptq(
    model: nn.Module,
    calibration: Any = None,
    *,
    scheme: Scheme | None = None,
    rounding: str | Rounding | None = None,
    equalize: bool | Equalization = True,
    example: Any = None,
    input_range: tuple[float, float] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> fx.GraphModule:
    """Quantize a trained network with a little unlabelled data, and no training.

    Args:
        model: any nn.Module that ``torch.export`` follows, on any device; it is left as it was. On
            a GPU, PyTorch convolves in TF32, with 11 bits, unless torch.backends.cudnn.allow_tf32
            is False.
        calibration: what the model is called with: one batch, or an iterable of them. Labels behind
            the inputs are ignored. A few hundred samples are enough. None takes the branch without
            data.
        scheme, settings: a ``minq.Scheme``, or its fields one by one: ``weights=4``,
            ``activations=8``, ``per_channel=True``, ``layers={"head": {"weights": 8}}``, ...
        rounding: ``AdaRound()``, the default with data; ``GPTQ()``; or ``Nearest()``, the default
            without. Or a short form of these, see ``minq.ptq.rounding``.
        equalize: whether to equalize layers first, or how: ``Equalize()``, the default, for even
            ranges; ``Balance()`` for the least noise behind all layers, judged on the data; for
            transformers ``Smooth()``, for the sake of activations, or ``AWQ()``, of weights.
        example, input_range: without data, something to call the model with once, and the range of
            its inputs, by default the example's.
        checkpoint: a file that keeps the rounded layers, so that a stopped run goes on from there.
        progress: show a bar; by default on a terminal.

    Returns:
        The network with quantizers, a plain torch.fx.GraphModule in simulation. After AdaRound or
        GPTQ it keeps two bytes more for each weight, see ``minq.ptq.before``. A tensor for which
        its 8 bits or more are too few is named in a warning.

    Raises:
        TypeError, ValueError: settings that do not exist or do not fit, a model that is quantized
            already, no data and no example, or a rounding that needs data without any.
    """
    scheme = Scheme.made(scheme, settings)
    if calibration is None and example is None:
        raise ValueError("give calibration data, or an example of the input to work without data")
    if rounding is None:
        rounding = Nearest() if calibration is None else AdaRound()
    rounding = as_rounding(rounding)
    if calibration is None and rounding.needs_data:
        raise ValueError(f"{rounding} needs calibration data; without data pass Nearest()")
    equalize = Equalize() if equalize is True else equalize
    if isinstance(equalize, type) or not isinstance(equalize, bool | Equalization):
        raise TypeError(
            "equalize must be True, False, or an object such as Equalize(), Balance(), Smooth() or "
            f"AWQ(), not {equalize!r}"
        )
    if calibration is None and isinstance(equalize, Equalize) and equalize.absorb == "data":
        raise ValueError('Equalize(absorb="data") needs calibration data; without, absorb=True')
    if isinstance(model, nn.Module) and any(isinstance(m, Quantizer) for m in model.modules()):
        raise ValueError(
            "the network is quantized already: it has quantizers; give the full-precision model it "
            "was made from"
        )
    data = [example] if calibration is None else as_batches(calibration)
    gm = capture(model, data[0])
    batches = batches_of(gm, data)
    fold(gm)
    if not isinstance(equalize, bool):
        equalize.apply(gm, batches, scheme)
    rounding.prepare(gm)
    insert_quantizers(gm, scheme)
    set_weight_ranges(gm)
    if calibration is None:
        inputs = _input_moments(gm, batches[0], input_range)
        return calibrate_without_data(gm, inputs, correct_bias=rounding.correct_bias)
    exact = {name: p.detach() for name, p in gm.named_parameters()}  # setting one makes a new one
    return calibrate(gm, batches, exact, rounding, checkpoint=checkpoint, progress=progress)


def _input_moments(gm, batch, input_range) -> dict[str, Moments]:
    """Inputs spread evenly over their range: all that is known of them without data."""
    moments = {}
    for node, x in zip((n for n in gm.graph.nodes if n.op == "placeholder"), batch, strict=True):
        if graph.is_float(node):
            low, high = input_range or (float(x.min()), float(x.max()))
            ends = [torch.full((x.shape[1],), v, device=x.device) for v in (low, high)]
            mean, variance = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) ** 2 / 12
            moments[str(node.target)] = Moments(mean, variance, *ends)
    return moments


def set_weight_ranges(gm: fx.GraphModule) -> fx.GraphModule:
    """Give every weight and constant its grid; ``gm`` is changed and returned."""
    for node in gm.graph.nodes:
        if is_quantizer(node) and node.args[0].op == "get_attr":
            quantizer = gm.get_submodule(node.target)
            if (shares := graph.notes_of(node.args[0]).shares) is not None:
                quantizer.estimator = Shrunk(shares)
            quantizer.observe()(graph.get(gm, node.args[0].target).detach())
            quantizer.freeze()
    return gm


def calibrate(
    gm: fx.GraphModule,
    batches: list[list[Any]],
    exact: Mapping[str, Tensor],
    rounding: Rounding,
    *,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Round the weights, correct the biases and set the activations' ranges, in one walk.

    Each layer sees the inputs that the layers before it, already quantized, now give it. What no
    step looks at is not computed: the exact network, or what follows the last layer.

    Args:
        gm: with quantizers, whose weights have their ranges; it is changed.
        batches: from ``minq.graph.batches.batches_of``.
        exact: the parameters of the full-precision network.
        rounding, checkpoint, progress: see ``ptq``.

    Returns:
        ``gm`` itself.
    """
    store = Store(checkpoint, gm, batches, rounding)
    both = rounding.correct_bias or rounding.reads_exact
    todo = [node for node in gm.graph.nodes if _is_step(node, rounding)]
    walk = Walk(gm, batches, dict(exact) if both else None, both=both)
    del exact
    rough: dict[str, float] = {}
    with Bar(sum(not is_quantizer(node) for node in todo), "layers", progress) as bar:
        for node in walk if todo else ():
            if is_quantizer(node):
                quality = _set_activation_range(gm, node, walk)
                if quality < readers.FEW and gm.get_submodule(node.target).bits >= 8:
                    rough[place_of(node)] = quality
            elif node in todo:
                name = graph.parameter_of(graph.weight_node(node)).target
                if rounding.rounds(node):
                    quantizer = gm.get_submodule(graph.weight_node(node).target)
                    if (kept := store.get(name)) is None:
                        rounded = rounding.round(gm, node, walk)
                        kept = rounded, quantizer.low.clone(), quantizer.high.clone()
                        store.put(name, kept)
                    rounded, *ends = kept
                    quantizer.set_range(*ends)
                    set_rounded_weight(gm, node, rounded)
                if _corrects_bias(node, rounding):
                    correct_bias(gm, node, walk)
                bar.update(name)
            if node is todo[-1]:
                break
    if rough:
        warnings.warn(
            "one range is too coarse for "
            + ", ".join(f"{name} ({db:.0f} dB)" for name, db in rough.items())
            + ": the next operators, as layer norm, also look at values that are small beside its "
            f"largest; give more bits, layers={dict.fromkeys(rough, {'activations': 16})}",
            stacklevel=3,
        )
    return graph.tidy(gm)  # layers may have got a bias


def _is_step(node: fx.Node, rounding: Rounding) -> bool:
    """Whether there is something to do at a node: a range, a weight to round or a bias."""
    if is_quantizer(node):
        return node.args[0].op != "get_attr"
    if not (graph.is_layer(node) and is_weight(graph.weight_node(node))):
        return False
    return rounding.rounds(node) or _corrects_bias(node, rounding)


def _corrects_bias(node: fx.Node, rounding: Rounding) -> bool:
    return rounding.correct_bias and may_have_bias(node)


def _set_activation_range(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> float:
    """From what the tensor is in the quantized network; the SQNR behind its readers, if known."""
    quantizer = gm.get_submodule(node.target)
    values = walk.quantized[node.args[0]]
    if quantizer.granularity.axis is None:
        sample = range_sample(values, walk.lengths)
    else:  # every channel has extremes of its own
        sample = torch.cat([quantizer.arranged(v.detach()).flatten(0, -2) for v in values])
    try:
        quantizer.observe()(sample)
    except ValueError as error:
        raise ValueError(
            f"what the model computes at {place_of(node)} from the calibration data has no range: "
            f"{error}"
        ) from error
    quantizer.freeze()
    if not quantizer.estimator.by_output or quantizer.granularity.axis is not None:
        return math.inf
    return readers.choose_range(quantizer, sample, readers.readers_of(gm, node, walk))


def range_sample(
    values: Sequence[Tensor], lengths: list[int] | None = None, most: int = 2**18
) -> Tensor:
    """The extremes and an even selection of all values: enough to set a range by.

    lengths: how many samples each batch has, by default equally many.
    """
    lengths = lengths or [1] * len(values)
    every, picked, ends = 0, [], []
    for v in values:
        v = v.detach().flatten()
        if not every:
            every = even_stride(v.numel(), v.numel() * sum(lengths) // lengths[0], most)
        picked.append(v[::every].clone())
        ends.append(torch.stack(torch.aminmax(v)))
    return torch.cat(picked + ends)
