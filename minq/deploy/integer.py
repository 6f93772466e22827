"""Figure 4a of the paper: the network on integers, and the proof that it is the simulated one.

net = to_integer(q)       integers from the first quantizer to the last
net(x)                    real numbers, as q gives them
net.trace(x)              the integers at every quantizer
net.report(x)             how wide sums become, what is clipped, what it costs, layer by layer
simulation(q)             figure 4b in double precision: what the integers must equal
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from minq import graph
from minq._checks import check_count
from minq.deploy import kernels
from minq.deploy.biases import warn_of_coarse
from minq.deploy.compiler.compile import Compiler
from minq.deploy.cost import OperatorCost, layer_costs
from minq.deploy.normalize import Normalize
from minq.deploy.products import one_sample
from minq.export import outside
from minq.graph.batches import batches_of
from minq.graph.network import warn_of_shapes
from minq.mac import bits_for


@outside()
def to_integer(
    q: fx.GraphModule,
    *,
    multipliers: str = "fixed",
    multiplier_bits: int = 31,
    rounding: str = "half_even",
    accumulator_bits: int = 32,
    overflow: str = "error",
) -> IntegerNetwork:
    """The quantized network ``q``, computed with integers only, on the CPU; ``q`` is left alone.

    A bias becomes a 32-bit integer of scale s_w s_x. Where weights are next to nothing, a bias may
    have too many steps of that size; the weights then get wider ones, see ``minq.deploy.biases``.
    Where the steps are too coarse for a bias instead, a warning names the layer. A function of one
    number is a table of at most 2^16 entries. What has no quantizer or no integer form computes in
    floats; ``islands`` names it.

    Args:
        q: what ``minq.ptq`` or ``minq.qat`` returns.
        multipliers: "fixed", integers and a shift; or "float", in double precision: then the
            integers are those of ``simulation(q)``, bit for bit. With "fixed" and 31 bits a result
            differs by one step at most, and only next to a tie.
        multiplier_bits: of "fixed" multipliers, 2 to 31.
        rounding: of "fixed" multipliers: "half_even" as in the simulation, or "half_up".
        accumulator_bits: how wide accumulators are, 2 to 32.
        overflow: what happens where weights are such that some input may overflow an accumulator:
            "error", or "wrap" as two's complement does.

    Returns:
        The network on integers; it is called as ``q`` is.

    Raises:
        TypeError: for a network without quantizers.
        RuntimeError: for quantizers that have no range yet.
        ValueError: for an accumulator that does not fit.

    >>> import minq
    >>> model, x = nn.Linear(4, 2), torch.linspace(-1, 1, 8).reshape(2, 4)
    >>> q = minq.ptq(nn.Sequential(model), x, rounding="nearest")
    >>> net = to_integer(q)
    >>> net
    IntegerNetwork(1 layer, 0 float islands)
    >>> (net(x) - q(x)).abs().max() < 1e-6
    tensor(True)
    """
    for name, value, known in (
        ("multipliers", multipliers, ("fixed", "float")),
        ("rounding", rounding, ("half_even", "half_up")),
        ("overflow", overflow, ("error", "wrap")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, not {value!r}")
    for name, bits, most in (
        ("multiplier_bits", multiplier_bits, 31),
        ("accumulator_bits", accumulator_bits, 32),
    ):
        if not 2 <= check_count(bits, name) <= most:
            raise ValueError(f"{name} must be 2 to {most}, not {bits}")
    exact = multipliers == "float"
    arithmetic = kernels.Arithmetic(exact, multiplier_bits, rounding, accumulator_bits)
    net = IntegerNetwork(Compiler(q, arithmetic, overflow == "wrap").run())
    warn_of_coarse(q)
    return net


@outside()
def simulation(q: fx.GraphModule) -> fx.GraphModule:
    """``q`` in double precision with its biases on their 32-bit grid: what integers must equal.

    In single precision, as ``q`` itself computes, sums are off in the seventh digit, which moves a
    value that lies next to a tie by one step.

    Args:
        q: what ``minq.ptq`` or ``minq.qat`` returns; it is left alone.

    Returns:
        A copy of it.

    Raises:
        TypeError, RuntimeError, ValueError: as ``to_integer``.
    """
    compiler = Compiler(q, kernels.Arithmetic(exact=True), wraps=True).run()
    gm = compiler.q.double()
    for name, values in compiler.constants.items():
        graph.put(gm, name, values)
    for node in list(gm.graph.nodes):
        if (bias := compiler.biases.get(node.name)) is not None:
            graph.set_bias(gm, node, bias)
    return graph.tidy(gm)


class IntegerNetwork(nn.Module):
    """What ``to_integer`` returns: called as the network it comes from, it answers real numbers.

    program: the fx graph that computes. Its edges carry integers: 8 bits and fewer from one
        ``Requantize`` to the next layer, 32 behind a layer.
    layers: name -> the module that multiplies and adds.
    places: name of a quantizer -> the node whose integers it gives.
    islands: operators that compute in floats -> why.
    """

    def __init__(self, compiler: Compiler) -> None:
        super().__init__()
        self.program, self.places = compiler.program, compiler.places
        self.layers, self.islands = compiler.layers, compiler.islands
        self._dtype, self._source = compiler.dtype, (compiler.source,)  # a tuple hides the module

    @outside()
    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        def single(t: Tensor) -> Tensor:
            return t.to(self._dtype) if t.is_floating_point() else t

        args, kwargs = graph.to_device_of(self, (args, kwargs))
        warn_of_shapes(self._source[0], args, kwargs)
        return tree_map_only(Tensor, single, self.program(*args, **kwargs))

    def one_sample(self) -> list[Tensor]:
        """Zeros of the shapes that it was captured with, one for each input, a batch of one."""
        return [one_sample(n) for n in self._source[0].graph.nodes if n.op == "placeholder"]

    def trace(self, data: Any) -> dict[str, Tensor]:
        """The integers at every quantizer, by its name, for one batch of inputs."""
        name_of = {node: name for name, node in self.places.items()}
        found = {}
        for node, _, _, value in self._watch(data):
            if node.name in name_of:
                found[name_of[node.name]] = value
        return found

    def report(self, data: Any) -> IntegerReport:
        """What happens in every layer and requantization for one batch of inputs."""
        costs = layer_costs(self._source[0], data)
        name_of = {id(module): name for name, module in self.layers.items()}
        place_of = {node: name.removesuffix(".quantizer") for name, node in self.places.items()}
        rows = []
        for node, module, args, _ in self._watch(data):
            if not isinstance(module, kernels.Requantize | Normalize):
                continue
            sources = [
                (self.program.get_submodule(a.target), x)
                for a, x in zip(node.args, args, strict=True)
                if a.op == "call_module"
            ]
            sums = [(m, x) for m, x in sources if isinstance(m, kernels.Accumulate)]
            names = [name_of[id(m)] for m, _ in sums if id(m) in name_of]
            name = names[0] if names else place_of.get(node.name, node.target)
            rows.append(_row(name, module, args, sums, costs.get(name)))
        return IntegerReport(rows)

    def _watch(self, data: Any) -> Iterator[tuple[fx.Node, Any, tuple, Any]]:
        """Run the program and give every node with its module, arguments and value."""
        (values,) = batches_of(self._source[0], data)
        watch = _Watch(self.program)
        with torch.no_grad():
            watch.run(*values, enable_io_processing=False)
        return iter(watch.seen)

    def extra_repr(self) -> str:
        return f"{_count(len(self.layers), 'layer')}, {_count(len(self.islands), 'float island')}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


class _Watch(fx.Interpreter):
    """Runs a graph and keeps what each of its nodes got and gave."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.seen: list[tuple] = []

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        module = self.fetch_attr(node.target) if node.op == "call_module" else None
        self.seen.append((node, module, self.fetch_args_kwargs_from_env(node)[0], value))
        return value


