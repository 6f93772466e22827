"""Digit scenes: handwritten digits, turned, stretched and coloured, on pieces of real photos.

One generator gives classes, masks and boxes. Digits and photos come with scikit-learn and
scikit-image; no digit and no pixel of a photo is in both splits.
"""

from __future__ import annotations

import functools
import gzip
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minq._checks import check_count
from minqbook.zoo import photos

SPLITS = ("train", "test")


class Scenes(NamedTuple):
    """images: (N, 3, size, size), float32, as (pixel / 255 - 0.5) / 0.25
    labels: (N,), int64, 0 to 9: the digit; with several digits, one of them
    masks: (N, size, size), int64, 0 for background, else digit + 1
    boxes: (N, digits, 5), float32: left, top, right, bottom in pixels, digit; digit -1: no box
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor


def check_split(split: str) -> str:
    """``split`` if it is one."""
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    return split


@functools.cache
def glyphs(split: str) -> tuple[Tensor, Tensor]:
    """Digits as they were written, (N, 1, 8, 8) from 0 to 1, and what they say, (N,).

    The first three quarters of scikit-learn's file train, the rest tests.
    """
    file = photos.folder("sklearn", "datasets/data") / "digits.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    cut = 3 * len(table) // 4
    table = table[:cut] if check_split(split) == "train" else table[cut:]
    return table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()


@functools.cache
def backgrounds(split: str) -> list[Tensor]:
    """The photos at half their size, (3, H, W) from 0 to 1: the left 70 % train, the rest tests."""
    parts = photos.parts(0.7, right=check_split(split) == "test")
    return [F.avg_pool2d(p.float() / 255, 2) for p in parts]


def scenes(
    count: int, split: str = "train", seed: int = 0, *, size: int = 32, digits: int = 1
) -> Scenes:
    """Random digit scenes: one digit each, or one to ``digits`` (at most 4), a quarter for each.

    The same arguments give the same scenes. A digit is written in a colour that differs from what
    lies under it by 0.35 to 0.85 of the full scale, fairly opaque; noise is added to every pixel.

    >>> scenes(5, "test", size=48, digits=3).boxes.shape
    torch.Size([5, 3, 5])
    """
    n, size = check_count(count, "count"), check_count(size, "size")
    digits = check_count(digits, "digits")
    if not 16 <= size <= 64:
        raise ValueError(f"size must be from 16 to 64, not {size}: the photos are small")
    if not 1 <= digits <= 4:
        raise ValueError(f"digits must be from 1 to 4, not {digits}")
    (shapes, classes), photo = glyphs(split), backgrounds(split)
    random = photos.generator(seed, f"scenes {split} {size} {digits}")

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random)

    images = torch.empty(n, 3, size, size)
    places = uniform(n, 4).tolist()
    for image, (which, top, left, mirror) in zip(images, places, strict=True):
        p = photo[int(which * len(photo))]
        y, x = int(top * (p.shape[1] - size + 1)), int(left * (p.shape[2] - size + 1))
        piece = p[:, y : y + size, x : x + size]
        image.copy_(piece.flip(2) if mirror < 0.5 else piece)

    masks = torch.zeros(n, size, size, dtype=torch.int64)
    boxes = torch.full((n, digits, 5), -1.0)
    # Digits hardly overlap: each has a cell of its own, the whole scene or a quarter of it.
    cells = 1 if digits == 1 else 2
    cell = uniform(n, cells**2).argsort(1)
    present = torch.randint(1, digits + 1, (n,), generator=random)
    for k in range(digits):
        which = torch.randint(len(shapes), (n,), generator=random)
        shape = F.grid_sample(
            shapes[which], _placement(cell[:, k], cells, size, uniform), align_corners=False
        )
        ink = (1.6 * shape).clamp(0, 1) * (present > k)[:, None, None, None]
        images = torch.lerp(
            images, _colour(images, ink, uniform), ink * uniform(n, 1, 1, 1, low=0.7)
        )
        hit = ink[:, 0] > 0.35
        masks = torch.where(hit, classes[which, None, None] + 1, masks)
        boxes[:, k] = _box(hit, classes[which])
        if k == 0:
            labels = classes[which]
    images += 0.05 * torch.randn(images.shape, generator=random)
    return Scenes((images.clamp_(0, 1) - 0.5) / 0.25, labels, masks, boxes)


def _placement(cell: Tensor, cells: int, size: int, uniform) -> Tensor:
    """Where each pixel of a scene lies in the digit: (N, size, size, 2), [-1, 1] inside.

    A digit fills 50 to 90 % of its cell, is stretched by up to 20 % and turned by up to 20 degrees.
    """
    n = len(cell)
    fill = uniform(n, low=0.5, high=0.9)
    half = torch.stack([fill * uniform(n, low=0.8, high=1.1), fill], 1) / cells
    corner = torch.stack([cell % cells, cell // cells], 1) * (2 / cells) - 1 + 1 / cells
    middle = corner + uniform(n, 2, low=-1) * (1 / cells - half).clamp(min=0)
    angle = uniform(n, low=-0.35, high=0.35)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    axis = (2 * torch.arange(size) + 1) / size - 1
    x = axis[None, None, :] - middle[:, 0, None, None]
    y = axis[None, :, None] - middle[:, 1, None, None]
    turned = torch.stack([cos * x + sin * y, cos * y - sin * x], 3)
    return turned / half[:, None, None, :]


def _colour(images: Tensor, ink: Tensor, uniform) -> Tensor:
    """A colour for each digit, away from the mean of what lies under it: (N, 3, 1, 1)."""
    n = len(images)
    under = (images * ink).sum((2, 3)) / ink.sum((2, 3)).clamp(min=1e-6)
    way = F.normalize(uniform(n, 3, low=-1)) * uniform(n, 1, low=0.35, high=0.85)
    ahead, back = (under + way).clamp(0, 1), (under - way).clamp(0, 1)
    farther = (ahead - under).norm(dim=1) > (back - under).norm(dim=1)
    return torch.where(farther[:, None], ahead, back)[:, :, None, None]


def _box(hit: Tensor, classes: Tensor) -> Tensor:
    """The smallest box around each mask of (N, size, size) and its class: (N, 5)."""
    edges = []
    for line in (hit.any(1), hit.any(2)):  # columns, then rows, with ink
        line = line.int()
        edges += [line.argmax(1), line.shape[1] - line.flip(1).argmax(1)]
    left, right, top, bottom = edges
    box = torch.stack([left, top, right, bottom, classes], 1).float()
    return torch.where(hit.any(2).any(1)[:, None], box, torch.tensor(-1.0))
