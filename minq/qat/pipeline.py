"""The standard pipeline of quantization-aware training, figure 11 of the paper.

    equalize layers, insert quantizers, set their ranges     as in post-training quantization
    make ranges trainable, decide about batch norm           ``prepare``
    train                                                    ``qat``, or any loop of one's own
    fold batch norms, fix the ranges                         ``finish``

``qat`` is these steps in this order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from minq import graph
from minq._checks import check_count
from minq._work import Bar
from minq.export import outside
from minq.ptq.pipeline import Equalize, ptq
from minq.ptq.rounding import Nearest, Rounding
from minq.qat import batchnorm
from minq.qat.batchnorm import BatchNorm, as_batch_norm
from minq.qat.run import (
    Checkpoint,
    Run,
    average_statistics,
    rank,
    same_random_numbers,
    share_gradients,
)
from minq.quantizer import Quantizer
from minq.scheme import Scheme
from minq.straight_through import clamp

Loss = Callable[[Any, Any], Tensor]


@outside()
def prepare(
    model: nn.Module,
    calibration: Any,
    *,
    scheme: Scheme | None = None,
    rounding: str | Rounding = Nearest(correct_bias=False),  # noqa: B008 (it is a value)
    equalize: bool | Equalize = True,
    batch_norm: str | BatchNorm = "fold",
    learn_ranges: bool = True,
    logarithmic: bool = True,
    normalize: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> fx.GraphModule:
    """A quantized network that can be trained, with any PyTorch optimizer and loop.

    Args:
        model, calibration: as for ``minq.ptq``, which sets the ranges that training starts from.
        scheme, settings: a ``minq.Scheme``, or its fields one by one.
        rounding, equalize, progress: see ``minq.ptq``.
        batch_norm: ``Fold()``, ``Dynamic()`` or ``Keep()`` of ``minq.qat``, or "fold", "dynamic"
            or "keep".
        learn_ranges: train scales and zero-points with the weights; otherwise they stay as
            calibrated.
        logarithmic, normalize: how scales are trained, see ``Quantizer.learn``.

    Returns:
        A torch.fx.GraphModule in training mode. ``finish`` makes it a network to deploy.

    Raises:
        TypeError, ValueError: as ``minq.ptq``, and for batch norms that are kept behind a layer
            with one scale for all channels.
    """
    batch_norm = as_batch_norm(batch_norm)
    gm = ptq(
        model,
        calibration,
        scheme=Scheme.made(scheme, settings),
        rounding=rounding,
        equalize=equalize,
        progress=progress,
    )
    graph.note_network(gm, trained=True, added={})  # from now on the weights go where they like
    for parameter in gm.parameters():  # a fixed layer of the model trains here too
        parameter.requires_grad_(parameter.is_floating_point())
    for quantizer in all_quantizers(gm):
        quantizer.freeze()
        if learn_ranges:
            quantizer.learn(logarithmic=logarithmic, normalize=normalize)
    batch_norm.restore(gm)
    _exchange(gm, torch.ops.aten.clamp.Tensor, clamp)
    return gm.train()


@outside()
def finish(gm: fx.GraphModule) -> fx.GraphModule:
    """Fold the batch norms that are left and fix the ranges; ``gm`` is changed and returned.

    It is then what ``minq.ptq`` returns: a network of layers and quantizers in eval mode.
    """
    for quantizer in all_quantizers(gm):
        quantizer.forget_training()
    gm.eval()
    _exchange(gm, clamp, torch.ops.aten.clamp.Tensor)
    return batchnorm.remove(gm)


def _exchange(gm: fx.GraphModule, old: Callable, new: Callable) -> None:
    """Call one function in place of another that clamps a tensor between two constants."""
    constants = {name for name, _ in gm.named_buffers()}
    for node in gm.graph.nodes:
        if node.target == old and len(node.args) == 3 and graph.clip_bounds(node) is not None:
            if all(getattr(a, "target", None) in constants for a in node.args[1:]):
                node.target = new
    gm.recompile()


def parameter_groups(
    gm: nn.Module, lr: float, range_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameters for an optimizer: weights, scales, and zero-points by the bits of their grid.

    Args:
        lr: learning rate of the weights.
        range_lr: of the scales' logarithms, by default ``lr``; a zero-point moves on a grid of
            p - n steps, so its learning rate is that many times higher.
        weight_decay: of weights only.

    Returns:
        What ``torch.optim`` takes: {"params", "lr", "weight_decay"} for each group that trains.
    """
    range_lr = lr if range_lr is None else range_lr
    mine, scales, zero_points = set(), [], {}
    for q in all_quantizers(gm):
        scales.append(q.scale if q.log2_scale is None else q.log2_scale)
        zero_points.setdefault(q.grid.steps, []).append(q.zero_point)
        mine |= {id(q.scale), id(q.zero_point), id(q.log2_scale)}
    weights = [p for p in gm.parameters() if id(p) not in mine]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": lr, "weight_decay": weight_decay}]
    groups.append({"params": scales, "lr": range_lr, "weight_decay": 0.0})
    for steps, params in zero_points.items():
        groups.append({"params": params, "lr": steps * range_lr, "weight_decay": 0.0})
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    return [group for group in groups if group["params"]]


def all_quantizers(gm: nn.Module) -> Iterator[Quantizer]:
    """Those in the graph, and those within layers that keep their batch norm while they train."""
    return (m for m in gm.modules() if isinstance(m, Quantizer))


