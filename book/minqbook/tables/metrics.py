"""How the rows of the paper's tables are judged: all in percent, all by the field's own libraries.

    top-1 accuracy, mIoU, GLUE's scores    torchmetrics
    COCO mAP                               pycocotools, on effdet's boxes

A metric has ``update(outputs, target)`` and ``compute()``. In a process group each process updates
with its share, and ``compute`` gives all of them the result of the whole.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from minq.qat.run import from_all
from minqbook.tables.data import GLUE, Data
from minqbook.tables.rows import Row, library


def metric_of(row: Row, data: Data, task: str | None = None) -> Score | CocoMap:
    """The metric of a row; for GLUE that of a task."""
    if row.task == "detection":
        return CocoMap(data.test.coco)
    metrics = library("torchmetrics.classification")
    if row.task == "classification":
        return Score([metrics.MulticlassAccuracy(data.classes, average="micro")])
    if row.task == "segmentation":
        return Score([metrics.MulticlassJaccardIndex(data.classes, ignore_index=255)], key="out")
    real, kinds = library("torchmetrics.regression"), GLUE[str(task)].scores
    makers = {
        "accuracy": lambda: metrics.MulticlassAccuracy(data.classes, average="micro"),
        "f1": metrics.BinaryF1Score,
        "matthews": lambda: metrics.MulticlassMatthewsCorrCoef(data.classes),
        "pearson": real.PearsonCorrCoef,
        "spearman": real.SpearmanCorrCoef,
    }
    return Score([makers[kind]() for kind in kinds], key="logits")


class Score:
    """The mean of one or two metrics of torchmetrics, in percent.

    A correlation with answers that are all the same is undefined, and counts as 0.
    outputs: logits (batch, classes, ...), or a mapping that has them under ``key``; of one class,
    real numbers.
    """

    def __init__(self, metrics: list[Any], key: str = "") -> None:
        self.metrics, self.key = metrics, key

    def update(self, outputs: Any, target: Tensor) -> None:
        logits = outputs[self.key] if isinstance(outputs, Mapping) else outputs
        answers = logits[:, 0].float() if logits.shape[1] == 1 else logits.argmax(1)
        target = target.float() if logits.shape[1] == 1 else target
        for metric in self.metrics:
            metric.to(answers.device).update(answers, target)

    def compute(self) -> float:
        values = [m.compute().nan_to_num(0.0).item() for m in self.metrics]
        return 100 * sum(values) / len(values)


class CocoMap:
    """Mean average precision over IoU 0.5 to 0.95, on the pictures seen.

    outputs: (batch, boxes, 6) of x0, y0, x1, y1, score, COCO's class; score 0 where there is none.
    target: "image", COCO's numbers of the pictures.
    """

    def __init__(self, truth: Any) -> None:
        self.truth, self.seen, self.found = truth, [], []

    def update(self, outputs: Tensor, target: Mapping[str, Any]) -> None:
        for image, boxes in zip(target["image"].tolist(), outputs.tolist(), strict=True):
            self.seen.append(image)
            self.found += [
                {
                    "image_id": image,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                    "category_id": int(kind),
                }
                for x0, y0, x1, y1, score, kind in boxes
                if score > 0
            ]

    def compute(self) -> float:
        seen, found = (_joined(from_all(v)) for v in (self.seen, self.found))
        if not found:
            return 0.0
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
            judge = library("pycocotools.cocoeval").COCOeval(
                self.truth, self.truth.loadRes(found), "bbox"
            )
            judge.params.imgIds = sorted(set(seen))
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return 100 * max(0.0, float(judge.stats[0]))  # -1: no box was to be found


def _joined(lists: Iterable[list]) -> list:
    return [item for one in lists for item in one]


class Boxes:
    """What a detector's outputs are as boxes: effdet's anchors and non-maximum suppression.

    model: effdet's network, of which only the settings are read. ``boxes(net, x, target)`` calls
    any network with such outputs and gives what ``CocoMap`` takes.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.bench = library("effdet").DetBenchPredict(model)

    def __call__(self, net: torch.nn.Module, x: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        self.bench.model = net
        return self.bench.to(x.device)(x, {k: target[k] for k in ("img_scale", "img_size")})
