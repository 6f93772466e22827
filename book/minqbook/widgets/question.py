"""A question before a picture: the reader commits to an answer, then plays and sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Question:
    """What a widget asks before it opens: ``AffinePlayground(data, question=Question(...))``.

    text: the question. Either choices, at least two different ones, with answer the index of the
    right one; or low and high, with answer a number between them: the reader moves a slider in
    steps of step (default: a power of ten, 50 to 500 of them) and is told how far off the guess is.
    unit: of that number. because: why it is so, shown after the answer.

    All texts are plain: write x̂ and s², not LaTeX. Compute the answer, do not type it. What readers
    answer stays in their browser.

    >>> print(Question("One bit more: the squared error becomes", ["half", "a quarter"], answer=1))
    Question: One bit more: the squared error becomes
    half / a quarter
    Answer: a quarter
    >>> Question("How much is gained?", low=0, high=12, unit="dB", answer=6.02).step
    0.1

    Raises TypeError or ValueError for an empty text, fewer than two choices or equal ones, low and
    high that span no range, and an answer that is not among them.
    """

    text: str
    choices: Sequence[str] | None = None
    _: KW_ONLY
    answer: float
    because: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        _check_text(self.text, "text")
        for name in ("because", "unit"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, not {getattr(self, name)!r}")
        if self.choices is None:
            values = self._check_numbers()
        else:
            values = self._check_choices()
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_choices(self) -> dict[str, Any]:
        if self.low is not None or self.high is not None or self.step is not None or self.unit:
            raise ValueError("give either choices, or low and high (with step and unit), not both")
        if isinstance(self.choices, str) or not isinstance(self.choices, Sequence):
            raise TypeError(f"choices must be a list of strings, not {self.choices!r}")
        for choice in self.choices:
            _check_text(choice, "every choice")
        if not 2 <= len(set(self.choices)) == len(self.choices):
            raise ValueError(f"choices must be two or more, all different, not {self.choices!r}")
        if isinstance(self.answer, bool) or not isinstance(self.answer, Integral):
            raise TypeError(f"answer must be the index of a choice, not {self.answer!r}")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(
                f"answer must be the index of a choice, 0 to {len(self.choices) - 1}, "
                f"not {self.answer}"
            )
        return {"choices": tuple(self.choices), "answer": int(self.answer)}

    def _check_numbers(self) -> dict[str, Any]:
        if self.low is None or self.high is None:
            raise ValueError("a question needs choices, or low and high for a number")
        low, high, answer = (_number(getattr(self, n), n) for n in ("low", "high", "answer"))
        if not low < high:
            raise ValueError(f"low must be below high, not {low:g} and {high:g}")
        if not low <= answer <= high:
            raise ValueError(
                f"answer {answer:g} is outside low to high, {low:g} to {high:g}; widen them"
            )
        if self.step is None:
            step = 10.0 ** math.floor(math.log10((high - low) / 50))
        else:
            step = _number(self.step, "step")
        if not 0 < step <= high - low:
            raise ValueError(f"step must be above 0 and at most high - low, not {step:g}")
        return {"low": low, "high": high, "answer": answer, "step": step}

    def __str__(self) -> str:
        """The question and its answer in words, for where the page cannot ask."""
        if self.choices is None:
            offered = f"A number from {self.low:g} to {self.high:g} {self.unit}".rstrip()
            truth = f"{self.answer:.4g} {self.unit}".rstrip()
        else:
            offered, truth = " / ".join(self.choices), self.choices[int(self.answer)]
        answer = f"Answer: {truth}. {self.because}" if self.because else f"Answer: {truth}"
        return f"Question: {self.text}\n{offered}\n{answer}"

    def to_json(self) -> dict[str, Any]:
        """What travels to the page."""
        return asdict(self)


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, not {text!r}")
    if not text.strip():
        raise ValueError(f"{name} must not be empty")


def _number(value: Any, name: str) -> float:
    if hasattr(value, "item"):  # of NumPy or torch, with one element
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")
    return float(value)
