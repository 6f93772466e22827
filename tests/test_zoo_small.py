"""The eight small networks: loading, accuracy, capture, training."""

import pickle

import pytest
import torch
from networks import zoo_graph
from safetensors.torch import load_file, save, save_file

from minqbook import zoo
from minqbook.zoo import metrics, models, small, train

each = pytest.mark.parametrize("name", zoo.NAMES)


# --- the accuracies, against cases done by hand


def test_top1_counts():
    logits = torch.eye(4)[[0, 1, 2, 2]]
    assert metrics.top1(logits, torch.tensor([0, 1, 2, 3])) == 75.0


def test_mean_iou_of_a_picture_done_by_hand():
    truth = torch.tensor([[[0, 0, 1], [0, 2, 1]]])
    answer = torch.tensor([[[0, 1, 1], [0, 2, 2]]])
    table = metrics.confusion(answer, truth, 5)
    # class 0: 2 of 3; class 1: 1 of 3; class 2: 1 of 2; classes 3 and 4 do not occur
    assert metrics.mean_iou(table) == pytest.approx(100 * (2 / 3 + 1 / 3 + 1 / 2) / 3)


def boxes(*rows):
    return torch.tensor([rows], dtype=torch.float32)


SQUARE, ELSEWHERE = (0, 0, 10, 10), (20, 20, 30, 30)


@pytest.mark.parametrize("found, truth, expected", [
    # right
    (boxes((*SQUARE, 0.9, 3)), boxes((*SQUARE, 3)), 100),
    # another class; nothing there; nothing found
    (boxes((*SQUARE, 0.9, 2)), boxes((*SQUARE, 3)), 0),
    (boxes((*ELSEWHERE, 0.9, 3)), boxes((*SQUARE, 3)), 0),
    (boxes((*SQUARE, 0.0, 3)), boxes((*SQUARE, 3)), 0),
    # IoU 50 / 100 is enough, 49 / 100 is not
    (boxes((0, 0, 5, 10, 0.9, 3)), boxes((*SQUARE, 3)), 100),
    (boxes((0, 0, 4.9, 10, 0.9, 3)), boxes((*SQUARE, 3)), 0),
    # a false alarm before the right one: precision 1/2; behind it: no harm
    (boxes((*ELSEWHERE, 0.9, 3), (*SQUARE, 0.8, 3)), boxes((*SQUARE, 3)), 50),
    (boxes((*SQUARE, 0.9, 3), (*ELSEWHERE, 0.8, 3)), boxes((*SQUARE, 3)), 100),
    # found twice: the second is a false alarm, and half of the boxes are never found
    (boxes((*SQUARE, 0.9, 3), (*SQUARE, 0.8, 3)), boxes((*SQUARE, 3), (*ELSEWHERE, 3)), 50),
    # right, wrong, right: 1/2 * 1 + 1/2 * 2/3
    (boxes((*SQUARE, 0.9, 3), (40, 0, 48, 9, 0.8, 3), (*ELSEWHERE, 0.7, 3)),
     boxes((*SQUARE, 3), (*ELSEWHERE, 3)), 100 * (1 / 2 + 1 / 3)),
    # wrong, right, right: precision made falling, 2/3 everywhere
    (boxes((40, 0, 48, 9, 0.95, 3), (*SQUARE, 0.9, 3), (*ELSEWHERE, 0.7, 3)),
     boxes((*SQUARE, 3), (*ELSEWHERE, 3)), 100 * 2 / 3),
    # one class found, the other not; absent rows count for nothing
    (boxes((*SQUARE, 0.9, 3), (0,) * 6), boxes((*SQUARE, 3), (*ELSEWHERE, 5), (-1,) * 5), 50),
])  # fmt: skip
def test_average_precision_done_by_hand(found, truth, expected):
    assert metrics.average_precision(found, truth) == pytest.approx(expected, abs=1e-4)


def test_average_precision_looks_at_all_pictures_together():
    """The surer false alarm of one picture comes before the right answer of another."""
    found = torch.cat([boxes((*ELSEWHERE, 0.9, 3)), boxes((*SQUARE, 0.8, 3))])
    truth = torch.cat([boxes((*SQUARE, 3)), boxes((*SQUARE, 3))])
    assert metrics.average_precision(found, truth) == pytest.approx(25)


