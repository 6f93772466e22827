r"""Chapter 2's accelerator on whole networks: what each layer costs, and what it waits for.

A layer is a matrix product of N outputs and M inputs with B vectors, ``groups`` times
(``MatmulShape``), so ``minq.mac.layer_cost`` counts its cycles, bytes and joules. Shapes and
bits are read off a graph by ``minq.deploy.products``; this file adds the memory behind the array:

- Weights and biases lie in DRAM. A layer fetches them once in each run, whatever the batch.
- A tensor between two layers stays on chip if it fills at most half of the memory there; the other
  half is for the tensor on the other side of the layer. A larger one goes to DRAM: its layer writes
  it once, each reader fetches it once, and the chip repeats what patches share.

DRAM delivers while the array computes, and the slower of the two decides:

    memory cycles = DRAM bytes / bytes per cycle
    latency       = max(array cycles, memory cycles)
    intensity     = MACs / DRAM bytes
    MACs / cycle <= min(R C, bytes per cycle * intensity)        the roofline

(S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52, 2009). Left out are operators that
multiply no matrices (additions, pooling, softmax, norms), the tensor that waits beside a residual
block, and schedules that take several layers through a piece of a picture at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from minq import graph
from minq._checks import check_count
from minq.deploy.products import Operator, operators
from minq.mac import MEMORY, LayerCost, MacArray, MatmulShape, access_energy, layer_cost

BYTES_PER_CYCLE = 16
"""What DRAM delivers in a cycle, as in chapter 2."""

ON_CHIP = 2**20
"""Bytes of memory on the chip: the 1 MB whose energy ``minq.mac.energy`` knows."""

# --- The roofline ---------------------------------------------------------------------------------


def roofline(
    intensity: float, array: MacArray | None = None, bytes_per_cycle: float = BYTES_PER_CYCLE
) -> float:
    """MACs per cycle that array and memory allow: min(R C, bytes per cycle * intensity).

    Args:
        intensity: MACs for each byte of DRAM.
        array: its R rows and C columns; by default those of chapter 2.
        bytes_per_cycle: what DRAM delivers.

    Returns:
        MACs per cycle.

    >>> roofline(2.0), roofline(16.0), roofline(100.0)
    (32.0, 256, 256)
    """
    array = array or MacArray()
    return min(array.rows * array.columns, bytes_per_cycle * intensity)


@dataclass(frozen=True)
class OperatorCost(LayerCost):
    """``LayerCost`` of an operator in a network, with what it needs from DRAM.

    ``bytes`` and ``energy`` have one more kind, "spilled": activations that do not fit on chip.
    """

    kind: str  # "conv2d", "linear", "matmul", ...
    shape: MatmulShape | None  # None for an embedding, which multiplies nothing
    weight_bits: int  # 32 for FP32
    activation_bits: int
    dram_bytes: int

    @property
    def intensity(self) -> float:
        """MACs for each byte of DRAM; infinite where nothing comes from there."""
        return self.macs / self.dram_bytes if self.dram_bytes else math.inf

    def memory_cycles(self, bytes_per_cycle: float = BYTES_PER_CYCLE) -> int:
        """Cycles that DRAM is busy with this operator."""
        if not bytes_per_cycle > 0:
            raise ValueError(f"bytes_per_cycle must be above 0, not {bytes_per_cycle}")
        return math.ceil(self.dram_bytes / bytes_per_cycle)

    def latency(self, bytes_per_cycle: float = BYTES_PER_CYCLE) -> int:
        """Cycles from start to end, of the slower of array and memory."""
        return max(self.cycles, self.memory_cycles(bytes_per_cycle))

    def bound(self, bytes_per_cycle: float = BYTES_PER_CYCLE) -> str:
        """What it waits for: "compute" or "memory"."""
        return "memory" if self.memory_cycles(bytes_per_cycle) > self.cycles else "compute"


def latency(costs: Mapping[str, OperatorCost], bytes_per_cycle: float = BYTES_PER_CYCLE) -> int:
    """Cycles for all operators, one after the other."""
    return sum(cost.latency(bytes_per_cycle) for cost in costs.values())


# --- A whole network ------------------------------------------------------------------------------


def layer_costs(
    gm: fx.GraphModule,
    example: Any = None,
    *,
    array: MacArray | None = None,
    memory: Mapping[str, str] | None = None,
    on_chip: int = ON_CHIP,
    floating: bool = False,
) -> dict[str, OperatorCost]:
    """Every layer and matrix product of a captured graph, in the order of computation.

    Warns of operators that multiply matrices and are not counted.

    Args:
        gm: from ``minq.capture``, with or without quantizers. Their bits count, not their stage. An
            operator computes in integers if both of its operands are quantized, else in FP32.
        example: what the network is called with, for its shapes and its batch size; by default one
            sample. Nothing is computed with it.
        array: as in ``minq.mac.layer_cost``.
        memory: as in ``minq.mac.layer_cost``. A product of two activations finds the second one
            where inputs are.
        on_chip: bytes of memory for activations.
        floating: the network in FP32, whatever its quantizers say.

    Returns:
        Costs by name: layers are named as by ``minq.graph.layers``, products as by
        ``minq.graph.place``, and what comes a second time "name_1".

    Raises:
        TypeError: for a module that was not captured.
        ValueError: for an example that does not fit it.

    >>> import minq, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> gm = minq.insert_quantizers(minq.capture(model, torch.zeros(2, 3, 8, 8)), weights=4)
    >>> for name, cost in layer_costs(gm).items():
    ...     print(name, cost.macs, cost.cycles, cost.dram_bytes, cost.bound())
    0 7776 88 140 compute
    3 2880 198 1480 compute
    """
    if not graph.is_captured(gm):
        raise TypeError(
            f"costs are read off a captured graph, not a {type(gm).__name__}; "
            "pass minq.capture(model, example), or what minq.ptq returns"
        )
    machine = _Machine(array or MacArray(), {**MEMORY, **(memory or {})}, on_chip)
    costs = {name: machine.cost(each) for name, each in operators(gm, example, floating)}
    if missing := {graph.op(n) for n in gm.graph.nodes if graph.traits(n).uncounted}:
        warnings.warn(f"the costs do not count {', '.join(sorted(missing))}", stacklevel=2)
    return costs


_WORK = ("multiply", "add", "requantize", "zero_point", *MEMORY)  # of ``LayerCost.energy``
_NOTHING = LayerCost(0, 0, 0.0, dict.fromkeys(MEMORY, 0), dict.fromkeys(_WORK, 0.0))


@dataclass(frozen=True)
class _Machine:
    """The array, where each kind of tensor lies, and the bytes of memory on the chip."""

    array: MacArray
    memory: dict[str, str]
    on_chip: int

    def __post_init__(self) -> None:
        check_count(self.on_chip, "on_chip")

    def cost(self, operator: Operator) -> OperatorCost:
        """``layer_cost`` with the width and the place of every tensor, and what is spilled."""
        place = self._places(operator)
        bits = self._moved(operator, place)
        size = {tensor: math.ceil(n / 8) for tensor, n in bits.items()}
        base, joules = self._arithmetic(operator)
        moving = {tensor: access_energy(n, place[tensor]) for tensor, n in bits.items()}
        return OperatorCost(
            macs=base.macs,
            cycles=base.cycles,
            utilisation=base.utilisation,
            bytes=base.bytes | size,
            energy=joules | moving,
            kind=operator.kind,
            shape=operator.shape,
            weight_bits=operator.bits["weights"],
            activation_bits=operator.bits["inputs"],
            dram_bytes=sum(n for tensor, n in size.items() if place[tensor] == "dram"),
        )

    def _places(self, operator: Operator) -> dict[str, str]:
        """Where each tensor is fetched from. A product of activations has no weights in DRAM."""
        weights = self.memory["weights" if operator.parameter else "inputs"]
        return {**self.memory, "weights": weights, "spilled": "dram"}

    def _moved(self, operator: Operator, place: dict[str, str]) -> dict[str, int]:
        """Bits that move for each kind of tensor."""
        words, bits, wide = operator.words, operator.bits, self._wide(operator)
        once = {tensor: n * bits.get(tensor, wide) for tensor, n in words.items()}
        activations = {"inputs", "outputs"} | (set() if operator.parameter else {"weights"})
        room = 8 * self.on_chip / 2  # the other half is for the tensor on the other side
        far = [k for k in activations if place[k] != "dram" and once[k] > room]
        moved = {**once, "spilled": sum(once[k] for k in far)}
        if operator.shape is None:
            return moved
        shape, traffic = operator.shape, self.array.traffic(*operator.shape[:3])
        # What a transposed convolution adds up goes out of the array and back in between.
        again = 2 * max(0, operator.results - words["outputs"])
        moved["inputs"] = shape.groups * traffic["inputs"] * bits["inputs"]
        moved["partial_sums"] = (shape.groups * traffic["partial_sums"] + again) * wide
        return moved

    def _wide(self, operator: Operator) -> int:
        """Bits of a sum and of a bias."""
        return 32 if operator.floating else self.array.accumulator_bits

    def _arithmetic(self, operator: Operator) -> tuple[LayerCost, dict[str, float]]:
        """What the array does, and the joules of each of its steps; moving is not among them."""
        if operator.shape is None:
            return _NOTHING, _NOTHING.energy
        base = self._products(operator, operator.zero_points[0])
        joules = dict(base.energy)
        joules["requantize"] *= operator.words["outputs"] / operator.results
        if operator.zero_points[1] and not operator.parameter:  # no bias can hold what is not known
            n, m, batch, groups = operator.shape
            swapped = operator._replace(shape=MatmulShape(batch, m, n, groups))
            joules["zero_point"] += self._products(swapped, True).energy["zero_point"]
        return base, joules

    def _products(self, operator: Operator, weight_zero_point: bool) -> LayerCost:
        """The products alone, without what is particular to this operator."""
        assert operator.shape is not None
        n, m, batch, groups = operator.shape
        wide = 32 if operator.floating else None
        return layer_cost(
            n,
            m,
            batch,
            weight_bits=wide or operator.bits["weights"],
            activation_bits=wide or operator.bits["inputs"],
            weight_zero_point=weight_zero_point,
            array=self.array,
            groups=groups,
            floating=operator.floating,
            memory=self.memory,
        )
