"""Memory for the results of a network's steps: who lives when, and where in one piece of memory.

Pure functions of names and numbers, without torch. A step is (name, bytes, reads) and maybe
(..., scratch): it computes the tensor ``name`` from those that it reads, and needs some more bytes
meanwhile. What no step computes, an input or a constant, lies elsewhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minq._checks import check_count

SCRATCH = ".scratch"


class Step(NamedTuple):
    """What is computed, how many bytes it has, from what, and the bytes needed meanwhile."""

    name: str
    bytes: int
    reads: tuple[str, ...] = ()
    scratch: int = 0


class Life(NamedTuple):
    """A tensor is in memory from step ``first``, which writes it, to step ``last``, inclusive."""

    name: str
    bytes: int
    first: int
    last: int


class Placed(NamedTuple):
    """A tensor's life, and its first byte."""

    name: str
    bytes: int
    first: int
    last: int
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.bytes


def lifetimes(steps: Sequence[Step | tuple], keep: Iterable[str] = ()) -> list[Life]:
    """From the step that writes a tensor to the last one that reads it.

    Args:
        steps: in the order of computation.
        keep: tensors that are needed to the end.

    Returns:
        One life a step, in that order; then those of scratch, named ``name + SCRATCH``.

    Raises:
        ValueError: a step reads what a later one writes, or two steps write the same.

    >>> lifetimes([("a", 8, ()), ("b", 4, ("a",)), ("c", 8, ("a", "b"))])[0]
    Life(name='a', bytes=8, first=0, last=2)
    """
    named, last, written = [Step(*s) for s in steps], {}, {}
    for k, step in enumerate(named):
        for name in step.reads:
            last[name] = k
        if step.name in written:
            raise ValueError(f"two steps write {step.name!r}; give each result a name of its own")
        written[step.name] = k
    for name, k in written.items():
        early = [s.name for s in named[: k + 1] if name in s.reads]
        if early:
            raise ValueError(f"{early[0]!r} reads {name!r} before it is written; move it behind")
    end = dict.fromkeys(keep, len(named) - 1)
    lives = [
        Life(s.name, s.bytes, k, max(k, last.get(s.name, k), end.get(s.name, k)))
        for k, s in enumerate(named)
    ]
    scratch = [Life(s.name + SCRATCH, s.scratch, k, k) for k, s in enumerate(named) if s.scratch]
    return lives + scratch


def needed(lives: Sequence[Life]) -> int:
    """The bytes that are alive at once, at the worst step: no placing can do with fewer.

    >>> needed([Life("a", 8, 0, 2), Life("b", 4, 1, 2), Life("c", 8, 2, 2)])
    20
    """
    steps = {t.first for t in lives}
    return max((sum(t.bytes for t in lives if t.first <= k <= t.last) for k in steps), default=0)


def place(lives: Sequence[Life], align: int = 1) -> list[Placed]:
    """An offset for each tensor such that no two that live at once overlap.

    The largest first, each at the lowest place that is free while it lives. Finding the best
    placing is as hard as packing boxes; this one is seldom far from ``needed``.

    Args:
        lives: any tensors.
        align: offsets are multiples of it.

    Returns:
        The tensors with their offsets, in the order given; ``max(t.end for t in ...)`` is the size.

    >>> [t.offset for t in place([Life("a", 8, 0, 1), Life("b", 4, 1, 2), Life("c", 8, 2, 2)])]
    [0, 8, 0]
    """
    check_count(align, "align")
    done: list[Placed] = []
    for t in sorted(lives, key=lambda t: (-t.bytes, t.first, t.name)):
        offset = 0
        beside = [p for p in done if p.first <= t.last and t.first <= p.last]
        for p in sorted(beside, key=lambda p: p.offset):
            if offset + t.bytes <= p.offset:
                break
            offset = max(offset, -(-p.end // align) * align)
        done.append(Placed(*t, offset))
    found = {(p.name, p.first): p for p in done}
    return [found[t.name, t.first] for t in lives]


def best_order(
    steps: Sequence[Step | tuple], keep: Iterable[str] = (), limit: int = 4000
) -> list[int]:
    """An order of the same steps that needs the fewest bytes at once.

    Shortest paths (Dijkstra) through the sets of steps that may be done, where the length of a path
    is the most bytes alive on it. Networks with few branches have few such sets; where there are
    more than ``limit``, the order stays as it is.

    Args:
        steps: in any order that computes before it reads.
        keep: tensors that are needed to the end.
        limit: of sets looked at.

    Returns:
        Indices of the steps, in their new order.

    >>> best_order([("a", 9, ()), ("b", 9, ()), ("c", 1, ("a",)), ("d", 1, ("b", "c"))])
    [0, 2, 1, 3]
    """
    named, kept = [Step(*s) for s in steps], set(keep)
    at = {s.name: k for k, s in enumerate(named)}
    needs = [sum(1 << at[n] for n in {*s.reads} if n in at) for s in named]
    readers = [sum(1 << k for k, s in enumerate(named) if t.name in s.reads) for t in named]
    everything = (1 << len(named)) - 1

    def alive(done: int, k: int) -> int:
        """Bytes while step k runs: it, and what it or a later step reads."""
        left, total = everything & ~done, named[k].bytes + named[k].scratch
        for i, s in enumerate(named):
            if done >> i & 1 and (readers[i] & left or s.name in kept):
                total += s.bytes
        return total

    heap: list[tuple[int, int, tuple[int, ...], int]] = [(0, 0, (), 0)]
    seen: set[int] = set()
    while heap and len(seen) < limit:
        most, _, path, done = heapq.heappop(heap)
        if done == everything:
            return list(path)
        if done in seen:
            continue
        seen.add(done)
        for k in range(len(named)):
            if not done >> k & 1 and not needs[k] & ~done:
                worst = max(most, alive(done, k))
                heapq.heappush(heap, (worst, -len(path), (*path, k), done | 1 << k))
    return list(range(len(named)))