def slow_average_precision(found, truth):
    """The same by the book: one class, one detection after another, torchvision's IoU."""
    from torchvision.ops import box_iou

    areas = []
    for kind in {int(c) for c in truth[..., 4].flatten() if c >= 0}:
        rows = [
            (-float(r[4]), i, r[:4])
            for i, f in enumerate(found)
            for r in f
            if r[4] > 0 and r[5] == kind
        ]
        total, taken, hits = int((truth[..., 4] == kind).sum()), set(), []
        for _, i, box in sorted(rows, key=lambda row: row[0]):
            mine = [j for j, t in enumerate(truth[i]) if t[4] == kind and (i, j) not in taken]
            ious = {j: float(box_iou(box[None], truth[i, j, None, :4])) for j in mine}
            best = max(ious, key=ious.get, default=None)
            hits.append(best is not None and ious[best] >= 0.5)
            if hits[-1]:
                taken.add((i, best))
        precision = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
        areas.append(sum(max(precision[n:]) for n, hit in enumerate(hits) if hit) / total)
    return 100 * sum(areas) / len(areas)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_the_slow_one(seed):
    random = torch.Generator().manual_seed(seed)
    truth = small.test_set("detector", 30, seed)[1]
    found = truth[:, [0, 1, 2, 0, 1, 2]]
    found = torch.cat([found[..., :4], torch.rand(30, 6, 1, generator=random), found[..., 4:]], 2)
    found[..., :4] += 3 * torch.randn(30, 6, 4, generator=random)
    found[..., 5] += torch.rand(30, 6, generator=random) < 0.1
    found[found[..., 5] < 0] = 0.0
    expected = slow_average_precision(found, truth)
    assert 20 < expected < 90
    assert metrics.average_precision(found, truth) == pytest.approx(expected)


def test_a_detector_that_knows_the_boxes_is_right():
    """Boxes to distances and back, through the removal of doubles."""
    truth = small.test_set("detector", 20)[1]
    centres, strides = metrics.points(48, (4, 8))
    assert centres[0].tolist() == [2, 2] and centres[145].tolist() == [12, 4]
    logits, distances = torch.full((20, 180, 10), -9.0), torch.zeros(20, 180, 4)
    for i, rows in enumerate(truth):
        for x0, y0, x1, y1, digit in rows[rows[:, 4] >= 0].tolist():
            middle = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2])
            for p in (
                (centres - middle).norm(dim=1).argsort()[:3].tolist()
            ):  # it says so three times
                (x, y), stride = centres[p].tolist(), strides[p].item()
                distances[i, p] = torch.tensor([x - x0, y - y0, x1 - x, y1 - y]) / stride
                logits[i, p, int(digit)] = 5.0
    found = metrics.detections(logits, distances)
    assert found.shape == (20, metrics.MOST, 6)
    assert ((found[..., 4] > 0).sum(1) == (truth[..., 4] >= 0).sum(1)).all()
    assert metrics.average_precision(found, truth) == 100


# --- the shipped weights


@each
def test_weights_are_small_and_reach_the_accuracy_they_claim(name):
    path = small.WEIGHTS / f"{name}.safetensors"
    assert path.stat().st_size < 2**20
    facts = zoo.info(name)
    assert facts["network"] == name and facts["metric"] == zoo.METRICS[name]
    assert f"zoo.train {name} --epochs {facts['epochs']} --seed {facts['seed']}" in facts["command"]
    claimed = float(facts["accuracy"])
    assert claimed > {"segmenter": 45, "detector": 50}.get(name, 88)
    model = zoo.load(name)
    assert not model.training
    assert zoo.evaluate(model, name) == pytest.approx(claimed, abs=0.2)


@each
def test_it_is_captured_with_a_free_batch_size(name):
    x = zoo.calibration_set(name, 5)
    with torch.no_grad():
        outputs = [f(x) for f in (zoo_graph(name), zoo.load(name))]
    for got, expected in zip(*(o if isinstance(o, tuple) else (o,) for o in outputs), strict=True):
        assert len(got) == 5
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@each
def test_the_network_has_its_family_marks(name):
    model = models.build(name)
    kinds = [type(m).__name__ for m in model.modules()]
    assert sum(p.numel() for p in model.state_dict().values()) < 250_000
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    depthwise = sum(m.groups == m.in_channels > 3 for m in convolutions)
    marks = {
        "resnet_basic": kinds.count("BasicBlock") == 6 and not depthwise,
        "resnet_bottleneck": kinds.count("Bottleneck") == 6 and not depthwise,
        "mobilenet_v2": depthwise == kinds.count("InvertedResidual") == 9 and "ReLU6" in kinds,
        "inception": kinds.count("InceptionBlock") == 4 and "AvgPool2d" in kinds,
        "efficientnet_lite": any(m.kernel_size == (5, 5) for m in convolutions),
        "segmenter": {m.dilation[0] for m in convolutions} == {1, 2, 4, 6},
        "detector": depthwise > 10,
        "text_encoder": "LayerNorm" in kinds and "GELU" in kinds and not convolutions,
    }
    assert marks[name]


# --- files that are not what they should be


def test_an_unknown_name_is_answered_with_the_names():
    def evaluate(name):
        return zoo.evaluate(torch.nn.Identity(), name, (torch.zeros(1, 2), torch.zeros(1)))

    for function in (zoo.load, zoo.info, zoo.test_set, zoo.calibration_set, train.train, evaluate):
        with pytest.raises(ValueError, match="no small network 'vgg'; there are resnet_basic, "):
            function("vgg")


