"""python -m minqbook.tables --model resnet18 --data DIR: a row of the paper's tables, on real data.

    FP32                the network as it is
    PTQ, table 6        W8A8 and W4A8, a scale per tensor or per channel
    QAT, table 10       W8A8, W4A8 and W4A4, likewise

The numbers go into a JSON file, each beside the paper's. A run that was stopped goes on where it
ended: a cell that is in the file with the same settings is not measured again, and within a cell
AdaRound goes on with the next layer, training with the next step. Several GPUs share the work:

    torchrun --nproc-per-node 4 -m minqbook.tables --model resnet18 --data DIR
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import distributed, fx
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from minq._work import Bar
from minq.export import capture
from minq.ptq.pipeline import ptq
from minq.ptq.rounding import GPTQ, NAMES, AdaRound, Nearest
from minq.qat.pipeline import qat, split_batch
from minq.qat.run import Checkpoint, from_all, rank, together, world_size
from minqbook.tables import data as layouts
from minqbook.tables.counts import CONFIGURATIONS
from minqbook.tables.data import GLUE, LAYOUTS, Data
from minqbook.tables.files import write
from minqbook.tables.metrics import Boxes, metric_of
from minqbook.tables.paper import paper_cell, paper_tables
from minqbook.tables.rows import ROWS, Row

COLUMNS = {"fp32": ("FP32",), "ptq": ("W8A8", "W4A8"), "qat": ("W8A8", "W4A8", "W4A4")}
GRANULARITIES = {"tensor": False, "channel": True}
EVERY = 500
"""Training keeps where it stands every so many steps; what is shorter is simply done again."""
FINE_TUNING = {"epochs": 3, "lr": 2e-5}
"""Of BERT in full precision, on each task, where no trained networks are given."""


def parser() -> argparse.ArgumentParser:
    """The options, with what they mean."""
    text = "\n\n".join(f"data for {task}:\n{layout}" for task, layout in LAYOUTS.items())
    made = argparse.ArgumentParser(
        prog="python -m minqbook.tables", description=__doc__, epilog=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = made.add_argument
    # fmt: off
    add("--model", required=True, choices=ROWS, help="the row")
    add("--data", required=True, type=Path, metavar="DIR", help="a folder as described below")
    add("--weights", default="pretrained", metavar="pretrained|random|PATH",
        help="the library's own, or a .pth or .safetensors file; for bert_base a folder of "
        "fine-tuned networks, PATH/sst2, PATH/mrpc, ..., each as save_pretrained writes it; the "
        "library's own are fine-tuned first, and kept in such a folder beside --out")
    add("--columns", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    add("--bits", nargs="+", default=list(CONFIGURATIONS), choices=COLUMNS["qat"])
    add("--granularity", nargs="+", default=list(GRANULARITIES), choices=GRANULARITIES)
    add("--tasks", nargs="+", default=list(GLUE), choices=GLUE, help="of GLUE; by default all")
    add("--tokenizer", type=Path, metavar="PATH",
        help="a vocab.txt, or a folder that holds one; by default the library's own")
    add("--samples", type=int, default=256, help="to calibrate on, by default 256")
    add("--rounding", default="adaround", choices=NAMES)
    add("--sweeps", type=int, default=20, help="of AdaRound, see minq.ptq")
    add("--epochs", type=int, default=1, help="of training")
    add("--steps", type=int, help="of training, for less than an epoch")
    add("--rate", type=float, default=1e-5, help="of training, by default 1e-5; choose with care")
    add("--range-rate", type=float, help="of the ranges, by default 10 times as high")
    add("--batch", type=int, default=32, help="for each process")
    add("--size", type=int, help="of pictures or sentences, where not the network's own")
    add("--limit", type=int, help="test on so many samples, drawn at random")
    add("--seed", type=int, default=0, help="draws calibration data and the order of training")
    add("--device", help="by default a GPU where there is one")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="that read the data")
    add("--out", type=Path, help="the JSON file, by default minq-MODEL.json")
    # fmt: on
    return made


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is missing of a row, print it, and return what is in the file."""
    made = parser()
    options = made.parse_args(arguments)
    for name in ("samples", "sweeps", "epochs", "batch", "steps", "limit", "size"):
        if (value := getattr(options, name)) is not None and value < 1:
            made.error(f"--{name} must be at least 1, not {value}")
    with processes(options.device) as device:
        try:
            return Measurement(ROWS[options.model], options, device).run()
        except (FileNotFoundError, ImportError, ValueError) as error:
            if arguments is not None:
                raise
            made.exit(1, f"{type(error).__name__}: {error}\n")


