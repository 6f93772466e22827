"""The kit of the drawings: boxes, arrows, number lines and labels in the colours of the theme.

A panel is one SVG, at most WIDEST units wide, so that a phone shows it without scrolling. Its
methods take places in its own units, y downwards, and answer nothing. Texts know three marks:
`*x*` is italic, `x_{i}` and `x^{2}` are lower and upper indices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]

WIDEST = 390
SIZE = 13  # of a label; SMALL is the least
SMALL = 11.5
TONES = ("ink", "soft", "line", "grid", "blue", "red", "green", "yellow", "purple")
PALE = ("line", "grid", "yellow")  # less than 4.5 to 1 on the page
MARK = re.compile(r"([_^])\{(.*?)\}|\*(.+?)\*")
# Widths of letters in units of the size, in DejaVu Sans, the widest of the fonts a reader may have.
NARROW, MIDDLE, WIDE = "iljI.,:;'|!()[]/ ft-", 'rs"cJkvxyz1', "mwMW%@→≈ΣΔ−+=<>≥≤×÷"


def plain(text: str) -> str:
    """The text without its marks.

    >>> plain("*s*_{i} = 2^{b}")
    'si = 2b'
    """
    return MARK.sub(lambda m: plain(m[2] or m[3]), text)


def width_of(text: str, size: float = SIZE) -> float:
    """About how wide a line is, rather too wide than too narrow.

    >>> round(width_of("ReLU", 10), 1)
    26.6
    """
    small = sum(0.2 * len(m[2]) for m in MARK.finditer(text) if m[2])  # indices are smaller
    units = 0.0
    for letter in plain(text):
        kinds = ((NARROW, 0.38), (MIDDLE, 0.58), (WIDE, 0.87))
        units += next((w for letters, w in kinds if letter in letters), 0.665)
    return (units - 0.5 * small) * size


def rich(text: str) -> str:
    """The text as SVG, its marks as <tspan>."""
    out, at = "", 0
    for m in MARK.finditer(text):
        out += escape(text[at : m.start()])
        at = m.end()
        if m[3]:
            out += f'<tspan font-style="italic">{rich(m[3])}</tspan>'
            continue
        shift = 0.28 if m[1] == "_" else -0.38
        low, back = f'dy="{shift}em" font-size="78%"', f'dy="{-0.78 * shift:.3f}em"'
        # The line goes back to its height with the next letter, or with one of no width.
        out += f"<tspan {low}>{rich(m[2])}</tspan><tspan {back}>\u200b</tspan>"
    return out + escape(text[at:])


def number(value: float) -> str:
    """A coordinate: one decimal, the same on every machine."""
    text = f"{value:.1f}"
    return "0" if text in ("-0.0", "0.0") else text.removesuffix(".0")


@dataclass(frozen=True)
class Label:
    """Where a line of text stands, for the tests."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Scale:
    """Numbers `low` to `high` along the units `start` to `end`.

    >>> Scale(0, 10, 20, 120)(5)
    70.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass
class Panel:
    """One picture: its name, what it shows in words, and its parts.

    title: its heading, drawn above it unless `heading` is False. words: the text twin, for a
    reader who cannot see it: the same steps, the same numbers.
    """

    title: str
    words: str
    width: float = 340
    height: float = 200
    heading: bool = True
    parts: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.width > WIDEST:
            raise ValueError(f"a panel is at most {WIDEST} wide, not {self.width}: cut it in two")
        if self.heading:
            self.text(0, 9, self.title, anchor="start", bold=True)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str = "middle",
        tone: str = "ink",
        size: float = SIZE,
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """Lines of text, parted by newlines, around the height y; halo: keeps lines behind off."""
        if size < SMALL:
            raise ValueError(f"size {size} is too small to read on a phone: at least {SMALL}")
        if tone in PALE:
            raise ValueError(f"{tone!r} is too pale for letters: take another tone")
        lines = text.split("\n")
        style = f' font-size="{number(size)}"' if size != SIZE else ""
        style += ' font-weight="600"' if bold else ""
        style += f' text-anchor="{anchor}"' if anchor != "start" else ""
        kind = f"mq-{tone} mq-halo" if halo else f"mq-{tone}"
        for i, line in enumerate(lines):
            middle = y + (i - (len(lines) - 1) / 2) * 1.25 * size
            wide = width_of(line, size) * (1.05 if bold else 1)
            left = x - wide * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            box = (left, middle - size / 2, left + wide, middle + size / 2)
            self.labels.append(Label(plain(line), *box))
            at = f'x="{number(x)}" y="{number(middle + 0.36 * size)}"'
            self.parts.append(f'<text {at} class="{kind}"{style}>{rich(line)}</text>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        tone: str = "line",
        full: float = 0.0,
        dash: bool = False,
        round_: float = 5,
        size: float = SIZE,
        bold: bool = False,
    ) -> None:
        """A frame with a text in its middle. full: how much of its tone fills it, from 0 to 1."""
        for line in text.split("\n"):
            if width_of(line, size) > width - 4:
                need = math.ceil(width_of(line, size) + 4)
                raise ValueError(f"{line!r} does not fit a box {width} wide: it needs {need}")
        place = " ".join(
            f'{k}="{number(v)}"'
            for k, v in zip(("x", "y", "width", "height"), (x, y, width, height), strict=True)
        )
        look = f'fill="currentColor" fill-opacity="{full:g}"' if full else 'fill="none"'
        look += ' stroke-dasharray="4 3"' if dash else ""
        corner = f' rx="{number(round_)}"' if round_ else ""
        self.parts.append(f'<rect {place}{corner} class="mq-{tone} mq-edge" {look}/>')
        if text:
            self.text(x + width / 2, y + height / 2, text, size=size, bold=bold)

    def block(
        self, x: float, y: float, width: float, height: float, tone: str, full: float = 1
    ) -> None:
        """A bar without a frame."""
        place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        opacity = f' fill-opacity="{full:g}"' if full != 1 else ""
        self.parts.append(f'<rect {place} class="mq-{tone}" fill="currentColor"{opacity}/>')

    def line(
        self, *points: Point, tone: str = "line", width: float = 1.4, dash: bool = False
    ) -> None:
        """Straight lines from point to point."""
        path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
        look = f' stroke-width="{width:g}"' if width != 1.4 else ""
        look += ' stroke-dasharray="4 3"' if dash else ""
        self.parts.append(f'<path d="{path}" class="mq-{tone} mq-stroke"{look}/>')

    def curve(self, f: Callable[[float], float], x: Scale, y: Scale, **look) -> None:
        """The graph of f over the numbers of x."""
        values = [x.low + (x.high - x.low) * i / 80 for i in range(81)]
        self.line(*((x(v), y(f(v))) for v in values), **look)

    def area(self, *points: Point, tone: str, full: float = 0.2) -> None:
        """A surface without a frame."""
        path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + "Z"
        self.parts.append(
            f'<path d="{path}" class="mq-{tone}" fill="currentColor" fill-opacity="{full:g}"/>'
        )

    def arrow(self, *points: Point, tone: str = "soft", dash: bool = False) -> None:
        """Straight lines that end in a head."""
        (x0, y0), (x, y) = points[-2:]
        long = math.hypot(x - x0, y - y0) or 1
        dx, dy = (x - x0) / long, (y - y0) / long
        neck = (x - 6 * dx, y - 6 * dy)
        self.line(*points[:-1], neck, tone=tone, dash=dash)
        sides = ((neck[0] - 3.5 * dy, neck[1] + 3.5 * dx), (neck[0] + 3.5 * dy, neck[1] - 3.5 * dx))
        self.area((x, y), *sides, tone=tone, full=1)

    def dot(self, x: float, y: float, r: float = 4, tone: str = "blue", hollow: bool = False):
        """A disc, or a ring."""
        look = 'fill="none" stroke="currentColor" stroke-width="1.6"'
        look = look if hollow else 'fill="currentColor"'
        at = f'cx="{number(x)}" cy="{number(y)}" r="{number(r)}"'
        self.parts.append(f'<circle {at} class="mq-{tone}" {look}/>')

    def axis(
        self, scale: Scale, y: float, ticks: Sequence[float] = (), form: str = "{:g}", **look
    ) -> None:
        """A number line at the height y, its numbers below it."""
        self.line((scale.start, y), (scale.end, y), tone=look.pop("tone", "line"))
        for value in ticks:
            x = scale(value)
            self.line((x, y - 4), (x, y + 4), tone="line")
            label = form.format(value).replace("-", "−")
            self.text(x, y + 15, label, size=SMALL, tone="soft", **look)

    def svg(self, name: str, style: str = "") -> str:
        """The panel as SVG; `name` makes its ids unique on a page."""
        size = f"0 0 {number(self.width)} {number(self.height)}"
        ids = f'aria-labelledby="{name}-title {name}-desc"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" {ids}'
        limits = f"min-width:{0.86 * self.width:.0f}px;max-width:{1.2 * self.width:.0f}px"
        texts = f'<title id="{name}-title">{escape(plain(self.title))}</title>'
        texts += f'<desc id="{name}-desc">{escape(self.words)}</desc>'
        return f'{head} style="{limits}">{style}{texts}{"".join(self.parts)}</svg>'
