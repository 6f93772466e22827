"""A drawing: panels side by side, under each other on a phone, and a caption that says what holds.

In a notebook it shows as HTML with the SVG in it, so that its colours follow the theme of the page
or of JupyterLab. Its text twin is what a terminal, a printout and a screen reader get.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from minqbook.drawings.kit import TONES, Panel, plain

KIT = Path(__file__).parents[1] / "widgets" / "kit" / "kit.css"
LOOK = """
.mq-drawing { margin: 1.5rem 0; padding: 0; color: var(--mq-ink); background: var(--mq-surface); }
.mq-panels { display: flex; flex-wrap: wrap; justify-content: center; align-items: flex-start;
  gap: 20px 24px;
  overflow-x: auto; }
.mq-panels svg { flex: 1 1 320px; display: block; height: auto; overflow: visible; font-size: 13px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
figure.mq-drawing.mq-drawing figcaption { margin: 0.7rem auto 0; max-width: 44rem; color: inherit;
  font-family: inherit; font-size: 0.9em; font-weight: 400; line-height: 1.45; text-align: center;
  text-wrap: pretty; }
.mq-drawing .mq-edge { stroke: currentColor; stroke-width: 1.3; }
.mq-drawing .mq-stroke { fill: none; stroke: currentColor; stroke-width: 1.4;
  stroke-linejoin: round; }
.mq-drawing text { fill: currentColor; }
.mq-drawing .mq-halo { paint-order: stroke; stroke: var(--mq-surface); stroke-width: 4px;
  stroke-linejoin: round; }
"""


def style() -> str:
    """The widgets' table of colours, for drawings, and what a drawing adds to it."""
    colours = re.sub(r"/\*.*?\*/", "", KIT.read_text("utf-8"), flags=re.S).split("\n\n")[0]
    tones = "".join(f".mq-drawing .mq-{t} {{ color: var(--mq-{t}); }}\n" for t in TONES)
    rules = re.sub(r"\.minq\b", ".mq-drawing", colours) + LOOK + tones
    return "<style>" + re.sub(r"\s+", " ", rules).strip() + "</style>"


ALL: dict[str, Callable[[], Drawing]] = {}  # every drawing of the book, by its name


def drawn(f: Callable[[], Drawing]) -> Callable[[], Drawing]:
    """Enter a function that answers a drawing into `ALL`: tests look at each."""
    if f.__name__ in ALL:
        raise ValueError(f"two drawings are called {f.__name__}")
    ALL[f.__name__] = f
    return f


@dataclass(frozen=True, repr=False)
class Drawing:
    """Panels under one caption.

    name: of the function that draws it. claim: the caption, a sentence that could be wrong.
    """

    name: str
    claim: str
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        if not self.claim.endswith(".") or not all(p.words.strip() for p in self.panels):
            raise ValueError(f"{self.name} needs a caption, a sentence, and words for each panel")

    def html(self) -> str:
        """The drawing for a page: a figure that brings its own style."""
        looks = [style(), *[""] * len(self.panels)]
        pictures = "".join(
            panel.svg(f"mq-{self.name}-{i}", look)
            for i, (panel, look) in enumerate(zip(self.panels, looks, strict=False))
        )
        caption = f"<figcaption>{escape(self.claim)}</figcaption>"
        return (
            f'<figure class="mq-drawing"><div class="mq-panels">{pictures}</div>{caption}</figure>'
        )

    def __repr__(self) -> str:
        lines = [f"{plain(panel.title)}: {panel.words}" for panel in self.panels]
        return "\n".join([f"Drawing. {self.claim}", *lines])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self.html()}
