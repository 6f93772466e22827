"""What the training of table 10 is made of: its length, its batch norms, what it starts from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from typing import Any

from minq.ptq.rounding import Nearest
from minq.qat.batchnorm import Keep
from minq.qat.pipeline import finish, prepare
from minqbook import zoo
from minqbook.tables.counts import CALIBRATION
from minqbook.tables.settings import MSE, bits_of
from minqbook.tables.table2 import QAT_SEEDS, accuracies, accuracy, chosen_rate, trained

LONG = 3200  # steps, four times as many as in table 10


def length_cells() -> Iterator[dict[str, Any]]:
    """The W4A4 networks of table 10, trained for longer."""
    for seed, per_channel, name in product(QAT_SEEDS, (False, True), zoo.NAMES):
        yield {"network": name, "per_channel": per_channel, "seed": seed, "steps": LONG}


def length_cell(cell: dict[str, Any]) -> dict[str, float]:
    """As in table 10, but for the number of steps."""
    name, rate = cell["network"], chosen_rate(cell["network"])
    bits = {"weights": 4, "activations": 4, "per_channel": cell["per_channel"]}
    q = trained(name, rate, cell["seed"], cell["steps"], **bits)
    return {"rate": rate} | accuracies(q, name)


NORM_WAYS: dict[str, dict[str, Any]] = {
    "fold": {"batch_norm": "fold"},
    "dynamic": {"batch_norm": "dynamic"},
    "keep": {"batch_norm": "keep"},
    "keep, reestimated": {"batch_norm": Keep(reestimate=32)},
}


def norm_cells() -> Iterator[dict[str, Any]]:
    """Ways to treat batch norm; it can be kept only where every channel has a scale."""
    for name, bits in product(("resnet_basic", "mobilenet_v2"), ("W4A8", "W4A4")):
        for way, per_channel in product(NORM_WAYS, (False, True)):
            if per_channel or not way.startswith("keep"):
                yield {"network": name, "bits": bits, "way": way, "per_channel": per_channel}


def norm_cell(cell: dict[str, Any]) -> dict[str, float]:
    name, rate = cell["network"], chosen_rate(cell["network"])
    settings = bits_of(cell) | {"per_channel": cell["per_channel"]} | NORM_WAYS[cell["way"]]
    started = time.perf_counter()
    q = trained(name, rate, **settings)
    seconds = round(time.perf_counter() - started, 1)
    return {"rate": rate, "seconds": seconds} | accuracies(q, name)


STARTS: dict[str, dict[str, Any]] = {
    "min-max": {"weight_range": "min_max", "activation_range": "min_max"},
    "MSE": {},
    "MSE, biases corrected": {"rounding": Nearest(correct_bias=True)},
    "MSE, AdaRound": {"rounding": "adaround"},
    "MSE, fixed ranges": {"learn_ranges": False},
}


def start_cells() -> Iterator[dict[str, Any]]:
    """What training starts from, with and without equalization, and per-tensor weights."""
    for bits, equalize, start in product(("W4A8", "W4A4"), (False, True), STARTS):
        yield {"network": "mobilenet_v2", "bits": bits, "equalize": equalize, "start": start}


def start_cell(cell: dict[str, Any]) -> dict[str, float]:
    """Accuracy on the test split before training and after it."""
    name, rate = cell["network"], chosen_rate(cell["network"])
    settings = MSE | bits_of(cell) | {"equalize": cell["equalize"]} | STARTS[cell["start"]]
    q = prepare(zoo.load(name), zoo.calibration_set(name, CALIBRATION), progress=False, **settings)
    before = accuracy(finish(q), name)
    return {"rate": rate, "before": before} | accuracies(trained(name, rate, **settings), name)
