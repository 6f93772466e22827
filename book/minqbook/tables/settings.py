"""What the tables have in common: bits and methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minq.graph.batches import flatten_outputs
from minq.ptq.rounding import Nearest
from minqbook.tables.counts import CONFIGURATIONS


def bits_of(cell: dict[str, Any]) -> dict[str, Any]:
    """The arguments that "W4A8" stands for; "FP32" for none."""
    weights, activations = (CONFIGURATIONS | {"FP32": (None, None)})[cell["bits"]]
    return {"weights": weights, "activations": activations}


NAIVE = {
    "equalize": False,
    "rounding": Nearest(correct_bias=False),
    "weight_range": "min_max",
    "activation_range": "min_max",
}
MSE = {"activation_range": "mse"}  # one rule for all: the tables compare the steps, not the rules
METHODS: dict[str, dict[str, Any]] = {"naive": NAIVE, "pipeline": MSE}


def run(model: nn.Module, x: Tensor, batch: int = 125) -> Any:
    """The model's answers to many inputs, a batch at a time."""
    with torch.no_grad():
        return torch.cat([flatten_outputs(model(b)) for b in x.split(batch)])
