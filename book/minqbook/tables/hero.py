"""EfficientNet-Lite0: what each step of the pipeline is worth; the best settings."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import Any

from torch import Tensor, nn

from minq.affine import sqnr
from minq.export import capture
from minq.ptq.pipeline import ptq
from minq.ptq.rounding import AdaRound, Nearest
from minqbook import zoo
from minqbook.tables.counts import (
    BEST_CALIBRATION,
    BEST_TEST,
    HERO_CALIBRATION,
    HERO_TEST,
)
from minqbook.tables.settings import bits_of, run

HERO_STEPS = {
    "equalize": (False, True),
    "ranges": ("min_max", "mse"),
    "rounding": ("nearest", "corrected", "adaround"),
    "per_channel": (False, True),
    "bits": ("W8A8", "W4A8"),
}
ROUNDINGS = {
    "nearest": Nearest(correct_bias=False),
    "corrected": Nearest(),
    "adaround": AdaRound(sweeps=10),
}


def hero_cells() -> Iterator[dict[str, Any]]:
    """Every combination of the pipeline's steps, but min-max ranges only with nearest rounding."""
    for values in product(*HERO_STEPS.values()):
        cell = dict(zip(HERO_STEPS, values, strict=True))
        if cell["ranges"] == "mse" or cell["rounding"] == "nearest":
            yield cell


def hero_cell(cell: dict[str, Any]) -> dict[str, float]:
    """One combination on EfficientNet-Lite0: against FP32 on photo crops, and on 20 labels."""
    q = ptq(
        _hero(),
        zoo.photo_crops(HERO_CALIBRATION, split="calibration").split(16),
        **bits_of(cell),
        per_channel=cell["per_channel"],
        equalize=cell["equalize"],
        weight_range=cell["ranges"],
        activation_range=cell["ranges"],
        rounding=ROUNDINGS[cell["rounding"]],
        progress=False,
    )
    return against_fp32(q, HERO_TEST)


BEST: dict[str, dict[str, Any]] = {
    "W8A8 per tensor": {"weights": 8},
    "W8A8 per channel": {"weights": 8, "per_channel": True, "equalize": False},
    "W4A8 per channel": {"weights": 4, "per_channel": True, "equalize": False},
}


def best_cells() -> Iterator[dict[str, Any]]:
    """The settings that did best, with more data to calibrate on and to test on."""
    yield from ({"setting": setting} for setting in BEST)


def best_cell(cell: dict[str, Any]) -> dict[str, float]:
    """One of them, on 500 crops."""
    calibration = zoo.photo_crops(BEST_CALIBRATION, split="calibration").split(16)
    rounding = AdaRound(sweeps=30, rows=8192)
    q = ptq(_hero(), calibration, rounding=rounding, progress=False, **BEST[cell["setting"]])
    return against_fp32(q, BEST_TEST)


@functools.cache
def _hero() -> nn.Module:
    return capture(zoo.efficientnet_lite0_model(), zoo.photo_crops(2))


@functools.cache
def _hero_answers(crops: int) -> tuple[Tensor, ...]:
    """Test crops, labelled images, their labels, and what the network says to both."""
    x, (images, labels) = zoo.photo_crops(crops, split="test"), zoo.imagenet_samples()
    return x, images, labels, run(_hero(), x, 25), run(_hero(), images)


def against_fp32(q: nn.Module, crops: int) -> dict[str, float]:
    """How far a quantized EfficientNet-Lite0 is from the full-precision one."""
    x, images, labels, exact, answers = _hero_answers(crops)
    quantized = run(q, x, 25)
    same = exact.view(crops, -1).argmax(1) == quantized.view(crops, -1).argmax(1)
    before, after = (y.view(len(labels), -1).argmax(1) == labels for y in (answers, run(q, images)))
    return {
        "sqnr": round(sqnr(exact, quantized), 3),
        "agreement": round(100 * float(same.float().mean()), 2),
        "labels": int(after.sum()),
        "kept": int((before & after).sum()),
        "labels_fp32": int(before.sum()),
    }
