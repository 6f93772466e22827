"""The results on small networks, and on EfficientNet-Lite0, that the book shows."""

from __future__ import annotations

import datetime
import functools
import json
import platform
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import minq
from minq._work import write_whole
from minq.affine import sqnr
from minq.export import capture
from minq.graph.batches import flatten_outputs
from minq.ptq.pipeline import ptq
from minq.ptq.rounding import AdaRound, Nearest
from minq.qat.batchnorm import Keep
from minq.qat.pipeline import finish, prepare, qat
from minqbook import zoo

_BESIDE = Path(__file__).parents[2] / "results"
RESULTS = _BESIDE if _BESIDE.is_dir() else Path("results")
"""The book's results; for an installed package, a folder "results" where it runs."""

CONFIGURATIONS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A8": (3, 8), "W2A8": (2, 8)}


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


# --- Table 1 on small networks --------------------------------------------------------------------

TEST, COMPARED, CALIBRATION, SEEDS = 1000, 250, 128, (0, 1, 2)


def ptq_cells() -> Iterator[dict[str, Any]]:
    """Every cell of table 1; those of the first seed come first."""
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


def fp32_cell(cell: dict[str, Any]) -> dict[str, float]:
    """The accuracy of the network as it was trained."""
    data = zoo.test_set(cell["network"], TEST)
    return {"accuracy": round(zoo.evaluate(zoo.load(cell["network"]), cell["network"], data), 3)}


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------

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
HERO_TEST, HERO_CALIBRATION = 64, 32


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


BEST_TEST, BEST_CALIBRATION = 500, 128
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


# --- Table 2, and what its pipeline is made of ----------------------------------------------------

RATES, RANGE_RATE, STEPS, BATCH = (3e-4, 1e-3, 3e-3), 1e-2, 400, 64
RATES_AT_8_BITS = (3e-5, 1e-4, 3e-4)  # what is close to the trained network is led more gently
RATE_STEPS = 250
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
    path = RESULTS / "rates.json"
    records = json.loads(path.read_text())["records"] if path.exists() else []
    tried = "W8A8" if bits == "W8A8" else "W4A4"
    mine = [r for r in records if r["network"] == name and r["bits"] == tried]
    if not mine:
        raise ValueError(f"no rates tried for {name}; run python -m minqbook.tables rates first")
    return max(mine, key=lambda r: r[split])["rate"]


def qat_cells() -> Iterator[dict[str, Any]]:
    """Every cell of table 2, and the same training in full precision, called FP32."""
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
        settings = MSE | bits
        rounding = AdaRound(seed=cell["seed"])
        once = ptq(zoo.load(name), calibration, rounding=rounding, progress=False, **settings)
        record |= {"ptq": accuracy(once, name)}
    return record | accuracies(q, name)


LONG = 3200  # steps, four times as many as in table 2


def length_cells() -> Iterator[dict[str, Any]]:
    """The W4A4 networks of table 2, trained for longer."""
    for seed, per_channel, name in product(QAT_SEEDS, (False, True), zoo.NAMES):
        yield {"network": name, "per_channel": per_channel, "seed": seed, "steps": LONG}


def length_cell(cell: dict[str, Any]) -> dict[str, float]:
    """As in table 2, but for the number of steps."""
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


# --- Files ----------------------------------------------------------------------------------------


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that needs packages which the other tables do not."""
    return lambda *args: getattr(import_module(f"minqbook.tables.{module}"), name)(*args)


TABLES = {
    "fp32": (lambda: ({"network": name} for name in zoo.NAMES), fp32_cell),
    "ptq": (ptq_cells, ptq_cell),
    "hero": (hero_cells, hero_cell),
    "best": (best_cells, best_cell),
    "rates": (rate_cells, rate_cell),
    "qat": (qat_cells, qat_cell),
    "length": (length_cells, length_cell),
    "norm": (norm_cells, norm_cell),
    "start": (start_cells, start_cell),
    "rows": (_later("full_size", "cells"), _later("full_size", "cell")),
    "minilm": (_later("minilm", "cells"), _later("minilm", "cell")),
}


def measure(table: str, *, limit: int | None = None, path: Path | None = None) -> dict[str, Any]:
    """Measure what is missing of a table, at most ``limit`` cells, and keep each as it comes."""
    cells, measure_cell = TABLES[table]
    path = path or RESULTS / f"{table}.json"
    result = json.loads(path.read_text()) if path.exists() else {"records": []}
    keys = list(next(iter(cells())))
    done = {tuple(r[k] for k in keys) for r in result["records"]}
    todo = [c for c in cells() if tuple(c[k] for k in keys) not in done][:limit]
    for number, cell in enumerate(todo, 1):
        start = time.perf_counter()
        record = cell | measure_cell(cell)
        print(f"{number}/{len(todo)} {time.perf_counter() - start:6.1f} s  {record}", flush=True)
        result["records"].append(record)
        result |= {
            "command": f"python -m minqbook.tables {table}",
            "versions": {"minq": minq.__version__, "torch": torch.__version__.partition("+")[0]},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "date": datetime.date.today().isoformat(),
        }
        write(path, result)
    return result


def write(path: Path, result: dict[str, Any]) -> None:
    """One record a line, and the file is replaced as a whole."""
    head = {k: v for k, v in result.items() if k != "records"}
    lines = ",\n  ".join(json.dumps(r) for r in result["records"])
    text = json.dumps(head, indent=1)[:-2] + f',\n "records": [\n  {lines}\n ]\n}}\n'
    write_whole(path, lambda part: part.write_text(text))
