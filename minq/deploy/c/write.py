"""The two files: constants, the functions that are used, and the network, a call for each step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minq._work import write_whole
from minq.deploy import kernels
from minq.deploy.c import text
from minq.deploy.c.arena import Placed, Step, best_order, lifetimes
from minq.deploy.c.arena import place as placed
from minq.deploy.c.emit import WORDS, Emitter
from minq.deploy.c.lower import Lowering
from minq.deploy.c.views import Array, in_memory
from minq.deploy.integer import IntegerNetwork

ALIGN = 8
"""Where a result may begin: at a multiple of it."""


@dataclass(frozen=True)
class CTensor:
    """An input or output: numbers of ``dtype``, one after another, that stand for s (x - z).

    channels_last: pictures lie as (H, W, C), as the C code computes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    channels_last: bool
    scale: Tensor | None
    zero_point: int
    ends: tuple[int, int] | None

    def flat(self, x: Tensor) -> Tensor:
        """A tensor of that shape, one sample, in the order of the C code."""
        return in_memory(x, self.channels_last)

    def quantize(self, x: Tensor) -> Tensor:
        """Real numbers as integers of that tensor, eq. (4); token ids stay what they are."""
        if self.scale is None or self.ends is None:
            return x
        levels = torch.round(x.double() / self.scale) + self.zero_point  # eq. (4)
        return levels.clamp(*self.ends).long()

    def real(self, numbers: Tensor) -> Tensor:
        """Integers in the order of the C code as real numbers, in torch's order of dimensions."""
        shape = self.shape
        if self.channels_last:
            b, c, h, w = shape
            x = numbers.double().reshape(b, h, w, c).permute(0, 3, 1, 2)
        else:
            x = numbers.double().reshape(shape)
        return x if self.scale is None else self.scale * (x - self.zero_point)  # eq. (6)


@dataclass(frozen=True)
class CNetwork:
    """The files that ``to_c`` wrote, and what they need of a chip.

    arena: every result, with its bytes, its first and last step, and its place in the arena.
    steps: (name, bytes, reads) in the order of computation, for ``minq.deploy.c.arena``.
    """

    name: str
    source: Path
    header: Path
    inputs: tuple[CTensor, ...]
    outputs: tuple[CTensor, ...]
    arena: tuple[Placed, ...]
    arena_bytes: int
    constant_bytes: int
    steps: tuple[Step, ...]
    functions: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"CNetwork({self.source.name}: {len(self.steps)} steps, {self.constant_bytes:,} bytes "
            f"of constants, an arena of {self.arena_bytes:,} bytes)"
        )


def to_c(
    net: IntegerNetwork, folder: str | Path, *, name: str = "network", order: str = "memory"
) -> CNetwork:
    """The network on integers as C99 for a microcontroller: ``name.c`` and ``name.h``.

    The function ``name`` gets quantized inputs, gives quantized outputs, and equals ``net``, bit
    for bit. It needs ``<stdint.h>``, no heap and no floats. Results of layers share one arena.

    Args:
        net: what ``minq.to_integer`` returns, with multipliers "fixed".
        folder: where the files go; it is made if need be.
        name: of files and function, a name that C allows.
        order: "memory" computes in an order that needs the fewest bytes at once; "graph" as the
            network says.

    Returns:
        The paths, how inputs and outputs lie in memory, and the plan of the arena.

    Raises:
        TypeError: for anything else than a network on integers.
        ValueError: for a name that C does not allow, for multipliers in floats, and for operators
            that no function in C computes; the message names them.

    >>> import minq, tempfile, torch
    >>> model, x = torch.nn.Linear(4, 2), torch.linspace(-1, 1, 8).reshape(2, 4)
    >>> net = minq.to_integer(minq.ptq(torch.nn.Sequential(model), x, rounding="nearest"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = to_c(net, folder, name="tiny")
    ...     print(files, "void tiny(" in files.header.read_text())
    CNetwork(tiny.c: 1 steps, 29 bytes of constants, an arena of 8 bytes) True
    """
    if not isinstance(net, IntegerNetwork):
        raise TypeError(
            f"a network on integers is needed, not {type(net).__name__}; call minq.to_integer first"
        )
    if net.islands:
        first, why = next(iter(net.islands.items()))
        raise ValueError(
            f"{len(net.islands)} operators compute in floats, the first is {first} ({why}); "
            "C code here has no floats: give them quantizers, or leave them out"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in WORDS:
        raise ValueError(f"name must be one that C allows, in small letters, not {name!r}")
    if order not in ("memory", "graph"):
        raise ValueError(f'order must be "memory" or "graph", not {order!r}')
    lowering = Lowering(net.program, net.one_sample()).run()
    return write(Path(folder), name, lowering, order, Emitter(_rounding(net)))


def write(folder: Path, name: str, low: Lowering, order: str, emitter: Emitter) -> CNetwork:
    """Plan the arena, and write the files that an emitter makes of the steps."""
    steps = [
        Step(
            c.writes.name,
            emitter.bytes(c.writes) if c.writes.where == "arena" else 0,
            tuple(a.name for a in c.reads if a.where in ("arena", "output")),
            emitter.scratch(c) if c.scratch else 0,
        )
        for c in low.calls
    ]
    indices = best_order(steps) if order == "memory" else range(len(steps))
    calls, steps = [low.calls[k] for k in indices], [steps[k] for k in indices]
    plan = [p for p in placed(lifetimes(steps), ALIGN) if p.bytes]
    emitter.places = {p.name: p.offset for p in plan}
    paths = folder / f"{name}.c", folder / f"{name}.h"
    for path, content in zip(paths, text.files(name, low, calls, plan, emitter), strict=True):
        write_whole(path, partial(_save, content))
    return CNetwork(
        name,
        *paths,
        inputs=tuple(_described(array, grid, emitter) for array, grid in low.inputs),
        outputs=tuple(_described(array, real, emitter) for array, real in low.outputs),
        arena=tuple(plan),
        arena_bytes=max((p.end for p in plan), default=0),
        constant_bytes=sum(a.bytes for a in emitter.arrays),
        steps=tuple(steps),
        functions=tuple(emitter.functions),
    )


def _save(content: str, path: Path) -> None:
    path.write_text(content, "utf-8")


def _rounding(net: IntegerNetwork) -> str:
    """How ties are rounded: all requantizations do alike."""
    units = [m for m in net.program.modules() if isinstance(m, kernels.Multipliers)]
    return units[0].rounding if units else "half_even"


def _described(array: Array, unit: Any, emitter: Emitter) -> CTensor:
    """unit: the quantizer of an input, what makes an output real, or None."""
    dtype, place = emitter.ctype(array), (array.shape, array.channels_last)
    if isinstance(unit, kernels.Quantize) and dtype != "float":
        low, high = unit.integers
        ends = (int(low), int(high))
        return CTensor(array.name, dtype, *place, unit.scale, int(unit.zero_point), ends)
    if unit is None or dtype == "float":
        return CTensor(array.name, dtype, *place, None, 0, None)
    return CTensor(array.name, dtype, *place, unit.scales[0], unit.zeros[0], None)
