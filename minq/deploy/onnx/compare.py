"""What ONNX Runtime computes, beside what the simulation does."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from minq.deploy.integer import simulation
from minq.deploy.onnx import engine, outputs
from minq.deploy.onnx.translate import batch_is_fixed, sample
from minq.graph.batches import batches_of
from minq.simulate import quantizers


@torch.no_grad()
def warn_if_different(gm: fx.GraphModule, path: Path, example: Any) -> None:
    """Warn where ONNX Runtime, as it comes, answers otherwise than the simulation.

    Ties that fall the other way move an output by as much as double precision does, give or take;
    in any case by less than quantization itself.
    """
    try:
        inputs = _inputs(gm, example)
        expected = _real(gm(*inputs))
        exact = _real(in_double(gm)(*(v.double() if _is_real(v) else v for v in inputs)))
        off = copy.deepcopy(gm)
        for quantizer in quantizers(off).values():
            quantizer.off()
        before = _real(off(*inputs))
    except Exception:  # a network need not take random numbers
        return
    options = engine.options_for(path.parent)
    options.intra_op_num_threads = 1
    session = engine.onnxruntime.InferenceSession(str(path), options, providers=engine.PROVIDERS)
    names = [value.name for value in session.get_outputs()]
    given = {v.name: x.numpy() for v, x in zip(session.get_inputs(), inputs, strict=True)}
    values = [torch.from_numpy(v) for v in session.run(None, given)]
    metadata = session.get_modelmeta().custom_metadata_map["minq.outputs"]
    name_of = pytree.tree_leaves(outputs.read(metadata, names))
    leaves = pytree.tree_leaves(outputs.read(metadata, values))
    for k, want in expected.items():
        found = _sqnr(exact[k], leaves[k])
        ties, cost = _sqnr(exact[k], want), _sqnr(before[k], want)
        if found < min(ties - 10, cost + 6, 60):
            warnings.warn(
                f"ONNX Runtime does not compute what the simulation does: its {name_of[k]} from "
                f"{path.name} has {found:.1f} dB of SQNR towards it, where quantization itself has "
                f"{cost:.1f} dB; load(path, fuse=False) computes without the engine's integer "
                "kernels, and skip= keeps a layer out of them",
                stacklevel=3,
            )


def in_double(gm: fx.GraphModule) -> fx.GraphModule:
    """The simulation, with its biases on their grid where 32 bits hold them."""
    try:
        return simulation(gm)
    except (TypeError, ValueError):
        return copy.deepcopy(gm).double()


def _inputs(gm: fx.GraphModule, example: Any) -> list[Tensor]:
    """A few samples of the example; without one, numbers from all over the input's range."""
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if example is not None:
        (batch,) = batches_of(gm, [example])
        return [x if batch_is_fixed(n) else x[:8] for n, x in zip(nodes, batch, strict=True)]
    generator, values = torch.Generator().manual_seed(0), []
    for node in nodes:
        x = sample(node)
        grids = [quantizers(gm).get(str(user.target)) for user in node.users]
        grid = next((q for q in grids if q is not None), None)
        if not x.is_floating_point():
            values.append(torch.ones_like(x))
        elif grid is None or grid.granularity.axis is not None:
            values.append(torch.randn(x.shape, generator=generator))
        else:
            scale, zero_point = grid.scale_zero_point()
            share = torch.rand(x.shape, generator=generator)
            low, high = grid.grid.limits(scale.detach(), zero_point.detach())
            values.append(low + share * (high - low))
    return values


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _real(tree: Any) -> dict[int, Tensor]:
    """The real tensors of an answer, by their place among its leaves."""
    return {k: v for k, v in enumerate(pytree.tree_leaves(tree)) if _is_real(v) and v.numel()}


def _sqnr(signal: Tensor, other: Tensor) -> float:
    """10 log10(sum x^2 / sum (x - y)^2) of all that is finite in x."""
    x, y = (v.double()[signal.isfinite()] for v in (signal, other))
    noise = float((x - y).square().sum())
    return 10 * math.log10(max(float(x.square().sum()), 1e-300) / noise) if noise else math.inf
