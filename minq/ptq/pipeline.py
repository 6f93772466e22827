"""The standard pipeline of post-training quantization, figure 3 of the paper.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from minq import graph
from minq._checks import check_count
from minq._work import Bar, fingerprint, write_whole
from minq.batches import as_batches, batches_of
from minq.export import capture, outside
from minq.fold import fold
from minq.ptq import bias as bias_math
from minq.ptq import channels, readers
from minq.ptq.adaround import adaround
from minq.ptq.before import set_corrected_bias, set_rounded_weight
from minq.ptq.datafree import Moments, calibrate_without_data
from minq.ptq.gptq import gptq
from minq.ptq.walk import Walk, sample_rows
from minq.quantizer import Estimator, Quantizer
from minq.simulate import (
    insert_quantizers,
    is_quantizer,
    is_weight,
    quantizers,
    weight_quantizers,
)

ROUNDINGS = ("adaround", "nearest", "gptq")


@outside()
def ptq(
    model: nn.Module,
    calibration: Any = None,
    *,
    example: Any = None,
    input_range: tuple[float, float] | None = None,
    weights: int | None = 8,
    activations: int | None = 8,
    per_channel: bool = False,
    group_size: int | None = None,
    symmetric: bool = False,
    equalize: bool = True,
    relu6: str = "per_channel",
    reach: float | None = 2.0,
    absorb: bool = False,
    rounding: str = "adaround",
    correct_bias: bool | None = None,
    weight_range: str | Estimator = "mse",
    activation_range: str | Estimator = "output",
    skip: Iterable[str] = (),
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    sweeps: int = 20,
    rows: int = 4096,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Quantize a trained network with a little unlabelled data, and no training.

    model: any nn.Module that ``torch.export`` follows, on any device; it is left as it was. On
        a GPU, PyTorch convolves in TF32, with 11 bits, unless torch.backends.cudnn.allow_tf32 is
        False.
    calibration: what the model is called with: one batch, or an iterable of them. Labels behind the
        inputs are ignored. A few hundred samples are enough. None takes the branch without data.
    example, input_range: for that branch, something to call the model with once, and the range of
        its inputs, by default the example's.
    weights, activations, per_channel, group_size, symmetric, skip, layers: see
        ``insert_quantizers``.
    equalize, relu6, reach, absorb: see ``equalize_graph`` and ``absorb_biases``.
    rounding: "adaround" with ``sweeps`` over each layer's weights, on ``rows`` rows of data;
        "gptq" on as many rows, also for weights in groups; or "nearest". A weight that several
        layers read is rounded to nearest; a head gets a weight of its own beside its embedding.
    correct_bias: take the mean error of each layer off its bias, where that lowers the layer's
        error behind its activation function; by default with "nearest".
    weight_range, activation_range: "min_max", "mse", "percentile", or a function. Activations also
        have "output": "mse", unless the next operators' outputs say that another range is better;
        a tensor for which their 8 bits or more are too few is named in a warning.
    checkpoint: a file that keeps the rounded layers, so that a stopped run goes on from there.
    progress: show a bar; by default on a terminal.

    Returns the network with quantizers, a plain torch.fx.GraphModule in simulation. With
    "adaround" or "gptq" it keeps two bytes more for each weight, see ``minq.ptq.before``.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, not {rounding!r}")
    if weight_range == "output":
        raise ValueError('weight_range is judged by no output; pass "mse", and rounding="adaround"')
    if calibration is None and example is None:
        raise ValueError("give calibration data, or an example of the input to work without data")
    if isinstance(model, nn.Module) and any(isinstance(m, Quantizer) for m in model.modules()):
        raise ValueError(
            "the network is quantized already: it has quantizers; give the full-precision model it "
            "was made from"
        )
    data = None if calibration is None else as_batches(calibration)
    gm = capture(model, example if data is None else data[0])
    batches = batches_of(gm, [example] if data is None else data)
    fold(gm)
    if equalize:
        channels.equalize_graph(gm, relu6=relu6, reach=reach)
        if absorb:
            channels.absorb_biases(gm)
    if rounding != "nearest":
        _part_from_embeddings(gm)
    insert_quantizers(
        gm,
        weights=weights,
        activations=activations,
        per_channel=per_channel,
        group_size=group_size,
        symmetric=symmetric,
        weight_estimator=weight_range,
        activation_estimator=activation_range,
        skip=skip,
        layers=layers,
    )
    set_weight_ranges(gm)
    if data is None:
        inputs = _input_moments(gm, batches[0], input_range)
        return calibrate_without_data(gm, inputs, correct_bias=correct_bias is not False)
    exact = {name: p.detach().clone() for name, p in gm.named_parameters()}
    return calibrate(
        gm,
        batches,
        exact,
        rounding=rounding,
        correct_bias=rounding == "nearest" if correct_bias is None else correct_bias,
        sweeps=sweeps,
        rows=rows,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )


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
            quantizer.observe()(graph.get(gm, node.args[0].target).detach())
            quantizer.freeze()
    return gm


def calibrate(
    gm: fx.GraphModule,
    batches: list[list[Any]],
    exact: Mapping[str, Tensor],
    *,
    rounding: str = "adaround",
    correct_bias: bool = False,
    sweeps: int = 20,
    rows: int = 4096,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> fx.GraphModule:
    """Round the weights, correct the biases and set the activations' ranges, in one walk.

    Each layer sees the inputs that the layers before it, already quantized, now give it. ``exact``
    has the parameters of the full-precision network. ``gm`` is changed and returned.
    """
    todo = len(weight_quantizers(gm))
    rows = check_count(rows, "rows")
    settings = {"rounding": rounding, "sweeps": sweeps, "rows": rows, "seed": seed}
    settings["correct_bias"] = correct_bias
    if checkpoint is not None:
        settings["network"] = fingerprint(gm.state_dict().values())
        settings["quantizers"] = fingerprint(map(_settings_of, quantizers(gm).values()))
        settings["data"] = fingerprint(v for batch in batches for v in batch)
    store = _Store(checkpoint, settings)
    walk = Walk(gm, batches, dict(exact))
    rough: dict[str, float] = {}
    with Bar(todo, "layers", progress) as bar:
        for node in walk:
            if is_quantizer(node):
                quality = _set_activation_range(gm, node, walk)
                if quality < readers.FEW and gm.get_submodule(node.target).bits >= 8:
                    name = node.target.rpartition(".")[0].removesuffix(".input")
                    rough[name] = quality
            elif graph.is_layer(node) and is_weight(graph.weight_node(node)):
                name = graph.parameter_of(graph.weight_node(node)).target
                alone = len(graph.weight_node(node).users) == 1
                if rounding != "nearest" and _has_rows(node) and alone:
                    if (rounded := store.get(name)) is None:
                        rounded = _rounded(gm, node, walk, rounding, sweeps, rows, seed)
                        store.put(name, rounded)
                    set_rounded_weight(gm, node, rounded)
                if correct_bias and graph.op(node) != "embedding":
                    _correct_bias(gm, node, walk)
                bar.update(name)
    if rough:
        warnings.warn(
            "one range is too coarse for "
            + ", ".join(f"{name} ({db:.0f} dB)" for name, db in rough.items())
            + ": the next operators, as layer norm, also look at values that are small beside its "
            f"largest; give more bits, layers={dict.fromkeys(rough, {'activations': 16})}",
            stacklevel=3,
        )
    return graph.tidy(gm)  # layers may have got a bias


def _set_activation_range(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> float:
    """From what the tensor is in the quantized network; the SQNR behind its readers, if known."""
    quantizer = gm.get_submodule(node.target)
    values = walk.quantized[node.args[0]]
    if quantizer.granularity.axis is None:
        sample = _sample(values, walk.lengths)
    else:  # every channel has extremes of its own
        sample = torch.cat([v.detach().flatten(0, -2) for v in values])
    quantizer.observe()(sample)
    quantizer.freeze()
    if not quantizer.by_output or quantizer.granularity.axis is not None:
        return math.inf
    return readers.choose_range(quantizer, sample, readers.readers_of(gm, node, walk))


def _sample(
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
            every = max(1, v.numel() * sum(lengths) // lengths[0] // most)
            while math.gcd(every, v.numel()) > 1:  # never in step with rows or channels
                every += 1
        picked.append(v[::every].clone())
        ends.append(torch.stack(torch.aminmax(v)))
    return torch.cat(picked + ends)


def _part_from_embeddings(gm: fx.GraphModule) -> None:
    """A table that one layer reads too (a tied head) is left alone when the layer is rounded.

    Its readers in front have been computed with it by then.
    """
    for node in list(graph.layers(gm).values()):
        readers = list(graph.weight_node(node).users)
        if _has_rows(node) and [u for u in readers if graph.op(u) != "embedding"] == [node]:
            graph.own_weight(gm, node)


def _has_rows(node: fx.Node) -> bool:
    return graph.op(node) in graph.CONVOLUTIONS | {"linear"}


def _rounded(gm, node, walk, rounding, sweeps, rows, seed) -> Tensor:
    """A layer's weight on its grid, by AdaRound or GPTQ."""
    quantizer = gm.get_submodule(graph.weight_node(node).target)
    inputs = graph.input_of(node)
    generator = torch.Generator().manual_seed(seed)  # the same, whichever layers are done already
    x, y = sample_rows(gm, node, walk.quantized[inputs], walk.exact[node], rows, generator)
    scale, zero_point = (v.detach() for v in quantizer.scale_zero_point())
    weight = graph.weight_of(gm, node)
    group = quantizer.granularity.group
    if rounding == "gptq":
        return gptq(weight, x, scale, zero_point, quantizer.grid, group=group)
    if group is not None:
        raise ValueError(
            f"{graph.layer_name(node)}: AdaRound takes one scale for each output, not groups; "
            'pass rounding="gptq" or "nearest"'
        )
    return adaround(
        weight,
        x,
        y,
        scale,
        zero_point,
        quantizer.grid,
        bias=graph.bias_of(gm, node),
        activation=_activation(gm, node, x.shape[0]),
        sweeps=sweeps,
    )


