"""What the lab is given: a network, pictures, a convolution; and ``keep`` for what is written.

All arrays are NumPy's, in double precision. Nothing here rests on minq, and but for the speed of
``conv`` nothing on PyTorch.
"""

from __future__ import annotations

import base64
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minqbook.lab.kept import keep

__all__ = ["Layer", "accuracy", "conv", "keep", "network", "pictures", "rows", "tensors"]

FILE = Path(__file__).with_name("given.json")
GREYS = "abcdefghijklmnopq"
"""Sixteen steps from black to white, a letter each."""
EPSILON = 1e-5
"""What batch norm adds to a variance."""

Array = np.ndarray


@dataclass(frozen=True)
class Layer:
    """A convolution, its batch norm, if it has one, and ReLU, if it has one.

    weight: (outputs, inputs, kernel, kernel). bias: (outputs,). norm: gamma, beta, mean and
    variance, (outputs,) each, or None.
    """

    weight: Array
    bias: Array
    stride: int = 1
    padding: int = 0
    relu: bool = True
    norm: tuple[Array, Array, Array, Array] | None = None

    def finish(self, y: Array) -> Array:
        """What follows the convolution, on (pictures, outputs, height, width)."""
        if self.norm is not None:
            gamma, beta, mean, variance = (v[:, None, None] for v in self.norm)
            y = gamma * (y - mean) / np.sqrt(variance + EPSILON) + beta
        return np.maximum(y, 0) if self.relu else y


@functools.cache
def _given() -> dict:
    return json.loads(FILE.read_text("utf-8"))


def _numbers(kept: dict) -> Array:
    data = np.frombuffer(base64.b64decode(kept["data"]), "<f4")
    return data.reshape(kept["shape"]).astype(np.float64)


def network() -> list[Layer]:
    """The trained network: 8 x 8 pixels to ten scores, four layers.

    >>> [layer.weight.shape for layer in network()]
    [(8, 1, 3, 3), (16, 8, 3, 3), (24, 16, 3, 3), (10, 24, 2, 2)]
    """
    layers = []
    for part in _given()["layers"]:
        weight, norm = _numbers(part["weight"]), part.get("norm")
        bias = _numbers(part["bias"]) if "bias" in part else np.zeros(len(weight))
        norm = norm and tuple(map(_numbers, norm))
        layers.append(Layer(weight, bias, part["stride"], part["padding"], bool(norm), norm))
    return layers


def pictures(split: str = "test") -> tuple[Array, Array]:
    """Digits, (count, 1, 8, 8) from 0 to 1, and what they say, (count,).

    Args:
        split: "train" has 500, to set ranges by and to train on; "test" has 400 others.

    >>> [x.shape for x in pictures("test")]
    [(400, 1, 8, 8), (400,)]
    """
    found = _given()[split]
    images = [[GREYS.index(letter) for letter in row] for row in found["images"]]
    return np.array(images).reshape(-1, 1, 8, 8) / 16, np.array([int(c) for c in found["digits"]])


def conv(x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0):
    """A convolution: PyTorch's where it is there, else NumPy's.

    Args:
        x: (pictures, inputs, height, width).
        weight: (outputs, inputs, kernel, kernel).
        bias: (outputs,), by default 0.
        stride: how far the kernel moves.
        padding: zeros on each side.

    Returns:
        (pictures, outputs, height, width), in double precision.

    >>> conv(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), padding=1)[0, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    x, weight = (np.ascontiguousarray(v, dtype=np.float64) for v in (x, weight))
    try:
        import torch
    except ImportError:
        y = _patches(x, weight.shape[-1], stride, padding) @ weight.reshape(len(weight), -1).T
        return np.moveaxis(y, -1, 1) + (0 if bias is None else bias[:, None, None])
    given = [torch.from_numpy(x), torch.from_numpy(weight)]
    given.append(None if bias is None else torch.from_numpy(np.array(bias, dtype=np.float64)))
    return torch.nn.functional.conv2d(*given, stride=stride, padding=padding).numpy()


def _patches(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """What the kernel sees at each place: (pictures, height, width, inputs * kernel * kernel)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    windows = np.moveaxis(windows[:, :, ::stride, ::stride], 1, 3)
    return windows.reshape(*windows.shape[:3], -1)


def rows(x: Array, layer: Layer) -> Array:
    """What a layer reads at each place of each picture: (places, inputs * kernel * kernel).

    With it the convolution is a matrix product, ``rows(x, layer) @ w.reshape(outputs, -1).T``.

    >>> rows(np.ones((2, 1, 8, 8)), network()[0]).shape
    (128, 9)
    """
    found = _patches(x, layer.weight.shape[-1], layer.stride, layer.padding)
    return found.reshape(-1, found.shape[-1])


def tensors(x: Array, layers: list[Layer]) -> dict[str, Array]:
    """All tensors of the network in full precision, by name, in the order of computation.

    The names: "input"; "weight 0", "output 0" for the first layer; "weight 1", ...

    >>> list(tensors(pictures()[0], network()))[:4]
    ['input', 'weight 0', 'output 0', 'weight 1']
    """
    found = {"input": x}
    for k, layer in enumerate(layers):
        x = layer.finish(conv(x, layer.weight, layer.bias, layer.stride, layer.padding))
        found |= {f"weight {k}": layer.weight, f"output {k}": x}
    return found


def accuracy(scores: Array, digits: Array) -> float:
    """How many are right, in per cent.

    Args:
        scores: (pictures, 10) or (pictures, 10, 1, 1).
        digits: (pictures,).

    >>> accuracy(np.eye(10)[:4], np.array([0, 1, 2, 9]))
    75.0
    """
    return float(100 * (scores.reshape(len(digits), -1).argmax(1) == digits).mean())