@contextmanager
def processes(device: str | None) -> Iterator[torch.device]:
    """The device to compute on; under torchrun each process has its own, and they form a group."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "LOCAL_RANK" not in os.environ or together():
        yield torch.device(kind)
        return
    if kind == "cuda":
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(kind)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in kind else "gloo")
    try:
        yield torch.device(kind)
    finally:
        distributed.destroy_process_group()


def cells(columns: Sequence[str], bits: Sequence[str], granularity: Sequence[str]) -> list[dict]:
    """The cells of a row, in the order of the paper's tables."""
    found = []
    for table in (t for t in COLUMNS if t in columns):
        if table == "fp32":
            found.append({"table": table, "bits": "FP32", "per_channel": False})
        else:
            found += [
                {"table": table, "bits": b, "per_channel": GRANULARITIES[g]}
                for g, b in product(granularity, COLUMNS[table])
                if b in bits
            ]
    return found


class Measurement:
    """The cells of one row, and the file that keeps them."""

    def __init__(self, row: Row, options: argparse.Namespace, device: torch.device) -> None:
        self.row, self.options, self.device = row, options, device
        self.size = options.size or row.size
        self.path = options.out or Path(f"minq-{row.name}.json")
        self.tasks = options.tasks if row.task == "glue" else [None]
        self.cells = cells(options.columns, options.bits, options.granularity)
        kept = json.loads(self.path.read_text()) if self.path.exists() else {"row": row.name}
        if kept.get("row") != row.name:
            raise ValueError(f"{self.path} is of {kept.get('row')}, not {row.name}; give another")
        # all processes read before the first one writes
        self.records = from_all(kept.get("records", []))[0]

    def run(self) -> dict[str, Any]:
        """Measure what is missing; the data of all tasks are looked at first."""
        todo = {
            task: left
            for task in self.tasks
            if (left := [c for c in self.cells if self.find(c, task) is None])
        }
        opened = {task: self.open(task, todo[task]) for task in todo}
        for task, data in opened.items():
            network = Network(self, data, task)
            for cell in todo[task]:
                started = time.perf_counter()
                value = network.measure(cell)
                self.keep(cell, task, value, data, time.perf_counter() - started)
        result = self.result()
        if rank() == 0:
            write(self.path, result)
            print(self.text())
        return result

    def open(self, task: str | None, todo: list[dict]) -> Data:
        """The data; an error where training needs more than there is."""
        settings: dict[str, Any] = {}
        if task:
            path = self.weights(task)
            file = path / "config.json" if isinstance(path, Path) else None
            config = json.loads(file.read_text()) if file and file.is_file() else {}
            settings = {"task": task, "labels": config.get("label2id")}
            settings["vocabulary"] = self.options.tokenizer
        data = layouts.open_data(self.row, self.options.data, self.size, **settings)
        tunes = task and path == "pretrained"
        if data.train is None and (tunes or any(c["table"] == "qat" for c in todo)):
            way = "give --weights of trained networks" if tunes else "ask for --columns fp32 ptq"
            what = f"there are no data to train with; add them, or {way}"
            raise layouts.wrong_layout(self.options.data, self.row.task, what)
        return data

    def weights(self, task: str | None) -> str | Path | None:
        """What ``Row.build`` takes."""
        given = self.options.weights
        if given == "random":
            return None
        if given == "pretrained":
            done = self.fine_tuned(task) if task else None
            return done if done and (done / "config.json").is_file() else given
        path = Path(given)
        if task and not (path / "config.json").is_file():
            path = path / task
            if not (path / "config.json").is_file():
                raise FileNotFoundError(
                    f"there is no network in {path}; expected are {given}/sst2/config.json and so "
                    "on, a folder for each task as save_pretrained writes it"
                )
        elif task and len(self.tasks) > 1:
            raise ValueError(
                f"{path} is one network; give one for each task, or a single one of --tasks"
            )
        return path

    def fine_tuned(self, task: str) -> Path:
        """Where BERT is kept after its training on a task."""
        return self.path.with_suffix("") / task

    # --- The file ---------------------------------------------------------------------------------

    def settings(self, cell: dict[str, Any]) -> dict[str, Any]:
        """What a cell's number depends on, beside the cell."""
        o = self.options
        found = {"weights": str(o.weights), "size": self.size, "limit": o.limit}
        if cell["table"] != "fp32":
            found |= {"samples": o.samples, "seed": o.seed}
        if cell["table"] == "ptq":
            found |= {"rounding": o.rounding}
            found |= {"sweeps": o.sweeps} if o.rounding == "adaround" else {}
        if cell["table"] == "qat":
            found |= {"steps": o.steps} if o.steps else {"epochs": o.epochs}
            found |= {"rate": o.rate, "range_rate": self.range_rate}
            found |= {"batch": o.batch * world_size()}
        return found

    @property
    def range_rate(self) -> float:
        return self.options.range_rate or 10 * self.options.rate

    def key(self, cell: dict[str, Any], task: str | None) -> dict[str, Any]:
        return cell | ({"task": task} if task else {}) | self.settings(cell)

    def find(self, cell: dict[str, Any], task: str | None) -> dict[str, Any] | None:
        """The record of a cell, measured with these settings."""
        key = self.key(cell, task).items()
        return next((r for r in self.records if key <= r.items()), None)

    def keep(self, cell: dict, task: str | None, value: float, data: Data, seconds: float) -> None:
        record = self.key(cell, task) | {
            "calibrated_on": "the test data" if data.train is None else "training data",
            "tested_on": min(len(data.test), self.options.limit or len(data.test)),
            "value": round(value, 3),
            "seconds": round(seconds, 1),
        }
        self.records.append(record)
        if rank() == 0:
            write(self.path, self.result())

    def result(self) -> dict[str, Any]:
        """What the file holds: the row beside the paper's, and every cell with its settings."""
        title = self.row.title
        return {
            "row": self.row.name,
            "title": title,
            "metric": paper_tables()["metric"][title],
            "paper": paper_tables()["source"],
            "command": f"python -m minqbook.tables --model {self.row.name} --data DIR",
            "versions": _versions("minq", "torch", self.row.package, "torchmetrics", "pycocotools"),
            "machine": f"{platform.machine()}, {world_size()} processes on {_name(self.device)}",
            "date": datetime.date.today().isoformat(),
            "table": self.table(),
            "records": self.records,
        }

    def table(self) -> list[dict[str, Any]]:
        """Ours and the paper's, cell by cell; GLUE's score is the mean over its eight tasks."""
        found = []
        for cell in self.cells:
            values = {t: r["value"] for t in self.tasks if (r := self.find(cell, t))}
            whole = set(values) == (set(GLUE) if self.row.task == "glue" else {None})
            entry = cell | {"ours": round(sum(values.values()) / len(values), 2) if whole else None}
            entry |= {"paper": paper_cell(self.row.title, **cell)}
            found.append(entry | {t: v for t, v in values.items() if t})
        return found

    def text(self) -> str:
        """The table, to be printed."""
        lines = [f"{self.row.title}: {paper_tables()['metric'][self.row.title]}", ""]
        lines.append(f"{'':26}{'ours':>8}{'paper':>8}")
        for entry in self.table():
            one = "per channel" if entry["per_channel"] else "per tensor"
            name = "FP32" if entry["table"] == "fp32" else (
                f"{entry['table'].upper()}  {entry['bits']} {one}"
            )  # fmt: skip
            values = "".join(
                f"{'-' if v is None else format(v, '.2f'):>8}"
                for v in (entry["ours"], entry["paper"])
            )
            tasks = "".join(f"  {t} {entry[t]:.2f}" for t in GLUE if t in entry)
            lines.append(f"{name:26}{values}{tasks}")
        return "\n".join([*lines, "", f"in {self.path}"])


