"""The paper's table 10 on the small networks: QAT, and how its learning rates are chosen."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from minq.ptq.pipeline import ptq
from minq.ptq.rounding import AdaRound
from minq.qat.pipeline import qat
from minqbook import zoo
from minqbook.tables.counts import (
    BATCH,
    CALIBRATION,
    RANGE_RATE,
    RATE_STEPS,
    RATES,
    RATES_AT_8_BITS,
    STEPS,
)
from minqbook.tables.files import path_of, read
from minqbook.tables.settings import MSE, bits_of

QAT_STEPS = {"W8A8": 200, "W4A8": 400, "W4A4": 800}
CONTROL_STEPS = 400
QAT_SEEDS = (0, 1)


def trained(
    name: str, rate: float, seed: int = 0, steps: int = STEPS, **settings: Any
) -> nn.Module:
    """A small network after quantization-aware training; the seed draws all data."""
    model = zoo.load(name)
    if name != "text_encoder":
        model = model.to(memory_format=torch.channels_last)
    return qat(
        model,
        zoo.TrainingBatches(name, steps, BATCH, seed),
        zoo.loss_of(name),
        calibration=zoo.calibration_set(name, CALIBRATION, seed=seed),
        lr=rate,
        range_lr=RANGE_RATE,
        progress=False,
        **MSE | settings,
    )


@functools.cache
def labelled(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Inputs and answers of "validation" or "test"."""
    return (zoo.validation_set if split == "validation" else zoo.test_set)(name, 2000)


def accuracy(q: nn.Module, name: str, split: str = "test") -> float:
    """In percent, on one split."""
    return round(zoo.evaluate(q, name, labelled(name, split)), 3)


def accuracies(q: nn.Module, name: str) -> dict[str, float]:
    """In percent, on both."""
    return {split: accuracy(q, name, split) for split in ("validation", "test")}


def rate_cells() -> Iterator[dict[str, Any]]:
    """Each network with each learning rate, at 4 bits and at 8, in shorter runs."""
    for bits, rates in (("W4A4", RATES), ("W8A8", RATES_AT_8_BITS)):
        for name, rate in product(zoo.NAMES, rates):
            yield {"network": name, "bits": bits, "rate": rate}


def rate_cell(cell: dict[str, Any]) -> dict[str, float]:
    name = cell["network"]
    return accuracies(trained(name, cell["rate"], steps=RATE_STEPS, **bits_of(cell)), name)


def chosen_rate(name: str, split: str = "validation", bits: str = "W4A4") -> float:
    """The learning rate with which that network does best on that split; one for all 4-bit runs."""
    tried = "W8A8" if bits == "W8A8" else "W4A4"
    records = read(path_of("rates"))["records"]
    mine = [r for r in records if r["network"] == name and r["bits"] == tried]
    if not mine:
        raise ValueError(f"no rates tried for {name}; run python -m minqbook.tables rates first")
    return max(mine, key=lambda r: r[split])["rate"]


def qat_cells() -> Iterator[dict[str, Any]]:
    """Every cell of table 10, and the same training in full precision, called FP32."""
    for seed, name in product(QAT_SEEDS, zoo.NAMES):
        for bits, per_channel in product(QAT_STEPS, (False, True)):
            yield {"network": name, "bits": bits, "per_channel": per_channel, "seed": seed}
        yield {"network": name, "bits": "FP32", "per_channel": False, "seed": seed}


def qat_cell(cell: dict[str, Any]) -> dict[str, float]:
    """The network before, after post-training quantization, and after training, on one test set."""
    name, rate = cell["network"], chosen_rate(cell["network"], bits=cell["bits"])
    bits = bits_of(cell) | {"per_channel": cell["per_channel"]}
    steps = QAT_STEPS.get(cell["bits"], CONTROL_STEPS)
    q = trained(name, rate, cell["seed"], steps, **bits)
    record = {"rate": rate, "steps": steps, "fp32": accuracy(zoo.load(name), name)}
    if cell["bits"] != "FP32":
        calibration = zoo.calibration_set(name, CALIBRATION, seed=cell["seed"])
        rounding = AdaRound(seed=cell["seed"])  # and ptq's own ranges: its best against training's
        once = ptq(zoo.load(name), calibration, rounding=rounding, progress=False, **bits)
        record |= {"ptq": accuracy(once, name)}
    return record | accuracies(q, name)
