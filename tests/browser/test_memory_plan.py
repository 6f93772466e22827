"""MemoryPlan in a browser: its addresses are Python's, steps move, and no further than they may."""

import random

from minq.deploy.c import arena
from minqbook.widgets.bundle import bundle

STEPS = [("x", 1, ()), ("a", 8, ("x",)), ("b", 8, ("x",)), ("c", 1, ("a",)), ("y", 2, ("b", "c"))]


def programs(count):
    """Random programs, and an order of each."""
    chance = random.Random(0)
    for _ in range(count):
        steps = []
        for k in range(chance.randint(1, 9)):
            reads = chance.sample(range(k), min(k, chance.randint(0, 3)))
            scratch = chance.choice([0, 0, 7])
            steps.append([f"t{k}", chance.randint(1, 40), [f"t{r}" for r in reads], scratch])
        yield steps, arena.best_order(steps)


def test_addresses_are_pythons(js):
    source, cases = bundle("memory_plan.js") + "\nexport { sizes };", list(programs(100))
    expected = []
    for steps, order in cases:
        lives = arena.lifetimes([steps[k] for k in order])
        placed = arena.place(lives)
        sizes = max(p.end for p in placed), arena.needed(lives)
        expected.append([*sizes, *(p.offset for p in placed)])
    assert js(source, "(m, cases) => cases.map(c => m.sizes(...c))", cases) == expected


def test_a_step_moves_as_far_as_it_may(js):
    source = bundle("memory_plan.js") + "\nexport { reach };"
    steps = [[n, b, list(r), 0] for n, b, r in STEPS]
    found = js(source, "(m, s) => s.map((_, k) => m.reach(s, [0, 1, 2, 3, 4], k))", steps)
    assert found == [[0, 0], [1, 2], [1, 3], [2, 3], [4, 4]]
