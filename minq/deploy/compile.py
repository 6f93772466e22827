"""From a simulated network to a program of integers: every tensor, and what it stands for.

The simulation computes with real numbers that lie on grids, y = s (y_int - z). The compiler walks
through the graph once and writes down what each tensor is:

    a tensor is ...   it comes from                              and stands for
    Sum               layers, additions, means, moves            sum_k s_k (x_k - z_k) + c, clamped
    Pieces            a concatenation that is not rounded yet    several of them
    Function          GELU, sigmoid, ... of one grid             f(s (x - z)): a table once rounded
    Normalized        softmax or layer norm of one grid          the same of whole rows
    Constant          a parameter behind its quantizer           s w_int
    Parameter         one that has no quantizer                  itself
    Real              group norm, what has no quantizer, ...     itself: an island of floats
    Plain             token ids, masks, shapes                   no data

A quantizer turns any of them into integers on its grid, which ends the computation with scales: a
``Sum`` of one term again. Operators that have no integer form compute in floats, and are named.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from minq import graph
from minq.affine import _align
from minq.deploy import kernels
from minq.deploy.normalize import NOTHING, LayerNorm, Softmax
from minq.mac import accumulator_bits_of, bits_for
from minq.quantizer import Quantizer
from minq.simulate import is_quantizer, place

aten = torch.ops.aten
_INF = torch.tensor(math.inf, dtype=torch.float64)
_ZERO = torch.tensor(0.0, dtype=torch.float64)

FUNCTIONS = frozenset("sigmoid hardsigmoid tanh hardswish silu gelu elu mish softplus".split())
"""Functions of one number, which a device looks up."""

RATIONAL = frozenset(
    """mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d""".split()
)
"""Linear functions with rational coefficients, which integers compute up to a common factor."""

_FLOAT_ONLY = frozenset(
    """max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d pad""".split()
)
"""Moves that torch does not offer for all integers."""


# --- What a tensor stands for ---------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """scale (x - zero), x the integers of a node, in [low, high]."""

    node: fx.Node
    scale: Tensor
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class Sum:
    """sum of terms + constant, times slope where negative, then clamped to [low, high]."""

    terms: tuple[Term, ...]
    constant: Tensor = _ZERO
    low: Tensor = -_INF
    high: Tensor = _INF
    slope: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing is fused yet."""
        return self.slope is None and bool((self.low == -math.inf) & (self.high == math.inf))

    @property
    def grid(self) -> Term | None:
        """The one tensor that this is, if it has one scale."""
        (term, *more) = self.terms
        alone = not more and self.plain and not self.constant.any()
        return term if alone and term.scale.ndim == 0 else None


@dataclass(frozen=True)
class Pieces:
    """Sums that are rounded to one grid and then put together."""

    parts: tuple[Sum, ...]
    join: Callable[[list[fx.Node]], fx.Node]


@dataclass(frozen=True)
class Function:
    """A function of the real numbers on a grid."""

    term: Term
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Normalized:
    """A function of rows of real numbers on a grid; ``unit`` makes it for a grid of results."""

    term: Term
    function: Callable[[Tensor], Tensor]
    unit: Callable[[kernels.Quantize], nn.Module]


@dataclass(frozen=True)
class Constant:
    """scale times integers of [low, high] that are known; in what the graph calls a parameter."""

    values: Tensor
    scale: Tensor
    bits: int
    node: fx.Node


