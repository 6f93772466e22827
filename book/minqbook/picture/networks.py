"""Three networks as files in three formats, with a list of the tensors that can be looked into.

A page runs them with onnxruntime-web. The weights of the INT4 files have 4 bits each and are
widened to 8 by a Cast when the file is loaded, so the kernels, and the activations, are INT8.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, fx

import minq
from minq.deploy.onnx.store import INTEGERS
from minq.simulate import activation_quantizers
from minqbook import zoo

BITS = {"fp32": None, "int8": 8, "int4": 4}
"""Bits of the weights in each format; the activations of a quantized network have 8."""


@dataclass(frozen=True)
class Network:
    """What it takes, in pixels: a square of ``size``, the ``middle`` part of a picture's shorter
    side, as (pixel - mean) / std."""

    title: str
    kind: str
    size: int
    middle: float
    mean: float
    std: float
    calibration: int


_DIGITS: dict[str, Any] = dict(
    kind="digit", size=32, middle=1.0, mean=127.5, std=63.75, calibration=256
)
NETWORKS = {
    "resnet_basic": Network(title="ResNet", **_DIGITS),
    "mobilenet_v2": Network(title="MobileNet", **_DIGITS),
    "efficientnet_lite0": Network(
        "EfficientNet-Lite0", "photo", size=224, middle=7 / 8, mean=127, std=128, calibration=16
    ),
}


def classes(kind: str) -> list[str]:
    """The names of the classes."""
    if kind == "digit":
        return [str(digit) for digit in range(10)]
    from torchvision.models import EfficientNet_B0_Weights

    return EfficientNet_B0_Weights.DEFAULT.meta["categories"]


def prepared(pixels: np.ndarray, network: Network) -> np.ndarray:
    """(N, size, size, 3), uint8, as the network takes it: (N, 3, size, size), float32."""
    planes = np.moveaxis(pixels, -1, 1).astype(np.float32)
    return (planes - np.float32(network.mean)) / np.float32(network.std)


@torch.no_grad()
def in_forms(name: str, forms: Sequence[str] = tuple(BITS)) -> dict[str, fx.GraphModule]:
    """One of ``NETWORKS`` with folded batch norms, quantized as ``BITS`` says.

    Nearest rounding, a scale per channel, and layers left as they were trained: then each tensor
    can be compared with the same one in FP32.
    """
    count = NETWORKS[name].calibration
    if name == "efficientnet_lite0":
        model, calibration = zoo.efficientnet_lite0_model(), zoo.photo_crops(count)
    else:
        model, calibration = zoo.load(name), zoo.calibration_set(name, count)
    floating = minq.fold_batch_norms(minq.capture(model, calibration[:2]))
    settings: dict[str, Any] = dict(activations=8, rounding="nearest", per_channel=True)
    settings |= dict(equalize=False, progress=False)
    return {
        form: minq.ptq(floating, calibration, weights=BITS[form], **settings)
        if BITS[form]
        else floating
        for form in forms
    }


def make(name: str, folder: Path) -> None:
    """Write ``name``.fp32.onnx, .int8.onnx, .int4.onnx, and ``name``.json, what a page must know.

    That is: how to prepare a picture, the classes, and under ``sites`` the tensors between layers,
    each with the value that holds it in the FP32 file, and in the others the value that holds its
    integers, their scale and their zero-point. Under ``looks``, for each form, what makes a file
    that also gives these: appended to its bytes, it is read as further outputs.
    """
    network, made = NETWORKS[name], in_forms(name)
    paths = {form: minq.to_onnx(made[form], folder / f"{name}.{form}.onnx") for form in made}
    sites = {form: _integers(paths[form]) for form in made if BITS[form]}
    floats = _floats(made["fp32"], made["int8"], paths["fp32"], network)
    found: list[dict[str, Any]] = [
        {"name": readable(site), "fp32": floats[site], **{f: sites[f][site] for f in sites}}
        for site in sites["int8"]
    ]
    looks = {form: [site[form]["value"] for site in found] for form in sites}
    looks["fp32"] = [site["fp32"] for site in found if site["fp32"] not in ("x", "output")]
    info = asdict(network) | {
        "classes": classes(network.kind),
        "bytes": {form: path.stat().st_size for form, path in paths.items()},
        "sites": found,
        "looks": {f: base64.b64encode(further_outputs(v)).decode() for f, v in looks.items()},
    }
    (folder / f"{name}.json").write_text(json.dumps(info), "utf-8")


def readable(quantizer: str) -> str:
    """A site as a reader meets it.

    >>> readable("blocks.3.depthwise.2.quantizer"), readable("x.quantizer")
    ('block 3, depthwise', 'the picture')
    """
    name = quantizer.removesuffix(".quantizer")
    if name in ("x", "mean", "classifier"):
        return {"x": "the picture", "mean": "average", "classifier": "the answer"}[name]
    first, *rest = name.split(".")
    if first != "blocks":
        return first
    number, *parts = rest
    kind = {"body": f"layer {int(parts[1]) + 1}" if parts[1:] else "", "relu": "sum", "add": "sum"}
    return f"block {number}, {kind.get(parts[0], parts[0])}"


def further_outputs(values: list[str]) -> bytes:
    """Bytes that, behind an ONNX file, make these values outputs: protobuf merges what it reads
    twice.

    >>> further_outputs(["a"])
    b':\\x05b\\x03\\n\\x01a'
    """
    outputs = [onnx.ValueInfoProto(name=value) for value in dict.fromkeys(values)]
    return onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString()


def _integers(path: Path) -> dict[str, dict[str, Any]]:
    """Each quantizer of activations: the value with its integers, their scale and zero-point."""
    graph = onnx.load(path).graph
    constants = {t.name: t for t in graph.initializer}
    made_by = {value: node for node in graph.node for value in node.output}
    found = {}
    for value in made_by:
        name, mark, _ = value.rpartition(INTEGERS)
        node = made_by[value]
        while mark and node.op_type != "QuantizeLinear":  # a clamp behind it
            node = made_by[node.input[0]]
        if mark:
            scale, zero = (onnx.numpy_helper.to_array(constants[v]) for v in node.input[1:3])
            found[name] = {"value": value, "scale": float(scale), "zero": int(zero)}
    return found


def _floats(
    floating: fx.GraphModule, q: fx.GraphModule, path: Path, network: Network
) -> dict[str, str]:
    """In the FP32 file, the value that each quantizer of activations rounds.

    Exporting gives new names, so values are recognised by what they hold.
    """
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (1, 3, network.size, network.size)).astype(np.float32)
    names = [value for node in onnx.load(path).graph.node for value in node.output]
    content = path.read_bytes() + further_outputs([n for n in names if n != "output"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    held = dict(zip(names, session.run(names, {"x": x}), strict=True)) | {"x": x}
    found = {}
    for site, wanted in _unrounded(floating, q, torch.from_numpy(x)).items():
        same = {name: v for name, v in held.items() if v.shape == wanted.shape}
        best = max(same, key=lambda name: minq.sqnr(wanted, same[name]))
        if minq.sqnr(wanted, same[best]) < 60:
            raise ValueError(f"no value of {path.name} is what {site} rounds")
        found[site] = best
    return found


class _Remembering(fx.Interpreter):
    """Runs a graph and keeps the value of each node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        self.values[node.name] = super().run_node(node)
        return self.values[node.name]


@torch.no_grad()
def _unrounded(floating: fx.GraphModule, q: fx.GraphModule, x: Tensor) -> dict[str, np.ndarray]:
    """What each quantizer of activations would round if no other rounded: the float network's."""
    run, known = _Remembering(floating), activation_quantizers(q)
    run.run(x)
    return {
        str(node.target): run.values[node.args[0].name].numpy()
        for node in q.graph.nodes
        if node.op == "call_module" and node.target in known
    }
