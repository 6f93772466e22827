"""Digit scenes and reviews: what they hold, that they repeat, that train and test share nothing."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from minqbook.zoo import data, photos, reviews, scenes, spell, text


@pytest.mark.parametrize("split", data.SPLITS)
def test_digits_are_scikit_learns(split):
    images, classes = data.glyphs(split)
    digits = load_digits()
    rows = slice(0, 1347) if split == "train" else slice(1347, None)
    assert torch.equal(images[:, 0] * 16, torch.from_numpy(digits.images[rows]).float())
    assert classes.tolist() == digits.target[rows].tolist()


def test_train_and_test_share_no_digit_and_no_pixel():
    prints = [
        {hashlib.sha256(g.numpy().tobytes()).digest() for g in data.glyphs(s)[0]}
        for s in data.SPLITS
    ]
    assert not prints[0] & prints[1]
    for (package, inside, name), left, right in zip(
        photos.PHOTOS, photos.parts(0.7, right=False), photos.parts(0.7, right=True), strict=True
    ):
        whole = photos.read(photos.folder(package, inside) / name)
        together = torch.cat([left, right], 2).permute(1, 2, 0)
        assert torch.equal(together, torch.from_numpy(whole))
        assert left.shape[2] > 2 * right.shape[2]


def test_backgrounds_of_train_lie_left_and_those_of_test_right(monkeypatch):
    """Photos that are black up to 70 % of their width and white from there."""
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:, 42:] = 255
    monkeypatch.setattr(photos, "read", lambda path: photo)
    for split, level in (("train", 0), ("test", 1)):
        photos.parts.cache_clear()
        try:
            found = data.backgrounds.__wrapped__(split)
        finally:
            photos.parts.cache_clear()
        assert len(found) == len(photos.PHOTOS) and all((p == level).all() for p in found)


@pytest.mark.parametrize("split", data.SPLITS)
def test_scenes_take_their_pictures_from_their_split_alone(split, monkeypatch):
    """The two sources of scenes, which the tests above compare, are asked for that split only."""
    calls = []
    for name in ("glyphs", "backgrounds"):
        original = getattr(data, name)
        monkeypatch.setattr(data, name, lambda s, f=original: (calls.append(s), f(s))[1])
    scenes(2, split)
    assert calls == [split, split]


@pytest.mark.parametrize("size, digits", [(32, 1), (48, 3), (33, 4)])
def test_scenes_have_the_shapes_and_values_they_promise(size, digits):
    s = scenes(40, "test", 1, size=size, digits=digits)
    assert s.images.shape == (40, 3, size, size) and s.images.dtype == torch.float32
    assert s.images.min() >= -2 and s.images.max() <= 2 and s.images.std() > 0.5
    assert s.labels.dtype == torch.int64 and set(s.labels.tolist()) <= set(range(10))
    assert s.masks.dtype == torch.int64 and 0 <= s.masks.min() and s.masks.max() <= 10
    assert s.boxes.shape == (40, digits, 5)
    present = (s.boxes[..., 4] >= 0).sum(1)
    assert present.min() >= 1 and present.max() == digits
    assert (s.boxes[s.boxes[..., 4] < 0] == -1).all()


def test_masks_boxes_and_labels_tell_one_story():
    s = scenes(60, "train", 2, size=48, digits=3)
    whole = overlapping = 0
    for mask, boxes, label in zip(s.masks, s.boxes, s.labels, strict=True):
        boxes = boxes[boxes[:, 4] >= 0]
        assert boxes[0, 4] == label
        assert set(mask.unique().tolist()) == {0, *(int(c) + 1 for c in boxes[:, 4])}
        for left, top, right, bottom, digit in boxes.int().tolist():
            inside = mask[top:bottom, left:right] == digit + 1
            whole += 1
            # Each side of the box touches ink, unless a neighbour covers it.
            overlapping += not all(
                (inside[0].any(), inside[-1].any(), inside[:, 0].any(), inside[:, -1].any())
            )
        covered = torch.zeros_like(mask, dtype=torch.bool)
        for left, top, right, bottom, _ in boxes.int().tolist():
            covered[top:bottom, left:right] = True
        assert not mask[~covered].any()
    assert whole > 90 and overlapping <= 2


def test_a_digit_can_be_told_from_what_lies_around_it():
    s = scenes(200, "train", 0)
    on, off = s.masks[:, None] > 0, s.masks[:, None] == 0
    colour = [(s.images * m).sum((2, 3)) / m.sum((2, 3)) for m in (on, off)]
    assert (colour[0] - colour[1]).norm(dim=1).quantile(0.1) > 0.5


@pytest.mark.parametrize("make", [lambda *a: scenes(5, *a), lambda *a: reviews(5, *a)])
def test_the_same_seed_gives_the_same_data_and_another_seed_others(make):
    first = make("train", 7)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, make("train", 7), strict=True))
    for other in (make("train", 8), make("test", 7)):
        assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("arguments, error, message", [
    ({"count": 0}, ValueError, "count must be at least 1"),
    ({"count": True}, TypeError, "positive whole number"),
    ({"count": 1, "split": "validation"}, ValueError, "split must be 'train' or 'test'"),
    ({"count": 1, "seed": -1}, ValueError, "seed must be from 0"),
    ({"count": 1, "size": 200}, ValueError, "size must be from 16 to 64"),
    ({"count": 1, "digits": 5}, ValueError, "digits must be from 1 to 4"),
    ({"count": 1, "digits": 1.5}, TypeError, "positive whole number"),
])  # fmt: skip
def test_scenes_refuse_what_makes_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        scenes(**arguments)


def read(words):
    """What the asked person thinks: a second reading of the language, clause by clause."""
    strength = {"superb": 2, "nice": 1, "plain": 0, "dull": -1, "awful": -2, "loved": 2}
    factor = {"slightly": 0.5, "very": 2, "not": -0.5, "never": -0.5}
    question, story = words.split(" ? [sep] ")
    thinks = {}
    for clause in story.split(" ."):
        clause = [w for w in clause.split() if w not in ("and", "but")]
        if not clause:
            continue
        if "with" in clause:
            thinks[clause[0]] = thinks[clause[-1]] * (1 if "agree" in clause else -1)
            continue
        value = 1.0
        for word in clause:
            value *= strength.get(word, factor.get(word, 1))
        thinks[clause[0]] = value
    value = thinks.get(question)
    return 3 if value is None else 0 if value < -0.75 else 2 if value > 0.75 else 1


def test_reviews_mean_what_their_class_says(monkeypatch):
    """Every word legible and few adjectives, so that the reader above stays short."""
    monkeypatch.setattr(text, "_ILLEGIBLE", 0.0)
    words = {2: "superb", 1: "nice", 0: "plain", -1: "dull", -2: "awful"}
    monkeypatch.setattr(text, "ADJECTIVES", words)
    monkeypatch.setattr(text, "_FACTOR", {"slightly": 0.5, "very": 2.0})
    monkeypatch.setattr(text, "VERBS", {2: "loved"})
    tokens, classes = reviews(400, "train", 3)
    assert [read(spell(t)) for t in tokens] == classes.tolist()
    assert torch.bincount(classes, minlength=4).min() > 30


def test_reviews_are_tokens_with_padding_behind():
    tokens, classes = reviews(300, "test")
    assert tokens.shape == (300, text.LENGTH) and tokens.dtype == classes.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < len(text.VOCABULARY)
    assert ((tokens == 0).int().diff(dim=1) >= 0).all() and (tokens[:, 0] > 0).all()
    illegible = (tokens == 1).sum() / (tokens > 0).sum()
    assert 0.03 < illegible < 0.05 and not (tokens[:, :3] == 1).any()


def test_train_and_test_share_no_review(monkeypatch):
    """In a language so small that every sentence comes up often."""
    for name, few in {
        "_ILLEGIBLE": 0.0,
        "PEOPLE": ["anna", "ben", "carla"],
        "THINGS": ["price"],
        "VERBS": {2: "loved"},
        "ADJECTIVES": {1: "good"},
        "_FACTOR": {},
    }.items():
        monkeypatch.setattr(text, name, few)
    train, again, test = (
        {spell(t) for t in reviews(3000, *where)[0]}
        for where in (("train", 0), ("train", 1), ("test", 0))
    )
    assert len(train & again) > 100 and not train & test
