"""How far an engine that computes in single precision may be from the real numbers.

Each operation of the engine errs by a relative u = 2^-24. In units of u, and with E(x) for how far
a tensor may be off (the largest of its elements, to first order):

    a + b             E(a) + E(b) + |a + b|
    a b               |a| E(b) + E(a) |b| + |a b|
    sum_n a_k b_k     the sum of these, and n sum |a_k| |b_k| for the additions, in any order
    f(x)              L E(x), L its largest slope, and 16 (1 + |x| + |f(x)|) for the engine's own f

A quantizer rounds x / s: half a step, and E(x) u / s. Integer kernels add without error, so what
holds for floats holds for them.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from minq import graph
from minq.deploy.integer import simulation

U = 2.0**-24
FEW = 4  # the factor s_x s_w / s_y is made of products itself
FUNCTION = 16

_SUMS = ("mean", "sum", "avg_pool", "adaptive_avg_pool", "upsample_bilinear")
_FUNCTIONS = frozenset("sigmoid hardsigmoid tanh hardswish silu gelu elu mish softplus".split())
_MOVING = {"cat", "stack", "embedding", "neg"}
_PRODUCTS = {n for n, o in graph.OPERATORS.items() if o.multiplies} - {"embedding"}


class Forced(fx.Interpreter):
    """``simulation(q)`` in double precision, with an engine's integers at every quantizer.

    far: quantizer -> how much further its integers are from the real numbers than half a step and
        the engine's precision explain; 0 and less is right.
    explained: quantizer -> what the precision explains, in steps.
    answers: what it explains of the answers.
    """

    def __init__(self, q: fx.GraphModule, integers: dict[str, Tensor]) -> None:
        super().__init__(simulation(q))
        self.integers, self.far, self.explained, self.answers = integers, {}, {}, 0.0
        self.errors: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node):
        value = super().run_node(n)
        if n.op == "call_module" and n.target in self.integers:
            value = self._force(n, value)
        self.errors[n] = self._error(n, value)
        return value

    def _force(self, n: fx.Node, y: Tensor) -> Tensor:
        quantizer, x = self.fetch_attr(n.target), n.args[0]
        scale, zero_point = quantizer.scale_zero_point()
        exact = (self.env[x] / scale + zero_point).clamp(*quantizer.grid)
        levels = 2.0**quantizer.bits
        error = U * (self.errors[x] / float(scale.min()) + FEW * levels)
        away = float((self.integers[n.target] - exact).abs().max())
        self.far[n.target], self.explained[n.target] = away - 0.5 - error, error
        return scale * (self.integers[n.target] - zero_point)

    def _error(self, n: fx.Node, y) -> float:
        """E(y), the largest."""
        if n.op == "placeholder":
            return 0.0
        if n.op == "output":
            self.answers = U * max(self.errors[a] for a in n.all_input_nodes)
            return 0.0
        kind, size = graph.op(n), _size(y)
        if n.op != "call_function":
            return size  # s (x_int - z) is rounded
        values, kwargs = self.fetch_args_kwargs_from_env(n)
        inputs = [self.errors[a] for a in n.all_input_nodes]
        if kind in _PRODUCTS:
            (a, b), (ea, eb) = (v.abs() for v in values[:2]), (self.errors[x] for x in n.args[:2])
            rest = values[2:] if graph.traits(n).role == "product" else (None, *values[3:])
            one, other = torch.ones_like(a), torch.ones_like(b)

            def product(*factors: Tensor) -> Tensor:
                return n.target(*factors, *rest, **kwargs).max()

            sums = ea * product(one, b) + eb * product(a, other)
            return float(sums + (product(one, other) + FEW) * product(a, b)) + size
        if kind in ("mul", "rescale", "div"):
            a, b = (_size(v) if isinstance(v, Tensor) else abs(v) for v in values[:2])
            ea, eb = (self.errors.get(x, 0.0) for x in n.args[:2])
            return (ea / b if "div" in str(n.target) else a * eb + ea * b) + 2 * size
        if kind.startswith(_SUMS):
            terms = max(64, values[0].numel() // y.numel())
            factor = values[0].numel() // y.numel() if kind == "sum" else 1
            return factor * (inputs[0] + terms * _size(values[0]))
        if kind == "softmax":  # exp(x - max)
            return 2 * inputs[0] + 2 * _size(values[0]) + y.shape[values[1]] + FUNCTION
        if kind == "layer_norm":
            x, dims = values[0], tuple(range(-len(values[1]), 0))
            std = float((x.var(dims, correction=0) + values[4]).sqrt().min())
            terms = x[0].numel() + FEW
            spread = (2 + 2 * _size(x) / std) / std  # the largest slope of (x - mean) / std
            return spread * (inputs[0] + terms * _size(x)) * _size(values[2]) + FUNCTION * size
        if kind in _FUNCTIONS | {"leaky_relu", "prelu"}:
            return 1.5 * inputs[0] + FUNCTION * (1 + _size(values[0]) + size)
        if kind in ("add", "sub"):
            return sum(inputs) + size
        assert graph.traits(n).role in ("move", "activation") or kind in _MOVING or (
            not size or all(_size(self.env[a]) == 0 for a in n.all_input_nodes)
        ), f"what may {kind} be off by?"
        return max(inputs, default=0.0) + size * (graph.traits(n).role != "move")


def _size(value) -> float:
    """The largest absolute value of real numbers that are finite; infinite ones are masked."""
    tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]
    return max((float(t.abs().nan_to_num(0, 0, 0).max()) for t in tensors if t.numel()), default=0)