@dataclass(frozen=True)
class Real:
    """Real numbers in double precision."""

    node: fx.Node


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer that no quantizer rounds."""

    values: Tensor


@dataclass(frozen=True)
class Plain:
    """No data: token ids, masks, shapes."""

    node: fx.Node


class _Island(Exception):
    """An operator has no integer form here."""


# --- Compiling ------------------------------------------------------------------------------------


class Compiler:
    """Walks through the graph once; ``forms`` says of each node what its tensor stands for."""

    def __init__(self, q: fx.GraphModule, arithmetic: kernels.Arithmetic, wraps: bool) -> None:
        if not isinstance(q, fx.GraphModule) or not any(map(is_quantizer, q.graph.nodes)):
            raise TypeError(
                f"a network with quantizers is needed, not {type(q).__name__}; "
                "make one with minq.ptq or minq.qat"
            )
        self.q = q = graph.on_cpu(q)
        self.arithmetic, self.wraps = arithmetic, wraps
        self.dtype = next((p.dtype for p in q.parameters() if p.is_floating_point()), torch.float32)
        self.layers: dict[str, nn.Module] = {}
        self.places: dict[str, str] = {}  # quantizer -> new node
        self.islands: dict[str, str] = {}
        self.biases: dict[str, Tensor] = {}  # layer's node -> b_int s_w s_x
        self.constants: dict[str, Tensor] = {}  # parameter -> w_int s_w
        self.root, self.graph = nn.Module(), fx.Graph()
        self.forms: dict[fx.Node, Any] = {}
        self._reals: dict[int, fx.Node] = {}
        for node in q.graph.nodes:
            self.forms[node] = getattr(self, f"_{node.op}")(node)
        self.graph.set_codegen(copy.deepcopy(q.graph._codegen))
        self.program = fx.GraphModule(self.root, self.graph, "IntegerProgram").eval()
        self.graph.eliminate_dead_code()
        self.program.delete_all_unused_submodules()
        self.program.recompile()

    # --- nodes ------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Real | Plain:
        new = self.graph.placeholder(node.target)
        if graph.is_float(node):
            return Real(self.graph.call_method("double", (new,)))
        return Plain(new)

    def _get_attr(self, node: fx.Node) -> Parameter | Plain:
        value = graph.get(self.q, node.target).detach()
        return Parameter(value) if value.is_floating_point() else Plain(self._buffer(value))

    def _call_module(self, node: fx.Node) -> Any:
        if not is_quantizer(node):
            raise TypeError(f"{node.target} is still in training; call minq.qat.finish first")
        quantizer: Quantizer = self.q.get_submodule(node.target)
        form = self.forms[node.args[0]]
        if quantizer.stage == "off":
            return form
        if quantizer.stage == "observe":
            raise RuntimeError(f"{node.target} still observes; call freeze on every quantizer")
        scale, zero_point = (v.detach().double() for v in quantizer.grid())
        if isinstance(form, Parameter):
            return self._constant_form(node, quantizer, form.values, scale, zero_point)
        if scale.ndim:
            raise ValueError(
                f"{node.target} has {scale.numel()} scales; sums of integers need one per tensor"
            )
        n, p = quantizer.n, quantizer.p
        grid = kernels.Quantize(scale, zero_point, n, p)
        new = self._round(form, grid, node.target)
        self.places[node.target] = new.name
        return Sum((Term(new, scale, int(zero_point), n, p),))

    def _constant_form(self, node, quantizer, values, scale, zero_point) -> Constant:
        scale, zero_point = (
            _align(v, values, quantizer.axis, quantizer.group, "scale") for v in (scale, zero_point)
        )
        values = (quantizer.quantize(values) - zero_point).long()
        self.constants[node.args[0].target] = values * scale
        return Constant(values, scale, quantizer.bits, node)

    def _call_function(self, node: fx.Node) -> Any:
        if all(isinstance(self.forms[x], Plain) for x in node.all_input_nodes):
            return Plain(self._copy(node, self._any))
        kind = graph.op(node)
        if not any(isinstance(v, Tensor) for v in tree_leaves(node.meta.get("val"))):
            return Plain(self._copy(node, self._any))  # a size
        try:
            if kind in graph.CONVOLUTIONS | graph.TRANSPOSED | {"linear"}:
                return self._layer(node)
            if kind in graph.PRODUCTS | {"mul"}:
                return self._product(node)
            if kind in graph.FUSED | {"relu6"}:
                return self._fused(node)
            if kind in ("cat", "stack"):
                return self._pieces(node)
            if kind in RATIONAL:
                return self._rational(node)
            if kind in FUNCTIONS:
                return self._function(node)
            if kind in graph.TRANSPARENT:
                return self._move(node)
            handler = {
                "add": self._add, "sub": self._add, "neg": self._neg, "rescale": self._rescale,
                "embedding": self._embedding, "batch_norm": self._batch_norm,
                "softmax": self._softmax, "layer_norm": self._layer_norm,
            }.get(kind)  # fmt: skip
            if handler is not None:
                return handler(node)
            raise _Island("no integer form")
        except _Island as reason:
            return self._island(node, str(reason))

    def _output(self, node: fx.Node) -> None:
        self.graph.output(fx.map_arg(node.args[0], self._real_or_plain))

    # --- layers and products ----------------------------------------------------------------------

    def _layer(self, node: fx.Node) -> Sum:
        """Eq. (13): W_int x_int, the bias in the same unit, the input's zero-point folded in."""
        kind, x, w = graph.op(node), self._grid(node.args[0]), self.forms[graph.weight_node(node)]
        bias = self.forms[b] if (b := graph.bias_node(node)) is not None else None
        if not isinstance(w, Constant) or not isinstance(bias, Parameter | None):
            raise _Island("its weight is not quantized")
        transposed, groups = kind in graph.TRANSPOSED, graph.groups_of(node)
        if w.scale.numel() > 1 and w.scale.shape[int(transposed)] != w.scale.numel():
            raise _Island("its weight has more scales than outputs")
        rows = (graph.turn(w.values, groups) if transposed else w.values).flatten(1)
        scale = w.scale.reshape(-1) * x.scale
        b_int = torch.zeros(len(rows), dtype=torch.int64)
        if bias is not None:
            b_int = self._bias(node, bias.values.double(), scale)
        folded = b_int if transposed else b_int - x.zero * rows.sum(1)
        low, high = (x.low - x.zero, x.high - x.zero) if transposed else (x.low, x.high)
        settings, pads = self._geometry(node, w.values.ndim - 2)
        layer = kernels.Layer(
            getattr(nn.functional, kind),
            w.values.to(kernels.storage(int(w.values.min()), int(w.values.max()))),
            folded.int(),
            x.zero,
            pads,
            not transposed,
            **settings,
        )
        name = graph.layer_name(node)
        signed = low < 0
        bits = bits_for(low, high) - (not signed)
        layer.bound = accumulator_bits_of(rows, bits, activation_signed=signed, bias=folded)
        new = self._accumulate(name, layer, (x.node,))
        dims = 0 if kind == "linear" else w.values.ndim - 2
        scale = scale.reshape(-1, *[1] * dims) if len(scale) > 1 else scale.reshape(())
        return Sum((Term(new, scale, 0, *self._limits(layer)),))

    def _bias(self, node: fx.Node, bias: Tensor, scale: Tensor) -> Tensor:
        """b_int = round(b / (s_w s_x)), 32 bits."""
        b_int = torch.round(bias / scale)
        if (worst := float(b_int.abs().max())) >= 2**31:
            channel = int(b_int.abs().argmax())
            raise ValueError(
                f"the bias of {graph.layer_name(node)} has {worst:.3g} steps of s_w s_x in output "
                f"{channel}, more than 32 bits hold: the channel's weights are next to nothing; "
                "set them to 0, or give the weight one scale for all channels"
            )
        self.biases[node.name] = b_int * scale
        return b_int.long()

    def _geometry(self, node: fx.Node, dims: int) -> tuple[dict[str, Any], list[int]]:
        """Keywords of torch's function, and what to pad before it is called."""
        kind, argument = graph.op(node), graph.argument
        if kind == "linear":
            return {}, []
        groups = graph.groups_of(node)
        if kind in graph.TRANSPOSED:
            names = (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1),
                     ("dilation", 1))  # fmt: skip
            return {k: argument(node, 3 + i, k, v) for i, (k, v) in enumerate(names)}, []
        kernel = graph.shape_of(graph.weight_node(node))[2:]
        stride, pads, dilation = graph.geometry(node, kernel)
        flat = [p for pair in reversed(pads) for p in pair]
        return {"stride": stride, "dilation": dilation, "groups": groups}, flat

    def _product(self, node: fx.Node) -> Sum:
        """Two tensors multiplied, as matrices or element by element; zero-points are subtracted."""
        a, b = (self._factor(x) for x in node.args[:2])
        matrices = graph.op(node) in graph.PRODUCTS
        columns = matrices and b.scale.shape[-1:] == (b.scale.numel(),)
        if a.scale.numel() > 1 or (b.scale.numel() > 1 and not columns):
            raise _Island("an operand has several scales")
        count = graph.shape_of(node.args[0])[-1] if matrices else 1
        corners = [(u - a.zero) * (v - b.zero) for u in (a.low, a.high) for v in (b.low, b.high)]
        product = kernels.Product(node.target, (a.zero, b.zero))
        product.bound = bits_for(int(count) * min(corners), int(count) * max(corners))
        new = self._accumulate(place(node), product, (a.node, b.node))
        scale = a.scale.reshape(()) * b.scale.reshape(b.scale.shape[-1:])
        return Sum((Term(new, scale.reshape(()) if scale.numel() == 1 else scale, 0,
                         *self._limits(product)),))  # fmt: skip

    def _accumulate(self, name: str, module: kernels.Accumulate, args: tuple) -> fx.Node:
        module.bits = self.arithmetic.accumulator_bits
        if module.bound > module.bits and not self.wraps:
            raise ValueError(
                f"{name} may need {module.bound} bits where accumulators have {module.bits}; "
                'allow more, take fewer bits, or pass overflow="wrap"'
            )
        new = self._module(name, module, args)
        self.layers[self._unused(name, self.layers)] = module
        return new

    @staticmethod
    def _limits(module: kernels.Accumulate) -> tuple[int, int]:
        half = 2 ** (min(module.bound, module.bits) - 1)
        return -half, half - 1

    # --- linear functions -------------------------------------------------------------------------

    def _add(self, node: fx.Node) -> Sum:
        sign = -1.0 if graph.op(node) == "sub" else 1.0
        a, b = map(self._summand, node.args[:2])
        b = _scaled(b, sign * float(node.kwargs.get("alpha", 1)))
        return Sum(a.terms + b.terms, a.constant + b.constant)

    def _neg(self, node: fx.Node) -> Sum:
        return _scaled(self._summand(node.args[0]), -1.0)

    def _rescale(self, node: fx.Node) -> Sum:
        a, b = node.args[:2]
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):  # a factor for each channel
            return _scaled(self._summand(a), self._values(b))
        if isinstance(a, fx.Node):
            name = getattr(node.target, "overloadpacket", node.target).__name__
            return _scaled(self._summand(a), float(b) if name == "mul" else 1 / float(b))
        if graph.op(node) == "rescale" and node.target in (aten.mul.Tensor, operator.mul):
            return _scaled(self._summand(b), float(a))
        raise _Island("a number divided by a tensor")

    def _batch_norm(self, node: fx.Node) -> Sum:
        """One factor and one constant for each channel, eq. (9)."""
        x, (gamma, beta, mean, variance) = self._summand(node.args[0]), (
            None if a is None else self._values(a) for a in node.args[1:5]
        )  # fmt: skip
        if node.args[5] or mean is None:
            raise _Island("it normalizes by the batch's own statistics")
        factor = (variance + node.args[7]).rsqrt() * (1.0 if gamma is None else gamma)
        shift = (0.0 if beta is None else beta) - mean * factor
        shape = [-1] + [1] * (len(graph.shape_of(node.args[0])) - 2)
        y = _scaled(x, factor.reshape(shape))
        return replace(y, constant=y.constant + shift.reshape(shape))  # eq. (9)

    def _rational(self, node: fx.Node) -> Sum:
        x = self._grid(node.args[0])
        factor = _denominator(node)
        average = kernels.Average(node.target, x.zero, factor)
        most = max(abs(x.low - x.zero), abs(x.high - x.zero)) * factor
        if graph.op(node) == "sum":
            most *= _count(node)
        if most >= 2**31:
            raise _Island("its common denominator is too large for 32 bits")
        average.bound = bits_for(-most, most)
        rest = fx.map_arg((node.args[1:], dict(node.kwargs)), self._plain)
        new = self._module(place(node), average, (x.node, *rest[0]), rest[1])
        return Sum((Term(new, x.scale / factor, 0, -most, most),))

    # --- what is fused, put together, looked up, moved --------------------------------------------

    def _fused(self, node: fx.Node) -> Sum | Pieces | Function:
        form = self.forms[node.args[0]]
        if isinstance(form, Pieces) and graph.op(node) != "prelu":
            return Pieces(tuple(self._clamped(node, p) for p in form.parts), form.join)
        return self._clamped(node, form)

    def _clamped(self, node: fx.Node, x: Any) -> Any:
        if isinstance(x, Constant):
            x = self._summand_of(x)
        if isinstance(x, Function):
            then = self._one_number(node)
            return Function(x.term, lambda r: then(x.function(r)))
        if not isinstance(x, Sum):
            raise _Island("its input is not on a grid")
        kind, argument = graph.op(node), graph.argument
        if kind in ("leaky_relu", "prelu"):
            slope = torch.tensor(argument(node, 1, "negative_slope", 0.01), dtype=torch.float64) \
                if kind == "leaky_relu" else self._values(node.args[1])  # fmt: skip
            if not x.plain:
                raise _Island("it follows another function")
            if slope.numel() > 1:
                slope = slope.reshape([-1] + [1] * (len(graph.shape_of(node)) - 2))
            return replace(x, slope=slope.reshape(()) if slope.numel() == 1 else slope)
        low, high = {
            "relu": (0.0, None), "relu6": (0.0, 6.0),
        }.get(kind) or (
            argument(node, 1, "min_val" if kind == "hardtanh" else "min",
                     -1.0 if kind == "hardtanh" else None),
            argument(node, 2, "max_val" if kind == "hardtanh" else "max",
                     1.0 if kind == "hardtanh" else None),
        )  # fmt: skip
        low, high = self._bound(low, -_INF), self._bound(high, _INF)
        # As torch does: first up to low, then down to high.
        bounds = [torch.minimum(torch.maximum(v, low), high) for v in (x.low, x.high)]
        return replace(x, low=bounds[0], high=bounds[1])

    def _bound(self, value: Any, default: Tensor) -> Tensor:
        if value is None:
            return default
        if isinstance(value, fx.Node):
            return self._values(value)
        return torch.tensor(float(value), dtype=torch.float64)

    def _pieces(self, node: fx.Node) -> Pieces:
        parts = [self.forms[a] for a in node.args[0]]
        parts = [self._summand_of(p) if isinstance(p, Constant) else p for p in parts]
        if not all(isinstance(p, Sum | Pieces | Function | Normalized | Real) for p in parts):
            raise _Island("a part of it is not on a grid")
        rest = fx.map_arg((node.args[1:], dict(node.kwargs)), self._plain)

        def join(nodes: list[fx.Node]) -> fx.Node:
            return self.graph.call_function(node.target, (nodes, *rest[0]), rest[1])

        return Pieces(tuple(parts), join)

    def _function(self, node: fx.Node) -> Function:
        return Function(self._grid(node.args[0]), self._one_number(node))

    def _one_number(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """The operator as a function of its first operand, where all others are numbers."""
        if len(node.all_input_nodes) > 1:
            raise _Island("it has several operands")
        return lambda x: node.target(x, *node.args[1:], **node.kwargs)

    def _softmax(self, node: fx.Node) -> Normalized:
        x, function = self._grid(node.args[0]), self._one_number(node)
        rows = {"dim": node.args[1], "low": x.low, "high": x.high}

        def unit(grid: kernels.Quantize) -> nn.Module:
            return Softmax(function, x.scale, x.zero, grid, self.arithmetic.exact, **rows)

        return Normalized(x, function, unit)

    def _layer_norm(self, node: fx.Node) -> Normalized:
        x, (shape, weight, bias) = self._grid(node.args[0]), (*node.args[1:4], None, None)[:3]
        count = math.prod(shape)
        eps = graph.argument(node, 4, "eps", 1e-5)
        gamma = torch.ones(shape).double() if weight is None else self._values(weight)
        beta = torch.zeros(shape).double() if bias is None else self._values(bias)
        most = count * max(abs(x.low), abs(x.high), x.high - x.low)
        if count * most**2 + eps * count**3 / float(x.scale) ** 2 >= 2**52:
            raise _Island("its sums of squares need more than 52 bits")
        rows = {"dims": len(shape), "count": count, "gamma": gamma, "beta": beta, "eps": eps}

        def function(real: Tensor) -> Tensor:
            return nn.functional.layer_norm(real, shape, gamma, beta, eps)

        def unit(grid: kernels.Quantize) -> nn.Module:
            return LayerNorm(function, x.scale, x.zero, grid, self.arithmetic, **rows)

        return Normalized(x, function, unit)

    def _embedding(self, node: fx.Node) -> Sum:
        w, index = self.forms[node.args[0]], self.forms[node.args[1]]
        if not isinstance(w, Constant) or w.scale.numel() > 1:
            raise _Island("its rows have scales of their own")
        low, high = int(w.values.min()), int(w.values.max())
        lookup = kernels.Lookup(w.values.to(kernels.storage(low, high)))
        new = self._module(graph.layer_name(node), lookup, (index.node,))
        return Sum((Term(new, w.scale.reshape(()), 0, low, high),))

    def _move(self, node: fx.Node) -> Sum:
        first, *others = node.args
        if isinstance(first, list | tuple) or any(
            not isinstance(self.forms[x], Plain) for x in node.all_input_nodes[1:]
        ):
            raise _Island("it joins several tensors")
        x = self._factor(first)
        if x.scale.ndim:
            raise _Island("its input has several scales")
        kind = graph.op(node)
        if kind in ("constant_pad_nd", "pad", "masked_fill"):
            others, x = self._filled(node, kind, others, x)
        rest = fx.map_arg((tuple(others), dict(node.kwargs)), self._plain)
        if kind in _FLOAT_ONLY:
            new = self._module(place(node), kernels.Move(node.target), (x.node, *rest[0]), rest[1])
        else:
            new = self.graph.call_function(node.target, (x.node, *rest[0]), rest[1])
        return Sum((replace(x, node=new),))

    def _filled(self, node: fx.Node, kind: str, others: list, x: Term) -> tuple[list, Term]:
        """The level of the value that fills up, and the term that has room for it."""
        at, name = (2, "value") if kind in ("constant_pad_nd", "masked_fill") else (3, "value")
        if kind == "pad" and graph.argument(node, 2, "mode", "constant") != "constant":
            return others, x
        value = float(graph.argument(node, at, name, 0.0) or 0.0)
        readers = {graph.op(user) for user in node.users}
        level = value / float(x.scale) + x.zero
        if value == -math.inf and x.scale > 0 and readers <= {"max_pool1d", "max_pool2d"}:
            level = x.low  # never larger than what is pooled with it
        elif value == -math.inf and x.scale > 0 and readers == {"softmax"}:
            level = x.low - math.ceil(NOTHING / float(x.scale))
            x = replace(x, node=self.graph.call_method("int", (x.node,)), low=level)
        elif not x.low <= level <= x.high or level != round(level):
            raise _Island(f"it fills up with {value}, which is not on the grid")
        padding = [*others, "constant"] if kind == "pad" and len(others) == 1 else others
        return [*padding[: at - 1], int(level)], x

    # --- rounding, and coming back to real numbers ------------------------------------------------

    def _round(self, form: Any, grid: kernels.Quantize, name: str) -> fx.Node:
        """The node that gives the integers of a form on a grid."""
        if isinstance(form, Pieces):
            return form.join(
                [self._round(p, grid, f"{name}.{k}") for k, p in enumerate(form.parts)]
            )
        if isinstance(form, Function):
            x = form.term
            real = x.scale * (torch.arange(x.low, x.high + 1).double() - x.zero)
            return self._module(name, kernels.Table(grid(form.function(real)), x.low), (x.node,))
        if isinstance(form, Normalized):
            return self._module(name, form.unit(grid), (form.term.node,))
        if isinstance(form, Sum):
            unit = kernels.Requantize(_dequantize(form), grid, self.arithmetic)
            return self._module(name, unit, tuple(t.node for t in form.terms))
        return self._module(name, grid, (self._real(form),))

    def _real(self, form: Any) -> fx.Node:
        """The node that gives the real numbers of a form, in double precision."""
        if id(form) not in self._reals:
            self._reals[id(form)] = self._make_real(form)
        return self._reals[id(form)]

    def _make_real(self, form: Any) -> fx.Node:
        if isinstance(form, Real):
            return form.node
        if isinstance(form, Parameter):
            return self._buffer(form.values.double())
        if isinstance(form, Constant):
            return self._buffer(form.values * form.scale)
        if isinstance(form, Pieces):
            return form.join([self._real(p) for p in form.parts])
        if isinstance(form, Function | Normalized):
            return self.graph.call_function(form.function, (self._real(Sum((form.term,))),))
        return self._module("real", _dequantize(form), tuple(t.node for t in form.terms))

    def _island(self, node: fx.Node, reason: str) -> Real:
        kind = graph.op(node)
        if kind not in graph.TRANSPARENT:
            self.islands[self._unused(place(node), self.islands)] = f"{kind}: {reason}"
        return Real(self._copy(node, self._real_or_plain))

    def _real_or_plain(self, node: fx.Node) -> fx.Node:
        form = self.forms[node]
        if not isinstance(form, Plain):
            return self._real(form)
        double = graph.is_float(node)  # such as shares of an average, counted from a mask
        return self.graph.call_method("double", (form.node,)) if double else form.node

    def _any(self, node: fx.Node) -> fx.Node:
        """A node of that shape."""
        form = self.forms[node]
        if isinstance(form, Sum) and len(form.terms) == 1:
            return form.terms[0].node
        return self._real_or_plain(node)

    # --- small things -----------------------------------------------------------------------------

    def _copy(self, node: fx.Node, new_of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), new_of)
        return self.graph.call_function(node.target, args, kwargs)

    def _grid(self, node: fx.Node) -> Term:
        form = self.forms[node]
        if not isinstance(form, Sum) or form.grid is None:
            raise _Island("its input is not on one grid")
        return form.grid

    def _factor(self, node: Any) -> Term:
        form = self.forms[node] if isinstance(node, fx.Node) else None
        if isinstance(form, Constant):
            (term,) = self._summand_of(form).terms
            return term
        return self._grid(node) if form is not None else self._no(node)

    def _no(self, node: Any) -> Any:
        raise _Island(f"{node} is not a tensor on a grid")

    def _summand(self, value: Any) -> Sum:
        """What can be added: a number, or a tensor on grids with nothing fused yet."""
        if not isinstance(value, fx.Node):
            return Sum((), torch.tensor(float(value), dtype=torch.float64))
        form = self.forms[value]
        if isinstance(form, Constant):
            return self._summand_of(form)
        if not isinstance(form, Sum) or not form.plain:
            raise _Island("an operand is not on a grid")
        return form

    def _summand_of(self, form: Constant) -> Sum:
        low, high = int(form.values.min()), int(form.values.max())
        node = self._buffer(form.values.to(kernels.storage(low, high)))
        scale = form.scale.reshape(()) if form.scale.numel() == 1 else form.scale
        return Sum((Term(node, scale, 0, low, high),))

    def _values(self, node: fx.Node) -> Tensor:
        form = self.forms[node]
        if isinstance(form, Parameter):
            return form.values.double()
        if isinstance(form, Constant):
            return form.values * form.scale
        raise _Island("it needs a constant")

    def _plain(self, node: fx.Node) -> fx.Node:
        form = self.forms[node]
        return form.node if isinstance(form, Plain) else self._no(node)

    def _module(self, name: str, module: nn.Module, args: Sequence, kwargs=None) -> fx.Node:
        name = name.replace(".", "_") or type(module).__name__.lower()
        name = self._unused(name, dict(self.root.named_children()))
        self.root.add_module(name, module)
        return self.graph.call_module(name, tuple(args), kwargs)

    def _buffer(self, value: Tensor) -> fx.Node:
        name = self._unused("constant", dict(self.root.named_buffers()))
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    @staticmethod
    def _unused(name: str, taken: dict[str, Any]) -> str:
        new, k = name, 0
        while new in taken:
            new, k = f"{name}_{k + 1}", k + 1
        return new