def _activation(gm: fx.GraphModule, node: fx.Node, groups: int) -> Callable | None:
    """The activation function that follows a layer, for rows (groups, rows, outputs / groups)."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if graph.op(user) not in graph.FUSED - {"prelu"}:
        return None
    if (bounds := graph.clip_bounds(user, -1 if graph.op(node) == "linear" else 1)) is not None:
        if all(v.ndim == 0 for v in bounds):
            low, high = map(float, bounds)
        else:
            low, high = (v.reshape(groups, 1, -1) if v.ndim else v for v in bounds)
        return lambda t: torch.clamp(t, low, high)
    if any(isinstance(a, fx.Node) for a in (*user.args[1:], *user.kwargs.values())):
        return None
    return lambda t: user.target(t, *user.args[1:], **user.kwargs)


def _correct_bias(gm: fx.GraphModule, node: fx.Node, walk: Walk) -> None:
    """b - (E[y_hat] - E[y]), eq. (30), from this layer's outputs in both networks.

    In those channels only where it lowers the squared error behind the activation function, on
    samples that the mean was not taken from; and if most places get closer to what they were. A
    mean that belongs to few samples, or to few tokens, would be noise for all others.
    """
    axis = -1 if graph.op(node) == "linear" else 1
    activation = _activation(gm, node, 1)
    function = activation and (lambda rows: activation(rows[None])[0])
    walk.advance(node)
    sums: list[Any] = [0.0, 0.0]
    counts = [0, 0]
    for half, y, y_hat in _halves(walk, node, axis):
        sums[half] = sums[half] + (y_hat - y).double().sum(0)
        counts[half] += len(y)
    if not all(counts):
        return  # one place alone: nothing is held out to judge by
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    change = [torch.zeros_like(mean) for mean in means]
    for half, y, y_hat in _halves(walk, node, axis):
        shift = means[1 - half].to(y)
        change[half] += bias_math.change_of_error(y, y_hat, shift, function).double().sum(0)
    helps = (change[0] < 0) & (change[1] < 0)
    shift = torch.where(helps, sum(sums) / sum(counts), 0)
    closer = 0
    for _, y, y_hat in _halves(walk, node, axis):
        here = bias_math.change_of_error(y, y_hat, shift.to(y), function).sum(1)
        closer += int((here < 0).sum()) - int((here > 0).sum())
    if closer <= 0:
        return
    shift = shift.to(y)
    set_corrected_bias(gm, node, bias_math.correct_bias(graph.bias_of(gm, node), shift))
    column = shift.reshape([-1] + [1] * (len(graph.shape_of(node)) - 2) if axis == 1 else [-1])
    walk.renew(node, lambda y_hat: y_hat - column)


def _halves(walk: Walk, node: fx.Node, axis: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(half, y, y_hat) with rows (places, channels): even samples and odd ones; of one, places."""
    alone, start = sum(walk.lengths) == 1, 0
    for pair in map(list, zip(walk.exact[node], walk.quantized[node], strict=True)):
        if alone:
            pair = [v.movedim(axis, -1).flatten(0, -2) for v in pair]
        for half in (0, 1):
            parts = [v[(start + half) % 2 :: 2] for v in pair]
            if len(parts[0]):
                y, y_hat = parts if alone else (v.movedim(axis, -1).flatten(0, -2) for v in parts)
                yield half, y, y_hat
        start += len(pair[0])


# --- A file to go on from -------------------------------------------------------------------------


def _settings_of(quantizer: Quantizer) -> str:
    return f"{quantizer} {_name(quantizer.estimate)} {quantizer.by_output}"


def _name(value: Any) -> str:
    """The same in every run: an estimator has no other name than its function's."""
    if isinstance(value, partial):
        return f"{_name(value.func)} { ({k: _name(v) for k, v in value.keywords.items()}) }"
    return getattr(value, "__qualname__", str(type(value))) if callable(value) else str(value)


class _Store:
    """Rounded layers in a file that is only ever replaced as a whole."""

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.state = {"settings": settings, "layers": {}}
        if self.path is not None and self.path.exists():
            state = torch.load(self.path, weights_only=True)
            if state.get("settings") != settings:
                raise ValueError(
                    f"{self.path} was made with {state.get('settings')}, now asked for {settings}; "
                    "give another file, or the same settings"
                )
            self.state = state

    def get(self, name: str) -> Tensor | None:
        return self.state["layers"].get(name)

    def put(self, name: str, value: Tensor) -> None:
        self.state["layers"][name] = value
        if self.path is not None:
            write_whole(self.path, lambda part: torch.save(self.state, part))