def qat(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    range_lr: float | None = None,
    optimizer: Callable[[list[dict]], torch.optim.Optimizer] = torch.optim.Adam,
    clip: float | None = 5.0,
    callback: Callable[[int, float, fx.GraphModule], None] | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> fx.GraphModule:
    """Train a network with quantization in the loop.

    In a process group (``torchrun``) the network is wrapped in DistributedDataParallel: give each
    process its share of the data, by a DistributedSampler; the first one calibrates for all. Batch
    norms take the statistics of each share, and end with their mean.

    Args:
        model: a trained nn.Module; it is left as it was.
        loader: batches with a length, such as a DataLoader: (inputs ..., target), or a dict with
            the target under "labels".
        loss: ``loss(outputs, target)``, a tensor.
        epochs: passes over the loader.
        lr, range_lr: learning rates, see ``parameter_groups``. They fall to 0 along a cosine.
        optimizer: what makes one of these groups, e.g. ``partial(torch.optim.SGD, momentum=0.9)``.
        clip: the largest norm of the gradient.
        callback: called after every step with its number, the loss and the network.
        checkpoint: a file that keeps all there is to keep, at every epoch's end, or a
            ``Checkpoint`` to keep it more often. A stopped training goes on from it, and ends with
            the same bits on the same machine.
        progress: show a bar; by default on a terminal.
        settings: of ``prepare``: weights, activations, per_channel, layers, batch_norm, ...; and
            calibration, by default the inputs of the first batches, up to 256 samples.

    Returns:
        The network as ``finish`` leaves it.

    Raises:
        RuntimeError: the loss is not finite.
        TypeError, ValueError: as ``prepare``, and for a loader without a length.
    """
    steps = check_count(epochs, "epochs") * _length(loader)
    if settings.get("calibration") is None:
        settings["calibration"] = _first_samples(loader, 256)
    batch_norm = settings["batch_norm"] = as_batch_norm(settings.get("batch_norm", "fold"))
    gm = prepare(model, progress=False, **settings)
    groups = parameter_groups(gm, lr, range_lr)
    if not groups:
        raise ValueError("the network has nothing to train")
    made = optimizer(groups)
    highest = [group["lr"] for group in made.param_groups]
    net = share_gradients(gm)  # before a checkpoint is looked for: now all processes start alike
    run = Run(gm, made, loader, steps, checkpoint)
    with Bar(steps, "steps", progress if rank() == 0 else False, run.step) as bar:
        for batch in run.batches(epochs):
            inputs, target = split_batch(gm, batch)
            for group, top in zip(made.param_groups, highest, strict=True):
                group["lr"] = top * (1 + math.cos(math.pi * run.step / steps)) / 2
            made.zero_grad(set_to_none=True)
            value = loss(net(*inputs), target)
            value.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(gm.parameters(), clip)
            made.step()
            number = value.item()
            if not math.isfinite(number):
                raise RuntimeError(
                    f"the loss is {number} in step {run.step}; try a lower lr= or range_lr="
                )
            if callback is not None:
                callback(run.step, number, gm)
                if not gm.training:
                    gm.train()
            bar.update(f"loss {number:.3f}")
            run.done()
    if count := batch_norm.reestimate:
        batchnorm.reestimate(gm, (split_batch(gm, b)[0] for b in islice(loader, count)))
    average_statistics(gm)
    return finish(gm)


# --- Batches --------------------------------------------------------------------------------------


def split_batch(gm: fx.GraphModule, batch: Any) -> tuple[tuple, Any]:
    """The inputs of a network, and the target, on the network's device."""
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ValueError(f'a batch needs its target under "labels", not only {list(batch)}')
        values, notes = [v for k, v in batch.items() if k != "labels"], graph.network_notes(gm)
        if notes.keys:
            values = [{k: batch[k] for k in notes.keys}]
        elif notes.keywords:
            values = [batch[k] for k in notes.keywords]
        inputs, target = tuple(values), batch["labels"]
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        arguments = graph.network_notes(gm).arguments
        taken = len(batch) - 1 if arguments is None else min(arguments, len(batch) - 1)
        inputs, target = tuple(batch[:taken]), batch[-1]
    else:
        raise TypeError(
            "a batch must be (inputs ..., target), or a dict with the target under "
            f'"labels", not {type(batch).__name__}'
        )
    return graph.to_device_of(gm, (inputs, target))


def _length(loader: Any) -> int:
    try:
        length = len(loader)
    except TypeError:
        raise TypeError(
            "the loader must have a length, so that the learning rate can fall to 0 at its end; "
            "give a DataLoader or a list of batches"
        ) from None
    if not length:
        raise ValueError("the loader is empty; at least one batch is needed")
    return length


def _first_samples(loader: Iterable[Any], most: int) -> list[Any]:
    """Batches without their targets, until there are enough samples."""
    batches, samples = [], 0
    with same_random_numbers():
        for batch in loader:
            if isinstance(batch, Mapping):
                batch = {k: v for k, v in batch.items() if k != "labels"}
            elif isinstance(batch, (tuple, list)):
                batch = tuple(batch[:-1])
            leaves = torch.utils._pytree.tree_leaves(batch)
            if not (tensors := [v for v in leaves if isinstance(v, Tensor)]):
                raise TypeError("a batch must be (inputs ..., target); this one has no inputs")
            batches.append(batch)
            samples += len(tensors[0])
            if samples >= most:
                break
    return batches
