"""Metrics of the paper's tables against scikit-learn, SciPy, and a count by hand."""

import numpy as np
import pytest
import tiny_data
import torch
from scipy import stats
from sklearn import metrics as sk

from minqbook.tables import data, metrics
from minqbook.tables.rows import ROWS

pytest.importorskip("torchmetrics", reason="these rows need requirements-models.txt")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dataset(classes):
    return data.Data(classes, None, None, None)


def score(metric, outputs, targets, pieces=3):
    for x, y in zip(outputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True):
        metric.update({metric.key: x} if metric.key else x, y)
    return metric.compute()


def test_top_1_is_the_share_of_right_answers():
    logits, labels = random(50, 7), torch.arange(50) % 7
    logits[torch.arange(50), labels] += 1
    expected = 100 * sk.accuracy_score(labels, logits.argmax(1))
    assert 30 < expected < 95
    metric = metrics.metric_of(ROWS["resnet18"], dataset(7))
    assert score(metric, logits, labels) == pytest.approx(expected, rel=1e-6)


def test_mean_iou_counts_neither_the_edges_nor_classes_that_are_nowhere():
    logits, masks = random(6, 21, 9, 8), torch.randint(0, 5, (6, 9, 8))
    logits[:, 5:] = -9.0
    masks[:, 2] = 255
    counted = masks != 255
    expected = sk.jaccard_score(masks[counted], logits.argmax(1)[counted], average="macro")
    metric = metrics.metric_of(ROWS["deeplab_v3"], dataset(21))
    assert score(metric, logits, masks) == pytest.approx(100 * expected, rel=1e-5)


ORACLES = {
    "cola": lambda y, a: sk.matthews_corrcoef(y, a),
    "sst2": lambda y, a: sk.accuracy_score(y, a),
    "mrpc": lambda y, a: (sk.accuracy_score(y, a) + sk.f1_score(y, a)) / 2,
    "stsb": lambda y, a: (stats.pearsonr(y, a)[0] + stats.spearmanr(y, a)[0]) / 2,
    "qqp": lambda y, a: (sk.accuracy_score(y, a) + sk.f1_score(y, a)) / 2,
    "mnli": lambda y, a: sk.accuracy_score(y, a),
    "qnli": lambda y, a: sk.accuracy_score(y, a),
    "rte": lambda y, a: sk.accuracy_score(y, a),
}


@pytest.mark.parametrize("task", data.GLUE)
def test_each_task_of_glue_has_its_scores(task):
    classes = {"stsb": 1, "mnli": 3}.get(task, 2)
    if classes == 1:
        labels = (torch.arange(40) % 11) / 2  # many ties
        logits = labels[:, None] + random(40, 1)
        answers = logits[:, 0]
    else:
        labels = (random(40, seed=1) > 0.4).long() * (classes - 1)
        logits = random(40, classes)
        logits[torch.arange(40), labels] += 0.7
        answers = logits.argmax(1)
    metric = metrics.metric_of(ROWS["bert_base"], dataset(classes), task)
    expected = 100 * ORACLES[task](labels.numpy(), answers.numpy())
    assert score(metric, logits, labels) == pytest.approx(expected, rel=1e-4)


def test_the_same_answer_for_everything_correlates_with_nothing():
    metric = metrics.metric_of(ROWS["bert_base"], dataset(1), "stsb")
    with pytest.warns(UserWarning, match="variance"):
        assert score(metric, torch.ones(9, 1), torch.arange(9.0)) == 0


# --- Boxes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tiny_data.coco(tmp_path_factory.mktemp("coco"))
    return data.open_data(ROWS["efficientdet_d1"], folder, 128)


def average_precision(boxes):
    """By hand, for one box of each of two classes in two pictures, largest overlap first.

    boxes: {class: [(score, IoU with the box that it finds, the picture)]}. Precision is sampled at
    101 values of recall.
    """
    values = []
    for level in np.arange(0.5, 1.0, 0.05):
        for found in boxes.values():
            hits, taken = [], set()
            for _, iou, picture in sorted(found, reverse=True):
                hit = iou >= level - 1e-9 and picture not in taken
                taken |= {picture} if hit else set()
                hits.append(hit)
            right = np.cumsum(hits)
            precision = right / np.arange(1, len(hits) + 1)
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            recall = right / 2
            at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
            values.append(np.mean([precision[k] if k < len(hits) else 0.0 for k in at]))
    return 100 * np.mean(values)


