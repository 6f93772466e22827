"""Chapter 19: which results are alive when, and where they lie."""

from __future__ import annotations

from minq.deploy.c.arena import Life, Placed, Step, lifetimes, needed, place
from minqbook.drawings.drawing import Drawing, drawn
from minqbook.drawings.kit import SMALL, Panel

# The block by hand of the chapter: two branches that are added; sizes in kB.
STEPS = (
    Step("in", 4),
    Step("a", 10, ("in",)),
    Step("b", 3, ("a",)),
    Step("c", 2, ("in",)),
    Step("out", 5, ("b", "c")),
)
SHORT_FIRST = [STEPS[k] for k in (0, 3, 1, 2, 4)]
"""No order needs less; the tests compare."""
TONES = {"in": "red", "a": "blue", "b": "green", "c": "yellow", "out": "purple"}
COLUMN, LEFT = 46, 96


def alive(lives: list[Life]) -> list[int]:
    """kB that are in memory in each step."""
    return [sum(t.bytes for t in lives if t.first <= k <= t.last) for k in range(len(STEPS))]


@drawn
def liveness() -> Drawing:
    """The block in two orders: its results' lives, and in the better order their places."""
    lives, placed = lifetimes(STEPS), place(lifetimes(SHORT_FIRST))
    least, total = needed(lifetimes(SHORT_FIRST)), sum(s.bytes for s in STEPS)
    return Drawing(
        "liveness",
        f"Memory must hold only what is alive at the same time, so the order of the steps counts:"
        f" {needed(lives)} kB with the long branch first, {least} kB with the short one, for"
        f" results of {total} kB in all.",
        (_lives(lives), _places(placed, least)),
    )


def _lives(lives: list[Life]) -> Panel:
    kb, peak = alive(lives), needed(lives)
    said = [f"{t.name}, {t.bytes} kB, in steps {t.first + 1} to {t.last + 1}" for t in lives]
    p = Panel(
        "long branch first: who is alive",
        f"Five results as bars over five steps, each from the step that writes it to the last that"
        f" reads it: {'; '.join(said)}. Alive are {', '.join(map(str, kb))} kB; the most is {peak},"
        " in the third step, where the input still waits for c.",
        height=224,
    )
    for k, life in enumerate(lives):
        y = 26 + 29 * k
        p.text(0, y + 11, f"{life.name}, {life.bytes} kB", anchor="start", size=12)
        wide = COLUMN * (life.last - life.first + 1)
        tone = TONES[life.name]
        p.box(LEFT + COLUMN * life.first + 2, y, wide - 4, 22, tone=tone, full=0.35)
    for k, v in enumerate(kb):
        tone = "red" if v == peak else "soft"
        p.text(LEFT + COLUMN * (k + 0.5), 188, f"{v}", tone=tone, bold=v == peak)
    p.text(0, 188, "kB alive", anchor="start", tone="soft", size=12)
    p.text(LEFT + 2.5 * COLUMN, 212, "steps: in, a, b, c, out", tone="soft", size=SMALL)
    return p


def _places(placed: list[Placed], least: int) -> Panel:
    size = max(t.end for t in placed)
    names = ", ".join(t.name for t in placed)
    where = "; ".join(f"{t.name} from {t.offset} to {t.end} kB" for t in placed)
    p = Panel(
        "short branch first: where they lie",
        f"The same results in the order {names}, in one memory of {size} kB, of which {least} are"
        f" alive at most: {where}. No two that are alive at once overlap, and a place is used again"
        " after its last reader.",
        height=224,
    )
    unit, base = 146 / size, 172
    p.line((LEFT, base), (LEFT + 5 * COLUMN, base))
    for t in placed:
        x, wide = LEFT + COLUMN * t.first, COLUMN * (t.last - t.first + 1)
        high = unit * t.bytes
        p.box(x + 2, base - unit * t.end, wide - 4, high, t.name, TONES[t.name], 0.35, size=12)
    for v in (0, size):
        p.text(LEFT - 8, base - unit * v, f"{v} kB", anchor="end", tone="soft", size=SMALL)
    p.text(LEFT - 8, base - unit * size / 2, "address", anchor="end", tone="soft", size=12)
    p.text(LEFT + 2.5 * COLUMN, 212, f"steps: {names}", tone="soft", size=SMALL)
    return p
