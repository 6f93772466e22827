"""The paper's table 6 on the small networks: naive rounding and the pipeline, at several widths."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import Any

from torch import Tensor, nn

from minq.affine import sqnr
from minq.export import capture
from minq.ptq.pipeline import ptq
from minq.ptq.rounding import AdaRound
from minqbook import zoo
from minqbook.tables.counts import CALIBRATION, CONFIGURATIONS, TEST
from minqbook.tables.settings import METHODS, bits_of, run

COMPARED, SEEDS = 250, (0, 1, 2)


def fp32_cells() -> Iterator[dict[str, Any]]:
    """Each small network."""
    yield from ({"network": name} for name in zoo.NAMES)


def fp32_cell(cell: dict[str, Any]) -> dict[str, float]:
    """The accuracy of the network as it was trained."""
    data = zoo.test_set(cell["network"], TEST)
    return {"accuracy": round(zoo.evaluate(zoo.load(cell["network"]), cell["network"], data), 3)}


def ptq_cells() -> Iterator[dict[str, Any]]:
    """Every cell of table 6; those of the first seed come first."""
    for seed, name in product(SEEDS, zoo.NAMES):
        for method, bits, per_channel in product(METHODS, CONFIGURATIONS, (False, True)):
            yield {
                "network": name,
                "method": method,
                "bits": bits,
                "per_channel": per_channel,
                "seed": seed,
            }


def ptq_cell(cell: dict[str, Any]) -> dict[str, float]:
    """Quantize as the cell says; its accuracy in percent and the SQNR of its answers in dB.

    The seed draws the calibration inputs and AdaRound's rows; the test inputs stay the same.
    """
    name = cell["network"]
    model, data, exact = _exact(name)
    q = ptq(
        model,
        zoo.calibration_set(name, CALIBRATION, seed=cell["seed"]),
        **bits_of(cell),
        per_channel=cell["per_channel"],
        progress=False,
        **{"rounding": AdaRound(seed=cell["seed"])} | METHODS[cell["method"]],
    )
    accuracy, quantized = zoo.evaluate(q, name, data), run(q, data[0][:COMPARED])
    return {"accuracy": round(accuracy, 3), "sqnr": round(sqnr(exact, quantized), 3)}


@functools.cache
def _exact(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor], Tensor]:
    """A network, its test set, and its answers to the first inputs."""
    data = zoo.test_set(name, TEST)
    model = capture(zoo.load(name), data[0][:2])
    return model, data, run(model, data[0][:COMPARED])
