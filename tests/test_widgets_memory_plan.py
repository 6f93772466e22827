"""MemoryPlan in Python: what it sends, says and refuses. Its script: tests/browser."""

import pytest

from minqbook.widgets import MemoryPlan

READS = {"x": (1, ()), "a": (8, ("x",)), "b": (8, ("x",)), "c": (1, ("a",))}
STEPS = [*((name, *rest) for name, rest in READS.items()), ("y", 2, ("b", "c"), 5)]


def test_it_says_how_large_the_memory_is():
    w = MemoryPlan(STEPS)
    assert (w.bytes, w.needed) == (17, 17)
    assert repr(w) == "MemoryPlan(order=[0, 1, 2, 3, 4], bytes=17, needed=17)"
    w.order = list(w.best)
    assert w.bytes < 17 and w.needed < 17
    assert w.steps[4] == ["y", 2, ["b", "c"], 5]


@pytest.mark.parametrize(
    "steps, settings, says",
    [
        ([], {}, "1 to 60 steps"),
        (STEPS, {"order": [0, 1, 2, 3, 3]}, "each of the 5 steps once"),
        (STEPS, {"order": [1, 0, 2, 3, 4]}, "before it is written"),
        (STEPS, {"alt": " "}, "alt"),
    ],
)
def test_what_makes_no_plan_is_refused(steps, settings, says):
    with pytest.raises(ValueError, match=says):
        MemoryPlan(steps, **settings)