def moved(width, by):
    """The IoU of a box with itself, moved to the right."""
    return (width - by) / (width + by)


def test_average_precision_is_that_by_hand(pictures):
    """Boxes of width 60 and 61, moved; one found twice; one more where there is none."""
    answers = torch.zeros(3, 4, 6)  # score 0: no box
    truth = [(10, 20, 70, 60), (10, 20, 71, 60)]
    plan = [  # picture, class, score, moved by
        (0, 1, 0.9, 6), (1, 1, 0.8, 0), (0, 90, 0.7, 15), (1, 90, 0.6, 2), (0, 1, 0.95, 12),
    ]  # fmt: skip
    boxes = {1: [], 90: []}
    place = [0, 0, 0]
    for picture, kind, certain, by in plan:
        x0, y0, x1, y1 = truth[picture]
        box = torch.tensor([x0 + by, y0, x1 + by, y1, certain, kind])
        answers[picture, place[picture]] = box
        place[picture] += 1
        boxes[kind].append((certain, moved(x1 - x0, by), picture))
    answers[0, 3] = torch.tensor([10, 62, 70, 77, 0.99, 1])  # a crowd, which does not count
    answers[2, 0] = torch.tensor([1, 1, 30, 30, 0.85, 90])  # the picture without any box
    boxes[90].append((0.85, 0.0, 2))
    metric = metrics.CocoMap(pictures.test.coco)
    metric.update(answers[:2], {"image": torch.tensor([1, 2])})
    metric.update(answers[2:], {"image": torch.tensor([3])})
    expected = average_precision(boxes)
    assert 30 < expected < 80
    assert metric.compute() == pytest.approx(expected, abs=0.01)


def test_pictures_that_were_not_tested_are_not_missed(pictures):
    metric = metrics.CocoMap(pictures.test.coco)
    boxes = torch.tensor([[10.0, 20, 70, 60, 0.9, 1], [10, 20, 70, 60, 0.9, 90]])
    metric.update(boxes[None], {"image": torch.tensor([1])})
    assert metric.compute() == pytest.approx(100)


def test_no_box_at_all_is_worth_nothing(pictures):
    metric = metrics.CocoMap(pictures.test.coco)
    metric.update(torch.zeros(1, 100, 6), {"image": torch.tensor([1])})
    assert metric.compute() == 0


class Exact(torch.nn.Module):
    """A detector that answers with the first picture's boxes, by effdet's own coding of them."""

    def __init__(self, model, target):
        super().__init__()
        from effdet.anchors import Anchors

        self.target, self.model = target, model
        self.anchors = Anchors.from_config(model.config)

    def forward(self, x):
        config, scores, boxes = self.model.config, [], []
        anchors = self.anchors.boxes  # y0 x0 y1 x1
        middle, side = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        start = 0
        for level in range(config.min_level, config.max_level + 1):
            cells = 128 >> level
            many = cells * cells * 9
            here = slice(start, start + many)
            start += many
            score = torch.full((many, 90), -20.0)
            code = torch.zeros(many, 4)
            for box, kind in zip(self.target["bbox"][0], self.target["cls"][0], strict=True):
                wanted_middle, wanted_side = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
                near = (middle[here] - wanted_middle).norm(dim=1).argmin()
                score[near, kind - 1] = 3.0 if level == 3 else -20.0
                code[near, :2] = (wanted_middle - middle[here][near]) / side[here][near]
                code[near, 2:] = torch.log(wanted_side / side[here][near])
            scores.append(score.view(1, cells, cells, -1).permute(0, 3, 1, 2))
            boxes.append(code.view(1, cells, cells, -1).permute(0, 3, 1, 2))
        return scores, boxes


def test_what_a_network_codes_is_found_in_the_picture_as_it_was(pictures):
    from effdet import create_model

    model = create_model(
        "tf_efficientdet_d0", pretrained_backbone=False, image_size=(128, 128)
    )  # only its settings count, and they are those of D1
    x, target = pictures.collate([pictures.test[0]])
    found = metrics.Boxes(model)(Exact(model, target), x, target)
    metric = metrics.CocoMap(pictures.test.coco)
    metric.update(found, target)
    assert metric.compute() == pytest.approx(100)
    first = found[0, 0]
    assert sorted(found[0, :2, 5].tolist()) == [1, 90] and first[4] > 0.9
    torch.testing.assert_close(first[:4], torch.tensor([10.0, 20, 70, 60]), atol=0.05, rtol=0)
