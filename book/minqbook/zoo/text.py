"""A small language of reviews: who thinks what of what, for a classifier with attention.

    anna ? [sep] ben called the screen not bad . but anna did agree with ben .   -> neutral

The first word asks for one person. The answer is what that person thinks: 0 negative, 1 neutral,
2 positive, 3 unknown. It takes finding the clause, weighing adjective, intensifier and negation,
and following "agree with" and "disagree with" to somebody else's clause. Some words are illegible,
so nobody can be right every time.
"""

from __future__ import annotations

import random
import zlib

import torch
from torch import Tensor

from minq._checks import check_count
from minqbook.zoo.data import check_split
from minqbook.zoo.photos import generator

LENGTH = 30
CLASSES = ("negative", "neutral", "positive", "unknown")

PEOPLE = "anna ben carla david emma felix".split()
THINGS = (
    "screen battery keyboard camera speaker price design story acting music ending plot cast "
    "sound hinge cable handle colour size service"
).split()
ADJECTIVES = {
    2: "superb brilliant outstanding perfect",
    1: "good nice decent pleasant solid",
    0: "average ordinary usual plain",
    -1: "bad weak dull poor clumsy",
    -2: "awful terrible dreadful horrible",
}
INTENSIFIERS = {0.5: "slightly rather somewhat", 1.0: "", 2.0: "very really truly"}
VERBS = {2: "loved", 1: "liked", -1: "disliked", -2: "hated"}
_OTHERS = "[pad] [unk] [sep] ? . the called found not never did agree disagree with and but"

VOCABULARY = tuple(
    dict.fromkeys(
        [*_OTHERS.split(), *PEOPLE, *THINGS, *VERBS.values()]
        + " ".join([*ADJECTIVES.values(), *INTENSIFIERS.values()]).split()
    )
)
"""Every word; a token is the word's place in this list, 0 is padding."""

_TOKEN = {word: i for i, word in enumerate(VOCABULARY)}
_SCORE = {word: float(s) for s, words in ADJECTIVES.items() for word in words.split()}
_FACTOR = {word: f for f, words in INTENSIFIERS.items() for word in words.split()}
_ILLEGIBLE = 0.04  # of the words after the question


def opinion(words: list[str]) -> float:
    """What "not very good" and the like amount to, from -4 to 4.

    A negation turns half of it round: "not superb" is bad, "not bad" is neither.

    >>> opinion(["very", "good"]), opinion(["not", "superb"]), opinion(["not", "bad"])
    (2.0, -1.0, 0.5)
    """
    value = 1.0
    for word in words:
        value *= _SCORE.get(word, _FACTOR.get(word, -0.5 if word in ("not", "never") else 1.0))
    return value


def verdict(value: float) -> int:
    """0 negative below -0.75, 2 positive above 0.75, 1 neutral between them."""
    return 0 if value < -0.75 else 2 if value > 0.75 else 1


def _sentence(draw: random.Random) -> tuple[list[str], int]:
    """One review and its class."""
    speakers = draw.sample(PEOPLE, draw.randint(1, 3))
    values: dict[str, float] = {}
    text: list[str] = []
    for i, person in enumerate(speakers):
        if i:
            text.append(draw.choice(["and", "but"]))
        form = draw.random()
        if i and form < 0.4:
            other = draw.choice(speakers[:i])
            agrees = draw.random() < 0.5
            text += [person, "did", "agree" if agrees else "disagree", "with", other]
            values[person] = values[other] if agrees else -values[other]
        elif form < 0.6:
            verb = draw.choice(list(VERBS))
            denial = ["never"] if draw.random() < 0.4 else []
            text += [person, *denial, VERBS[verb], "the", draw.choice(THINGS)]
            values[person] = verb * (-0.5 if denial else 1.0)
        else:
            phrase = draw.choice(["not", "never", "", ""]).split()
            phrase += draw.choice(["", "", *_FACTOR]).split()
            phrase += [draw.choice(ADJECTIVES[draw.choice(list(ADJECTIVES))].split())]
            text += [person, draw.choice(["called", "found"]), "the", draw.choice(THINGS), *phrase]
            values[person] = opinion(phrase)
        text.append(".")
    asked = draw.choice(PEOPLE) if draw.random() < 0.2 else draw.choice(speakers)
    label = verdict(values[asked]) if asked in values else 3
    return [asked, "?", "[sep]", *text], label


def reviews(count: int, split: str = "train", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random reviews as tokens, (count, 30), int64, 0 behind the end; and classes, (count,), int64.

    A sentence belongs to one split only, by a checksum of its words. The same arguments give the
    same reviews.

    >>> tokens, classes = reviews(1, "test", seed=1)
    >>> len(spell(tokens[0])) > 20
    True
    """
    count, split = check_count(count, "count"), check_split(split)
    start = torch.randint(2**62, (), generator=generator(seed, f"reviews {split}"))
    draw = random.Random(int(start))
    tokens, classes = torch.zeros(count, LENGTH, dtype=torch.int64), []
    while len(classes) < count:
        words, label = _sentence(draw)
        if (zlib.crc32(" ".join(words).encode()) % 4 == 0) != (split == "test"):
            continue
        ids = [
            _TOKEN[w] if i < 3 or draw.random() >= _ILLEGIBLE else 1 for i, w in enumerate(words)
        ]
        tokens[len(classes), : len(ids)] = torch.tensor(ids)
        classes.append(label)
    return tokens, torch.tensor(classes)


def spell(tokens: Tensor) -> str:
    """The words of one review: (30,) tokens to a line of text."""
    return " ".join(VOCABULARY[t] for t in tokens.tolist() if t)
