"""From the first layer to the last, rounding each to what it reads: the glue of steps 5 and 7."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from minqbook.lab import Layer, conv, mine, rows, tensors

Grid = tuple[float, int, int, int]


def round_network(
    x: np.ndarray,
    layers: list[Layer],
    weight_bits: int,
    activation_bits: int = 8,
    rounding: Callable[..., np.ndarray] | None = None,
) -> tuple[list[Layer], dict[str, Grid]]:
    """The network with rounded weights, and the grids of all its tensors, from some pictures.

    Each layer is rounded to what it reads in the network whose earlier layers are rounded already,
    and to what it should give: the output that it has in full precision, eq. (35). Weights get the
    range of ``mse_range``, activations that of ``min_max``.

    Args:
        x: pictures, without labels.
        layers: the network, its batch norms folded.
        weight_bits: of all weights.
        activation_bits: of all activations.
        rounding: ``adaround``, yours or another; by default to nearest.

    Returns:
        The layers and the grids by name, as ``simulate`` takes them.
    """
    exact = [x, *(v for k, v in tensors(x, layers).items() if k.startswith("output"))]
    grids, rounded = {}, []

    def on_grid(name: str, t: np.ndarray) -> np.ndarray:
        grids[name] = mine.make_grid(*mine.min_max(t), activation_bits)
        return mine.fake_quantize(t, grids[name])

    x = on_grid("input", x)
    for k, layer in enumerate(layers):
        w = layer.weight
        grids[f"weight {k}"] = grid = mine.make_grid(*mine.mse_range(w, weight_bits, True),
                                                     weight_bits, True)  # fmt: skip
        geometry: Any = (layer.stride, layer.padding)
        if rounding is None:
            w = mine.fake_quantize(w, grid)
        else:
            y = np.moveaxis(conv(exact[k], w, layer.bias, *geometry), 1, -1)
            task = w.reshape(len(w), -1), rows(x, layer), y.reshape(-1, len(w))
            w = rounding(*task, grid, layer.bias, layer.relu).reshape(w.shape)
        rounded.append(replace(layer, weight=w))
        x = on_grid(f"output {k}", layer.finish(conv(x, w, layer.bias, *geometry)))
    return rounded, grids