# --- The report -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One requantization, and the layer in front of it."""

    name: str
    outputs: int  # numbers that were requantized
    bound: int | None  # accumulator bits that no input can overflow; None: nothing accumulates
    bits: int | None  # accumulator bits that these inputs needed
    wrapped: bool  # whether the accumulator was narrower than the bound
    multiplier: tuple[int, int]  # smallest and largest
    shift: tuple[int, int]  # smallest and largest
    clipped: int  # results beyond the ends of the grid
    differ: int  # results that float multipliers would have rounded differently
    worst: int  # the largest such difference, in steps
    cost: OperatorCost | None  # of the layer or product, on the accelerator of minq.mac


class IntegerReport(list):
    """Rows in the order of computation; ``print`` shows them as a table."""

    def __str__(self) -> str:
        head = ("layer", "acc. bound", "seen", "multiplier >> shift", "clipped", "differ",
                "MACs", "bytes moved", "cycles", "nJ")  # fmt: skip
        lines = [head, *map(_cells, self)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
        return "\n".join(
            line[0].ljust(widths[0])
            + "".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths[1:], strict=True))
            for line in lines
        )


def _cells(row: Row) -> tuple[str, ...]:
    shift = "{}..{}".format(*row.shift) if row.shift[0] < row.shift[1] else str(row.shift[0])
    cost = ("", "", "", "")
    if row.cost is not None:
        c = row.cost
        cost = (
            f"{c.macs:,}",
            f"{c.total_bytes:,}",
            f"{c.cycles:,}",
            f"{c.total_energy * 1e9:,.0f}",
        )
    bits = ("", "") if row.bound is None else (f"{row.bound}", f"{row.bits}")
    return (row.name, *bits, f"{row.multiplier[1]} >> {shift}", f"{row.clipped / row.outputs:.2%}",
            f"{row.differ:,}", *cost)  # fmt: skip


def _row(name, unit: kernels.Requantize | Normalize, args, sums, cost) -> Row:
    exact, fixed = unit.in_floats(*args).long(), unit.in_integers(*args).long()
    away = (exact - fixed).abs()
    multipliers, shift = unit.fixed
    return Row(
        name=name,
        outputs=fixed.numel(),
        bound=max((m.bound for m, _ in sums), default=None),
        bits=max((bits_for(int(x.min()), int(x.max())) for _, x in sums), default=None),
        wrapped=any(m.bound > m.bits for m, _ in sums),
        multiplier=(min(int(m.min()) for m in multipliers), max(int(m.max()) for m in multipliers)),
        shift=(int(shift.min()), int(shift.max())),
        clipped=unit.clipped(*args),
        differ=int((away > 0).sum()),
        worst=int(away.max()),
        cost=cost,
    )
