"""The results of a network's steps in one piece of memory: who lives when, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets

from minq.deploy.c.arena import Step, best_order, lifetimes, needed, place
from minqbook.widgets.base import Widget


class MemoryPlan(Widget):
    """Each result is a bar, as long as it is needed and as high as its bytes; steps change places.

    steps: (name, bytes, reads) and maybe (..., scratch), in an order that computes before it reads,
    as ``minq.to_c(...).steps`` has them; at most 60. order: indices of the steps, by default as
    they stand. selected: the step that is moved, by its index.

    >>> MemoryPlan([("a", 8, ()), ("b", 4, ("a",)), ("c", 8, ("b",))])
    MemoryPlan(order=[0, 1, 2], bytes=12, needed=12)

    Raises ValueError for too many steps and for an order in which one reads what is not there yet.
    """

    steps = traitlets.List().tag(sync=True)
    order = traitlets.List().tag(sync=True)
    best = traitlets.List().tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)
    shown = ("order", "bytes", "needed")

    def __init__(
        self,
        steps: Sequence[Step | tuple],
        order: Sequence[int] | None = None,
        *,
        alt: str = "A strip of memory over time: each result of a network is a bar from the step "
        "that writes it to the last that reads it, as high as its bytes, stacked so that no two "
        "overlap. A line shows how high the memory must be.",
        **traits: Any,
    ) -> None:
        given = [Step(*s) for s in steps]
        if not 1 <= len(given) <= 60:
            raise ValueError(f"1 to 60 steps fit into the picture, not {len(given)}")
        order = list(range(len(given)) if order is None else order)
        if sorted(order) != list(range(len(given))):
            raise ValueError(f"order must name each of the {len(given)} steps once, not {order}")
        lifetimes([given[k] for k in order])  # an error where it cannot be
        packed = [[s.name, s.bytes, list(s.reads), s.scratch] for s in given]
        super().__init__(steps=packed, order=order, best=best_order(given), alt=alt, **traits)

    @property
    def _lives(self) -> list:
        return lifetimes([(*self.steps[k],) for k in self.order])

    @property
    def bytes(self) -> int:
        """How large the memory is in this order."""
        return max(p.end for p in place(self._lives))

    @property
    def needed(self) -> int:
        """What is alive at once: no placing does with fewer."""
        return needed(self._lives)
