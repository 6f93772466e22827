"""What every widget of the book shares: its script and style, checks, and a text twin.

A widget is a Python file and a JavaScript file of the same name beside it:

    class Spectrum(Widget):                      # spectrum.py and spectrum.js
        bits = traitlets.Int(4).tag(sync=True)
        shown = ("bits",)                        # what repr() prints

What their scripts share is in ``kit``; ``bundle`` joins a script and all it imports.
"""

from __future__ import annotations

from typing import Any

import anywidget
import numpy as np
import traitlets

from minq._checks import as_float
from minqbook.widgets.bundle import HERE, bundle, style
from minqbook.widgets.question import Question


class Widget(anywidget.AnyWidget):
    """Base of our widgets: the bundled script and style, a stable repr, a text that stands for it.

    alt: what the picture shows, in a sentence or two, for readers who cannot see or run it. Every
    widget has one; an empty one is an error. question: what the reader is asked before the picture
    opens.
    """

    alt = traitlets.Unicode().tag(sync=True)
    question = traitlets.Instance(Question, allow_none=True).tag(
        sync=True, to_json=lambda question, _: question and question.to_json()
    )
    shown: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        name = cls.__module__.rpartition(".")[2]
        if "_esm" not in cls.__dict__ and (HERE / f"{name}.js").exists():
            cls._esm = bundle(f"{name}.js")
            cls._css = style(name)
        super().__init_subclass__(**kwargs)

    def __init__(self, **traits: Any) -> None:
        unknown = [k for k in traits if not self.has_trait(k)]
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {unknown[0]!r}")
        super().__init__(**traits)
        if not self.alt.strip():
            raise ValueError(
                f"{type(self).__name__} needs alt: a sentence that says what the picture shows"
            )

    @traitlets.validate("alt")
    def _check_alt(self, proposal: Any) -> str:
        if not proposal.value.strip():
            raise ValueError("alt must not be empty; say in a sentence what the picture shows")
        return proposal.value

    def __repr__(self) -> str:
        # No model id in it: stored notebook outputs are compared as text, run after run.
        values = (f"{k}={_short(getattr(self, k))}" for k in self.shown)
        return f"{type(self).__name__}({', '.join(values)})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        # What a page, a printout or a terminal shows that cannot run the widget.
        said = (repr(self), self.alt, self.question)
        data["text/plain"] = "\n".join(str(part) for part in said if part is not None)
        return data, metadata


def within(proposal: Any, low: float, high: float, what: str = "") -> Any:
    """The value a trait is about to take, if it is from ``low`` to ``high``; ``what`` says why."""
    if not low <= proposal.value <= high:
        name = proposal.trait.name
        raise ValueError(f"{name} must be from {low} to {high}{what}, not {proposal.value}")
    return proposal.value


def limited(**limits: tuple) -> Any:
    """The check of traits with fixed limits, e.g. ``_limits = limited(bits=(2, 8))``."""

    @traitlets.validate(*limits)
    def check(self: Widget, proposal: Any) -> Any:
        return within(proposal, *limits[proposal.trait.name])

    return check


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def pack(values: Any, name: str, most: int) -> tuple[np.ndarray, bytes]:
    """``values`` as a float32 array and its little-endian bytes, the form in which data travel.

    Raises TypeError or ValueError for what is not a float, NaN, infinite, empty, or more than
    ``most`` values.

    >>> pack([1.0, 2.0], "data", most=10)[1].hex()
    '0000803f00000040'
    """
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach().cpu().double().numpy()
    values = as_float(values, name)
    if values.size > most:
        raise ValueError(
            f"{name} has {values.size:,} values, but at most {most:,} travel with the page; "
            f"pass a sample, e.g. {name}.flat[::{-(-values.size // most)}]"
        )
    with np.errstate(over="ignore"):
        packed = values.astype("<f4")
    if not np.isfinite(packed).all():
        raise ValueError(f"{name} has values too large for float32 (above 3.4e38); divide it first")
    return packed, packed.tobytes()