def _scaled(x: Sum, factor: Tensor | float) -> Sum:
    """factor times a sum with nothing fused."""
    terms = tuple(replace(t, scale=t.scale * factor) for t in x.terms)
    return Sum(terms, x.constant * factor)


def _dequantize(x: Sum) -> kernels.Dequantize:
    scales, zeros = [t.scale for t in x.terms], [t.zero for t in x.terms]
    return kernels.Dequantize(scales, zeros, x.constant, x.low, x.high, x.slope)


# --- Rational coefficients ------------------------------------------------------------------------


def _denominator(node: fx.Node) -> int:
    """A whole number that makes all coefficients of a linear function whole."""
    kind, x = graph.op(node), node.args[0]
    if kind == "sum":
        return 1
    if kind == "mean":
        return _count(node)
    sizes = list(zip(graph.shape_of(x)[2:], graph.shape_of(node)[2:], strict=True))
    if not all(str(size).isdigit() for pair in sizes for size in pair):
        raise _Island("its sizes vary")
    sizes = [(int(a), int(b)) for a, b in sizes]
    if kind.startswith("avg_pool"):
        return _pool_denominator(node, len(sizes))
    if kind.startswith("adaptive"):  # the windows of place k go from floor(k a / b) to ceil(...)
        return math.prod(
            math.lcm(*(-(-(k + 1) * a // b) - k * a // b for k in range(b))) for a, b in sizes
        )
    align = graph.argument(node, 2, "align_corners")
    if align:  # the places are k (a - 1) / (b - 1)
        factor = math.prod(max(b - 1, 1) // math.gcd(a - 1, max(b - 1, 1)) for a, b in sizes)
    else:  # ((2 k + 1) a / b - 1) / 2
        factor = math.prod(2 * b // math.gcd(a, b) for a, b in sizes)
    return _checked(node, factor)


def _pool_denominator(node: fx.Node, dims: int) -> int:
    """The area of the window; where parts of windows count, what all their areas divide."""
    if (override := graph.argument(node, 6, "divisor_override")) is not None:
        return abs(int(override))
    kernel, padding = (
        graph._each(graph.argument(node, k, name, default), dims)
        for k, name, default in ((1, "kernel_size", 1), (3, "padding", 0))
    )
    partial = any(padding) and not graph.argument(node, 5, "count_include_pad", True)
    if partial or graph.argument(node, 4, "ceil_mode", False):
        return math.prod(math.lcm(*range(1, k + 1)) for k in kernel)
    return math.prod(kernel)


def _count(node: fx.Node) -> int:
    """How many numbers a mean or a sum takes together."""
    shape, dims = graph.shape_of(node.args[0]), graph.argument(node, 1, "dim")
    dims = range(len(shape)) if dims in (None, []) else dims
    sizes = [shape[d] for d in ([dims] if isinstance(dims, int) else dims)]
    if not all(str(size).isdigit() for size in sizes):
        raise _Island("it goes over the batch")
    return math.prod(map(int, sizes))


def _checked(node: fx.Node, factor: int) -> int:
    """The factor, if it does what it should: interpolation may have any scale factor."""
    x = torch.randint(-128, 128, (1, *map(int, graph.shape_of(node.args[0])[1:])))
    if any(isinstance(a, fx.Node) for a in node.args[1:]):
        raise _Island("its sizes vary")
    y = node.target(x.double(), *node.args[1:], **node.kwargs) * factor
    if (y - y.round()).abs().max() > 1e-6:
        raise _Island("its coefficients are not rational")
    return factor
