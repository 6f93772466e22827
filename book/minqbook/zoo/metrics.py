"""Accuracy in percent: top-1 of a classifier, mIoU of a segmenter, AP50 of a detector."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

MOST = 20  # detections kept for each picture


def top1(logits: Tensor, labels: Tensor) -> float:
    """How often the largest logit is the label's: (N, classes) and (N,).

    >>> top1(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
    50.0
    """
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def confusion(classes: Tensor, truth: Tensor, count: int) -> Tensor:
    """How many elements of class i (rows) were called j (columns): (count, count), int64."""
    return torch.bincount((truth * count + classes).flatten(), minlength=count**2).view(count, -1)


def mean_iou(table: Tensor) -> float:
    """The mean over classes of |truth and answer| / |truth or answer|, from a confusion matrix.

    Classes that are in neither count for nothing.

    >>> mean_iou(torch.tensor([[2, 2, 0], [0, 4, 0], [0, 0, 0]]))  # 2/4 and 4/6
    58.333...
    """
    both = table.diagonal().double()
    either = table.sum(0) + table.sum(1) - both
    return 100 * (both / either)[either > 0].mean().item()


def points(size: int, strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The points that a detector answers for: centres (P, 2) as x, y in pixels; strides (P, 1)."""
    centres, steps = [], []
    for stride in strides:
        line = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(line, line, indexing="ij")
        centres.append(torch.stack([x, y], 2).reshape(-1, 2))
        steps.append(torch.full((len(centres[-1]), 1), float(stride)))
    return torch.cat(centres), torch.cat(steps)


def boxes_of(distances: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Distances to the four sides, in strides (..., P, 4), to boxes x0, y0, x1, y1 in pixels."""
    near, far = (strides * distances).split(2, -1)
    return torch.cat([centres - near, centres + far], -1)


def detections(
    logits: Tensor,
    distances: Tensor,
    size: int = 48,
    strides: tuple[int, ...] = (4, 8),
    threshold: float = 0.05,
) -> Tensor:
    """A detector's answers as boxes, the less certain of two that overlap by half removed.

    Returns (N, 20, 6): x0, y0, x1, y1, score, class, most certain first; score 0 where there is
    none.
    """
    boxes = boxes_of(distances, *points(size, strides))
    scores = logits.sigmoid()
    image, point, kind = torch.nonzero(scores > threshold, as_tuple=True)
    score = scores[image, point, kind]
    keep = batched_nms(boxes[image, point], score, image * scores.shape[2] + kind, 0.5)
    found = torch.zeros(len(logits), MOST, 6)
    row = torch.cat([boxes[image, point], score[:, None], kind[:, None].float()], 1)[keep]
    image = image[keep]
    # keep is sorted by score; a stable sort by picture leaves that order within each.
    order = image.argsort(dim=0, stable=True)
    image, row = image[order], row[order]
    start = torch.searchsorted(image, torch.arange(len(logits)))
    rank = torch.arange(len(image)) - start[image]
    found[image[rank < MOST], rank[rank < MOST]] = row[rank < MOST]
    return found


def average_precision(found: Tensor, truth: Tensor, iou: float = 0.5) -> float:
    """The area under precision against recall, at IoU 0.5, the mean over the classes: AP50.

    found: (N, D, 6) as ``detections`` gives them. truth: (N, K, 5) boxes and classes, class -1 for
    none. The most certain detection comes first; it is right if it overlaps a box of its class that
    no other took, and takes the one it overlaps most. Precision is made falling before the area is
    taken, as in Pascal VOC since 2010.
    """
    n, most = found.shape[:2]
    order = found[..., 4].argsort(dim=1, descending=True, stable=True)
    found = found.gather(1, order[..., None].expand(-1, -1, 6))
    overlap = _pairwise_iou(found[..., :4], truth[..., :4])
    overlap[found[..., 5, None] != truth[:, None, :, 4]] = 0.0
    free = truth[..., 4] >= 0
    right = torch.zeros(n, most, dtype=torch.bool)
    for d in range(most):  # all pictures at once
        best, which = (overlap[:, d] * free).max(1)
        right[:, d] = (best >= iou) & (found[:, d, 4] > 0)
        free[torch.arange(n)[right[:, d]], which[right[:, d]]] = False

    areas = []
    for kind in truth[..., 4].unique():
        if kind < 0:
            continue
        mine = (found[..., 5] == kind) & (found[..., 4] > 0)
        hits = right[mine][
            found[..., 4][mine].argsort(dim=0, descending=True, stable=True)
        ].double()
        boxes = (truth[..., 4] == kind).sum()
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        precision = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
        areas.append((precision * hits).sum() / boxes)  # recall grows by 1 / boxes at each hit
    return 100 * torch.stack(areas).mean().item() if areas else 0.0


def _pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, D, 4) and (N, K, 4) boxes to (N, D, K)."""
    corner = torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    far = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    both = (far - corner).clamp(min=0).prod(3)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(2) for x in (a, b)]
    return both / (areas[0][:, :, None] + areas[1][:, None] - both).clamp(min=1e-9)