def test_a_missing_file_is_answered_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m minqbook.zoo.train inception"):
        zoo.load("inception", tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -5])
def test_a_damaged_file_is_refused(tmp_path, keep):
    whole = save(models.build("inception").state_dict())
    (tmp_path / "w.safetensors").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match="w.safetensors is damaged"):
        zoo.load("inception", tmp_path / "w.safetensors")


def test_a_pickle_in_disguise_is_refused_and_does_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    for write in (lambda p: p.write_bytes(pickle.dumps(Trap())), lambda p: torch.save(Trap(), p)):
        write(tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            zoo.load("inception", tmp_path / "w.safetensors")
        assert not (tmp_path / "sprung").exists()


def test_another_networks_file_is_refused(tmp_path):
    tensors = models.build("inception").state_dict()
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of resnet_basic: Missing key"):
        zoo.load("resnet_basic", tmp_path / "w.safetensors")
    tensors["classifier.bias"] = torch.zeros(11)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of inception: size mismatch"):
        zoo.load("inception", tmp_path / "w.safetensors")


def test_evaluate_wants_an_answer_for_each_input():
    with pytest.raises(ValueError, match="3 inputs and 2 answers"):
        zoo.evaluate(torch.nn.Identity(), "inception", (torch.zeros(3, 10), torch.zeros(2)))


# --- training


@pytest.mark.parametrize("name", ["mobilenet_v2", "detector", "text_encoder"])
def test_an_interrupted_training_ends_as_one_that_was_not(name, tmp_path, monkeypatch):
    monkeypatch.setattr(small, "test_set", lambda name: small.labelled(name, 8, "test", 0))
    settings = {"epochs": 2, "epoch_batches": 2, "batch": 4, "seed": 3}
    through = tmp_path / "through.safetensors"
    train.train(name, out=through, **settings)
    parts = tmp_path / "parts.safetensors"
    train.train(name, out=parts, stop_after=3, **settings)  # one batch after the checkpoint
    assert not parts.exists() and parts.with_suffix(".checkpoint").exists()
    torch.rand(7)
    train.train(name, out=parts, **settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == [parts.name, through.name]
    one, other, fresh = load_file(through), load_file(parts), models.build(name).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in fresh)
    assert not all(torch.equal(one[key], fresh[key]) for key in fresh)
    assert zoo.info(name, parts)["seed"] == "3"


def test_a_checkpoint_of_another_training_is_not_continued(tmp_path):
    settings = {"epoch_batches": 1, "batch": 4, "out": tmp_path / "w.safetensors", "stop_after": 1}
    train.train("inception", epochs=2, **settings)
    with pytest.raises(ValueError, match="another training.*delete it"):
        train.train("inception", epochs=3, **settings)


def test_every_batch_is_new(tmp_path, monkeypatch):
    asked, labelled = [], small.labelled

    def spy(name, count, split, seed):
        asked.append((split, seed))
        return labelled(name, count, split, seed)

    monkeypatch.setattr(small, "labelled", spy)
    for seed in (0, 1):
        file = tmp_path / f"{seed}.safetensors"
        train.train(
            "inception", epochs=4, epoch_batches=1, batch=2, seed=seed, out=file, stop_after=3
        )
    assert len(set(asked)) == 6 and {split for split, _ in asked} == {"train"}


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):
    state = torch.get_rng_state()
    train.train("inception", epochs=2, epoch_batches=1, batch=2, out=tmp_path / "w", stop_after=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_detection_loss_is_least_for_the_right_answer():
    """Of all boxes and classes around the truth, the truth itself; points between digits say no."""
    truth = torch.tensor([[[4.0, 6.0, 14.0, 20.0, 7.0], [26.0, 24.0, 46.0, 46.0, 2.0], [-1.0] * 5]])
    centres, strides = metrics.points(48, (4, 8))

    def loss(digit=7, shift=0.0):
        logits, distances = torch.full((1, 180, 10), -9.0), torch.ones(1, 180, 4)
        for row, kind, stride in ((truth[0, 0], digit, 4), (truth[0, 1], 2, 8)):
            away = (centres - (row[:2] + row[2:4]) / 2).abs().amax(1)
            near = (strides[:, 0] == stride) & (away < stride)
            sides = torch.cat([centres - row[:2] - shift, row[2:4] - centres], 1) / strides
            distances[0, near], logits[0, near] = sides[near], -9.0
            logits[0, near, kind] = 9.0
        return train.detection_loss((logits, distances), truth).item()

    assert loss() < 1e-2 < min(loss(digit=1), loss(shift=2.0), loss(shift=-2.0))


def test_the_learning_rate_rises_and_falls_to_nothing():
    rates = [train.rate(i, 200, 1.0) for i in range(200)]
    assert max(rates) == rates[19] == 1.0 and rates[-1] == 0.0
    assert all(a < b for a, b in zip(rates[:19], rates[1:20], strict=True))
    assert all(a > b for a, b in zip(rates[19:], rates[20:], strict=False))
