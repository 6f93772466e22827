"""From a network to a file; see ``minq.deploy.onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

import minq
from minq import graph
from minq.deploy.biases import warn_of_coarse
from minq.deploy.onnx import compare, engine, qdq, sealed
from minq.deploy.onnx.translate import translate
from minq.export import capture, outside, unwrapped
from minq.quantizer import Quantizer
from minq.simulate import quantizers, weight_quantizers


@outside()
def to_onnx(q: nn.Module, path: str | Path, example: Any = None) -> Path:
    """Write a network as an ONNX file, whole or not at all.

    The batch size stays free. Types are those that engines have kernels for, and sum exactly on
    every processor: UINT8, where a signed grid stands 128 higher, with its zero-point, and INT8 for
    weights of 5 to 7 bits. Weights of up to 4 bits are stored in INT4 and widened by a Cast when
    the file is loaded. Grids of 9 to 16 bits become INT16 or UINT16, with which ONNX Runtime
    computes in float, as it does with weights that have one scale for each group; no optimizer
    rounds what stays in float. Where INT32 cannot hold a bias, the weights of its layer, which are
    next to nothing, get wider steps, as in ``to_integer``.

    A network whose path depends on the sizes of its inputs was captured for some of them: the
    file's metadata says which, "minq.sizes": "x.shape[0] > 4". Engines do not read it.

    A network of more than 2 GB, the most that one ONNX file can hold, has its constants in a second
    file beside it, ``<name>.<digest>.data``; the two are moved together.

    Where ONNX Runtime is installed, it then runs the file with its default settings, on ``example``
    or on random numbers within the input's range. A warning says by how many dB an output is off,
    if that is more than ties and precision explain.

    Args:
        q: what ``minq.ptq`` or ``minq.qat`` return, or any network without quantizers, which gives
            the float file to compare with. Everything must be float32, every quantizer frozen.
        path: where the file goes.
        example: what the network is called with; needed where ``q`` was not captured.

    Returns:
        The path.

    Raises:
        ValueError: for a quantizer that is not frozen, activations in groups, numbers that are not
            float32, an operator without ONNX translation, and an output that is not a tensor,
            number, word or None.
    """
    gm = _captured(q, example)
    weights = set(weight_quantizers(gm))
    for name, quantizer in quantizers(gm).items():
        _check(name, quantizer, name in weights)
    model = translate(gm)
    qdq.Rewriting(model, quantizers(gm), weights).run()
    model.producer_name, model.producer_version = "minq", minq.__version__
    path = Path(path)
    sealed.write(model, path)
    warn_of_coarse(gm)
    if engine.onnxruntime is not None:
        compare.warn_if_different(gm, path, example)
    return path


def _captured(q: Any, example: Any) -> fx.GraphModule:
    """A copy of the network's graph."""
    q = unwrapped(q)
    if not isinstance(q, nn.Module):
        raise TypeError(f"q must be a torch.nn.Module, not {type(q).__name__}")
    if graph.is_captured(q):
        gm = graph.on_cpu(q)
    elif any(isinstance(module, Quantizer) for module in q.modules()):
        raise ValueError(
            "this network has quantizers but was not captured; give to_onnx what minq.ptq or "
            "minq.qat returned, or capture the network first and then quantize it"
        )
    elif example is None:
        raise ValueError("this network was not captured; pass example=, inputs to call it with")
    else:
        gm = graph.on_cpu(capture(q, example))
    for parameter in (*gm.parameters(), *gm.buffers()):
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f"the network has {parameter.dtype} values; call q.float() first")
    return gm


def _check(name: str, quantizer: Quantizer, weight: bool) -> None:
    if quantizer.stage not in ("frozen", "learn"):
        raise ValueError(
            f"quantizer {name} is not frozen but at stage {quantizer.stage!r}; calibrate the "
            "network first, as minq.ptq does, and freeze its quantizers"
        )
    if quantizer.dynamic:
        raise ValueError(
            f"quantizer {name} finds its ranges while it runs, which a file does not here; "
            "quantize without cache="
        )
    if quantizer.grid.real:
        raise ValueError(
            f"quantizer {name} has {quantizer.grid.real}, which DequantizeLinear has no place for; "
            'give weights bits, and weight_zero_point=None or "integer"'
        )
    group = quantizer.granularity.group
    if group is not None and not weight:
        raise ValueError(
            f"quantizer {name} has one scale for each group of {group} values, which "
            "only weights can have in a file"
        )
