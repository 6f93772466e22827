"""The data sets of the paper's tables, read from disk in the layouts they are distributed in.

    ``images``     ImageNet: val/ and train/ with a folder for each class
    ``voc``        Pascal VOC 2012: VOCdevkit/VOC2012/
    ``coco``       COCO 2017: annotations/, val2017/ and train2017/
    ``sentences``  GLUE: a folder with .tsv files for each task

Each gives a ``Data``. Where a file is missing, the error shows the layout, and what is there.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from minqbook.tables.rows import Row, library

LAYOUTS = {
    "classification": """\
DIR/val/n01440764/*.JPEG    the pictures to test on, a folder for each class (1000 in ImageNet)
DIR/train/n01440764/*.JPEG  the pictures to calibrate on and to train with""",
    "segmentation": """\
DIR/VOCdevkit/VOC2012/JPEGImages/*.jpg
DIR/VOCdevkit/VOC2012/SegmentationClass/*.png
DIR/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt    names to test on
DIR/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt  names to calibrate on and to train with""",
    "detection": """\
DIR/annotations/instances_val2017.json    boxes to test on
DIR/val2017/*.jpg                         their pictures
DIR/annotations/instances_train2017.json  boxes to train with
DIR/train2017/*.jpg                       their pictures, also to calibrate on""",
    "glue": """\
DIR/CoLA/train.tsv, dev.tsv      DIR/MNLI/train.tsv, dev_matched.tsv
DIR/SST-2/train.tsv, dev.tsv     DIR/QNLI/train.tsv, dev.tsv
DIR/MRPC/train.tsv, dev.tsv      DIR/RTE/train.tsv, dev.tsv
DIR/STS-B/train.tsv, dev.tsv     DIR/QQP/train.tsv, dev.tsv""",
}


@dataclass(frozen=True)
class Data:
    """What one row needs. ``train`` and ``calibration`` hold the same samples; only ``train``
    distorts them at random. Without training data ``train`` is None, and calibration takes the
    test's. ``collate`` makes a batch of a list of samples."""

    classes: int
    test: Dataset
    train: Dataset | None
    calibration: Dataset
    collate: Callable[[list[Any]], Any] = default_collate
    names: tuple[str, ...] = ()


def open_data(row: Row, folder: str | Path, size: int | None = None, **settings: Any) -> Data:
    """The data of a row, in a folder; ``settings`` are those of ``sentences``.

    Raises FileNotFoundError or ValueError where it is not as its layout says.
    """
    folder, size = Path(folder), size or row.size
    readers = {"classification": images, "segmentation": voc, "detection": coco}
    if row.task == "glue":
        return sentences(folder, row.preprocess["tokenizer"], size, **settings)
    return readers[row.task](folder, row.preprocess, size, row.size)


def calibration_batches(data: Data, samples: int, batch: int, seed: int = 0) -> list[Any]:
    """So many samples, drawn at random without replacement, without their labels."""
    batches = []
    for pick in _draw(data.calibration, samples, seed).split(batch):
        found = data.collate([data.calibration[k] for k in pick.tolist()])
        if isinstance(found, Mapping):
            batches.append({k: v for k, v in found.items() if k != "labels"})
        else:
            batches.append(found[0])
    return batches


def part(data: Dataset, samples: int | None, seed: int = 0) -> Dataset:
    """A data set's first samples in a random order; all of them as they stand for None."""
    return data if samples is None else Subset(data, _draw(data, samples, seed).tolist())


def _draw(data: Any, samples: int, seed: int) -> Tensor:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return order[:samples]


def wrong_layout(folder: Path, task: str, what: str) -> FileNotFoundError:
    """An error that says what is missing, what was expected, and what is there."""
    there = "no such folder"
    if folder.is_dir():
        found = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
        there = ", ".join(found[:12]) + f" and {len(found) - 12} more" * (len(found) > 12)
    return FileNotFoundError(
        f"{what}\nexpected, with DIR = {folder}:\n{LAYOUTS[task]}\n"
        f"found in DIR: {there or 'nothing'}"
    )


def _need(folder: Path, task: str, *names: str) -> None:
    for name in names:
        if not (folder / name).exists():
            raise wrong_layout(folder, task, f"there is no {name} in {folder}")


# --- Pictures -------------------------------------------------------------------------------------


def images(folder: Path, expects: Mapping[str, Any], size: int, native: int) -> Data:
    """Pictures in a folder for each class; the classes count in the order of the folders' names.

    Prepared as the network's library says, and the same in proportion at another ``size``.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    way = v2.InterpolationMode(expects["interpolation"])
    ends = _pixels(expects)
    still = [v2.Resize(round(expects["resize"] * size / native), way), v2.CenterCrop(size)]
    moved = [v2.RandomResizedCrop(size, interpolation=way), v2.RandomHorizontalFlip()]

    def read(split: str, steps: list) -> ImageFolder:
        try:
            return ImageFolder(str(folder / split), v2.Compose([*steps, *ends]))
        except FileNotFoundError as error:
            raise wrong_layout(folder, "classification", f"{split}/: {error}") from None

    _need(folder, "classification", "val")
    test = read("val", still)
    if not (folder / "train").exists():
        return Data(len(test.classes), test, None, test, names=tuple(test.classes))
    train, calibration = read("train", moved), read("train", still)
    if train.classes != test.classes:
        other = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"train/ and val/ in {folder} must have the same class folders; {', '.join(other[:8])} "
            "is only in one of them"
        )
    return Data(len(test.classes), test, train, calibration, names=tuple(test.classes))


def _pixels(expects: Mapping[str, Any]) -> list:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    kinds = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return [
        v2.ToImage(),
        v2.ToDtype(kinds, scale=True),
        v2.Normalize(expects["mean"], expects["std"]),
        v2.ToPureTensor(),
    ]


def check_synsets(data: Data) -> None:
    """Raise ValueError where the class folders are not ImageNet's, in its order.

    Trained weights number the classes by WordNet's names, n01440764 first.
    """
    synsets = library("timm.data").ImageNetInfo().label_names()
    if list(data.names) != list(synsets):
        wrong = [n for n in data.names if n not in set(synsets)]
        raise ValueError(
            f"the weights are for ImageNet's {len(synsets)} classes, in folders from {synsets[0]} "
            f"to {synsets[-1]}; found are {len(data.names)}"
            + (f", among them {', '.join(wrong[:4])}" if wrong else "")
            + "; give the whole of ImageNet, or weights for these classes (--weights PATH)"
        )


# --- Pascal VOC 2012 ------------------------------------------------------------------------------


def voc(folder: Path, expects: Mapping[str, Any], size: int, native: int) -> Data:
    """Pictures and their masks of 21 classes, 255 where none counts.

    Tested on whole pictures in a square of ``size``: larger ones are made to fit, the rest of the
    square is filled with the mean colour and counts for nothing.
    """
    from torchvision import tv_tensors
    from torchvision.datasets import VOCSegmentation, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    root = "VOCdevkit/VOC2012"
    lists = f"{root}/ImageSets/Segmentation"
    _need(folder, "segmentation", f"{root}/JPEGImages", f"{root}/SegmentationClass")
    _need(folder, "segmentation", f"{lists}/val.txt")
    *start, end = _pixels(expects)
    empty = {tv_tensors.Image: 0.0, tv_tensors.Mask: 255}
    still = v2.Compose([*start, _Fit(size), end])
    moved = v2.Compose(
        [
            *start,
            v2.ScaleJitter((size, size), (0.5, 2.0)),
            v2.RandomCrop(size, pad_if_needed=True, fill=empty),
            v2.RandomHorizontalFlip(),
            end,
        ]
    )

    def read(split: str, steps: Any) -> Dataset:
        data = VOCSegmentation(str(folder), "2012", split, transforms=steps)
        return wrap_dataset_for_transforms_v2(data)

    test = read("val", still)
    if not (folder / lists / "train.txt").exists():
        return Data(21, test, None, test, _collate_masks)
    return Data(21, test, read("train", moved), read("train", still), _collate_masks)


def _collate_masks(samples: list[Any]) -> Any:
    x, masks = default_collate(samples)
    return x, masks[:, 0]


class _Fit:
    """Shrink a picture and its mask to a square where they are larger, and fill it up."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2 import functional as F

        sides = torch.tensor(image.shape[-2:])
        if sides.max() > self.size:
            sides = (sides * self.size / sides.max()).round().long().clamp(min=1)
            image, mask = (F.resize(v, sides.tolist()) for v in (image, mask))
        below, right = (self.size - sides).tolist()
        room = [0, 0, right, below]
        return F.pad(image, room, fill=0.0), F.pad(mask, room, fill=255)


# --- COCO 2017 ------------------------------------------------------------------------------------


def coco(folder: Path, expects: Mapping[str, Any], size: int, native: int) -> Data:
    """Pictures and boxes, as effdet reads and prepares them: the longer side is made to fit.

    A target has "bbox" and "cls", lists of tensors as ``Row.loss`` takes them, and "img_scale",
    "img_size" and "image" (COCO's number), which lead back to the picture.
    """
    _need(folder, "detection", "annotations/instances_val2017.json", "val2017")
    collate = partial(_collate_boxes, mean=expects["mean"], std=expects["std"])
    steps = library("effdet.data.transforms")
    own = {"interpolation": expects["interpolation"], "mean": expects["mean"]}
    still = steps.transforms_coco_eval(size, use_prefetcher=True, **own)
    moved = steps.transforms_coco_train(size, use_prefetcher=True, mean=expects["mean"])
    test = _Boxes(folder, "val", still)
    if not (folder / "annotations/instances_train2017.json").exists():
        return Data(90, test, None, test, collate)
    _need(folder, "detection", "train2017")
    train, calibration = (_Boxes(folder, "train", t) for t in (moved, still))
    return Data(90, test, train, calibration, collate)


class _Boxes(Dataset):
    """effdet's data set; pictures without a box belong to the test, but teach nothing."""

    def __init__(self, folder: Path, split: str, transform: Any) -> None:
        parsers, name = library("effdet.data.parsers"), f"{split}2017"
        file = folder / "annotations" / f"instances_{name}.json"
        try:
            self.parser = parsers.create_parser(
                "coco",
                cfg=parsers.CocoParserCfg(
                    ann_filename=str(file), ignore_empty_gt=split == "train", min_img_size=1
                ),
            )
        except (json.JSONDecodeError, KeyError, AssertionError, TypeError) as error:
            raise ValueError(f"{file} is no file of COCO's annotations: {error!r}") from error
        if not self.parser.img_ids:
            raise ValueError(f"{file} names no pictures")
        self.coco = self.parser.coco
        data = library("effdet.data.dataset").DetectionDatset
        self.data = data(folder / name, parser=self.parser, transform=transform)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        x, target = self.data[index]
        return x, target | {"image": self.parser.img_ids[index]}


def _collate_boxes(samples: list[Any], mean: Sequence[float], std: Sequence[float]) -> Any:
    pixels, targets = zip(*samples, strict=True)
    shift, scale = (255 * torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    x = (torch.from_numpy(np.stack(pixels)).float() - shift) / scale
    target = {k: [torch.as_tensor(t[k]) for t in targets] for k in ("bbox", "cls")}
    for key in ("img_scale", "img_size", "image"):
        target[key] = torch.tensor([t[key] for t in targets])
    return x, target


# --- GLUE -----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """One of GLUE's tasks, as its files have it. ``classes``: the labels' names in their usual
    order; a number says that the file has numbers already, 1 for a real one."""

    folder: str
    columns: tuple[str, ...]  # of the one sentence, or the two
    label: str
    classes: int | tuple[str, ...]
    scores: tuple[str, ...]
    test: str = "dev.tsv"
    header: tuple[str, ...] = ()  # where the file has none


_TWO = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")
GLUE = {
    "cola": Task("CoLA", ("sentence",), "label", 2, ("matthews",),
                 header=("source", "label", "star", "sentence")),
    "sst2": Task("SST-2", ("sentence",), "label", 2, ("accuracy",)),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", 2, ("accuracy", "f1")),
    "stsb": Task("STS-B", _TWO, "score", 1, ("pearson", "spearman")),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", 2, ("accuracy", "f1")),
    "mnli": Task("MNLI", _TWO, "gold_label", ("entailment", "neutral", "contradiction"),
                 ("accuracy",), test="dev_matched.tsv"),
    "qnli": Task("QNLI", ("question", "sentence"), "label", _ENTAILED, ("accuracy",)),
    "rte": Task("RTE", _TWO, "label", _ENTAILED, ("accuracy",)),
}  # fmt: skip


def sentences(
    folder: Path,
    tokenizer: str,
    length: int,
    *,
    task: str,
    vocabulary: str | Path | None = None,
    labels: Mapping[str, int] | None = None,
) -> Data:
    """One task's sentences, as the dicts that BERT is called with, cut or filled to a length.

    tokenizer: its name in the library. vocabulary: a folder or a vocab.txt to take in its place.
    labels: the number of each class name, where a network has another order than the usual one.
    """
    spec = GLUE[task]
    files = [folder / spec.folder / name for name in (spec.test, "train.tsv")]
    if not files[0].is_file():
        name = files[0].relative_to(folder)
        raise wrong_layout(folder, "glue", f"there is no {name} in {folder}")
    names, classes = ((), spec.classes) if isinstance(spec.classes, int) else (spec.classes, 0)
    given = {k.lower(): v for k, v in (labels or {}).items()}
    order = given if set(given) == set(names) else {n: k for k, n in enumerate(names)}
    encode = partial(
        _tokenizer(tokenizer, vocabulary),
        truncation=True, padding="max_length", max_length=length, return_tensors="pt",
    )  # fmt: skip
    found = [_Sentences(read_tsv(f, spec, order), encode) for f in files if f.is_file()]
    test, train = (found + [None])[:2]
    return Data(len(names) or classes, test, train, train or test, names=names)


def read_tsv(file: Path, spec: Task, order: Mapping[str, int]) -> list[tuple[Any, ...]]:
    """The rows of a file as (sentence, or two, and label).

    The files of QQP and MNLI have a few broken lines; up to one in a hundred is passed over.
    """
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = list(spec.header) or None
        table = csv.DictReader(lines, header, delimiter="\t", quoting=csv.QUOTE_NONE)
        wanted = (*spec.columns, spec.label)
        if missing := [c for c in wanted if c not in (table.fieldnames or ())]:
            raise ValueError(
                f"{file} has no column {', '.join(missing)}; found in its first line: "
                f"{', '.join(table.fieldnames or ['nothing'])[:200]}"
            )
        rows, broken = [], []
        for row in table:
            try:
                label = row[spec.label]
                number = float(label) if spec.classes == 1 else order.get(label)
                number = int(label) if number is None else number
                if spec.classes == 2 and number not in (0, 1):
                    raise ValueError(label)
                rows.append((*map(str.strip, (row[c] for c in spec.columns)), number))
            except (ValueError, TypeError):
                broken.append(table.line_num)
    if not rows or len(broken) > max(1, len(rows) // 100):
        raise ValueError(
            f"{file} has {len(rows)} good lines and {len(broken)} broken ones"
            + (f", the first is line {broken[0]}" if broken else "")
            + f"; columns {', '.join(wanted)} are needed, the last with "
            + (", ".join(order) or ("a number" if spec.classes == 1 else "0 or 1"))
        )
    return rows


class _Sentences(Dataset):
    def __init__(self, rows: list[tuple[Any, ...]], encode: Callable[..., Any]) -> None:
        self.rows, self.encode = rows, encode

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        *texts, label = self.rows[index]
        return {k: v[0] for k, v in self.encode(*texts).items()} | {"labels": torch.tensor(label)}


def _tokenizer(name: str, vocabulary: str | Path | None) -> Any:
    bert = library("transformers").BertTokenizer
    if vocabulary is None:
        return bert.from_pretrained(name)
    path = Path(vocabulary)
    if not (path / "vocab.txt" if path.is_dir() else path).is_file():
        raise FileNotFoundError(
            f"there is no vocabulary {path}; give a vocab.txt, or a folder that holds one"
        )
    return bert(str(path / "vocab.txt" if path.is_dir() else path))