# --- One network and its data ---------------------------------------------------------------------


class Network:
    """A row's network, for GLUE that of one task, and what is done with it."""

    def __init__(self, measurement: Measurement, data: Data, task: str | None) -> None:
        self.row, self.options, self.data, self.task = (
            measurement.row, measurement.options, data, task,
        )  # fmt: skip
        self.range_rate, self.path = measurement.range_rate, measurement.path
        weights = measurement.weights(task)
        if self.row.task == "classification" and weights == "pretrained":
            layouts.check_synsets(data)
        model = self.row.build(weights, classes=data.classes, size=measurement.size)
        self.boxes: Any = Boxes(model) if self.row.task == "detection" else None
        example = self.row.example(2, measurement.size)
        self.gm = capture(model.to(measurement.device), example)
        o = self.options
        self.calibration = layouts.calibration_batches(data, o.samples, o.batch, o.seed)
        if task and weights == "pretrained":
            self.gm = self.fine_tune()
            model.load_state_dict(self.gm.state_dict(), strict=False)
            if rank() == 0:
                model.save_pretrained(measurement.fine_tuned(task))

    def measure(self, cell: dict[str, Any]) -> float:
        """Quantize as the cell says and test; what a cell keeps on its way is deleted at the end.

        Every process rounds the same layers, or trains on its share of the data.
        """
        if cell["table"] == "fp32":
            return self.test(self.gm)
        weights, activations = CONFIGURATIONS[cell["bits"]]
        settings = {"weights": weights, "activations": activations}
        settings |= {"per_channel": cell["per_channel"], **self.row.settings}
        name = "-".join(
            [self.path.stem, *([self.task] if self.task else []), cell["table"], cell["bits"],
             "channel" if cell["per_channel"] else "tensor"]
        )  # fmt: skip
        kept = self.path.with_name(f"{name}.pt")
        if cell["table"] == "ptq":
            if rank():
                kept = kept.with_suffix(f".{rank()}.pt")
            q = self.round(kept, settings)
        else:
            q = self.train(kept, settings)
        value = self.test(q)
        if cell["table"] == "ptq" or rank() == 0:
            kept.unlink(missing_ok=True)
        return value

    def round(self, kept: Path, settings: dict[str, Any]) -> fx.GraphModule:
        o = self.options
        roundings = {
            "adaround": AdaRound(sweeps=o.sweeps, seed=o.seed), "gptq": GPTQ(seed=o.seed),
            "nearest": Nearest(),
        }  # fmt: skip
        own = {"rounding": roundings[o.rounding], "checkpoint": kept}
        show = None if rank() == 0 else False
        q = ptq(self.gm, self.calibration, progress=show, **own | settings)
        if together():  # the last bits may differ from device to device
            for tensor in (*q.parameters(), *q.buffers()):
                distributed.broadcast(tensor.detach(), 0)
        return q

    def train(self, kept: Path, settings: dict[str, Any]) -> fx.GraphModule:
        o = self.options
        random.seed(o.seed + rank())  # pictures are distorted by these, and by torch's
        torch.manual_seed(o.seed + rank())
        joint = o.batch * world_size()
        data = layouts.part(self.data.train, o.steps and o.steps * joint, o.seed)
        full = len(data) >= joint  # then no batch is smaller than the others
        order = DistributedSampler(data, world_size(), rank(), seed=o.seed, drop_last=full)
        loader = self.loader(data, sampler=order, drop_last=full)
        epochs = o.epochs if o.steps is None else -(-o.steps // len(loader))
        own = {"epochs": epochs, "lr": o.rate, "range_lr": self.range_rate} | settings
        if len(loader) * own["epochs"] > EVERY:
            own |= {"checkpoint": Checkpoint(kept, every=EVERY)}
        return qat(self.gm, loader, self.row.loss, calibration=self.calibration, **own)

    def fine_tune(self) -> fx.GraphModule:
        """Training without any quantizer."""
        kept = self.path.with_name(f"{self.path.stem}-{self.task}.pt")
        exact = {"weights": None, "activations": None, "equalize": False}
        gm = self.train(kept, exact | FINE_TUNING)
        if rank() == 0:
            kept.unlink(missing_ok=True)
        return gm

    def test(self, net: fx.GraphModule) -> float:
        """The metric, of each process's share of the test data together."""
        data = layouts.part(self.data.test, self.options.limit, self.options.seed)
        data = Subset(data, range(rank(), len(data), world_size()))
        loader, metric = self.loader(data), metric_of(self.row, self.data, self.task)
        with torch.no_grad(), Bar(len(loader), "batches", None if rank() == 0 else False) as bar:
            for batch in loader:
                inputs, target = split_batch(net, batch)
                answer = self.boxes(net, *inputs, target) if self.boxes else net(*inputs)
                metric.update(answer, target)
                bar.update("tested")
        return metric.compute()

    def loader(self, data: Dataset, **settings: Any) -> DataLoader:
        return DataLoader(
            data, self.options.batch, num_workers=self.options.workers,
            collate_fn=self.data.collate, pin_memory=torch.cuda.is_available(), **settings,
        )  # fmt: skip


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
