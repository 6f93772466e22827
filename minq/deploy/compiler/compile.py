"""From a simulated network to a program of integers: one walk through the graph.

``minq.deploy.compiler.forms`` names what a tensor may stand for; ``HANDLERS`` says what makes that
of an operator. A quantizer turns any form into integers on its grid. Operators that have no integer
form compute in floats, and are named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from minq import graph
from minq.deploy import kernels
from minq.deploy.compiler import linear, moves, rounding, tables
from minq.deploy.compiler.double import in_double
from minq.deploy.compiler.forms import (
    Constant,
    Filled,
    Form,
    Function,
    Hidden,
    Island,
    Normalized,
    Parameter,
    Pieces,
    Plain,
    Real,
    Rows,
    Sum,
    Term,
)
from minq.export import unwrapped
from minq.graph import Network, call_of, note_network
from minq.quantizer import Quantizer
from minq.simulate import is_quantizer

aten = torch.ops.aten

HANDLERS: dict[str, Callable[[Compiler, fx.Node], Form]] = {
    "layer": linear.layer,
    "product": linear.product,
    "fused": linear.fused,
    "rational": linear.rational,
    "add": linear.add,
    "neg": linear.neg,
    "rescale": linear.rescale,
    "batch_norm": linear.batch_norm,
    "pointwise": tables.pointwise,
    "softmax": tables.softmax,
    "norm": tables.norm,
    "embedding": tables.embedding,
    "make": tables.made,
    "convert": tables.converted,
    "move": moves.move,
    "join": moves.join,
}
"""What makes a form of an operator, by the lowering that the table of operators names for it; it
raises ``Island`` where there is none."""


class Compiler:
    """Walks through the graph, in ``run``; ``forms`` says what each node's tensor stands for.

    What it learns beside the program: ``layers``, ``places``, ``islands`` as ``IntegerNetwork`` has
    them, and ``biases`` and ``constants``, the real numbers that integers stand for in their place.
    """

    def __init__(self, q: fx.GraphModule, arithmetic: kernels.Arithmetic, wraps: bool) -> None:
        q = unwrapped(q)
        if not isinstance(q, fx.GraphModule) or not any(map(is_quantizer, q.graph.nodes)):
            raise TypeError(
                f"a network with quantizers is needed, not {type(q).__name__}; "
                "make one with minq.ptq or minq.qat"
            )
        self.source = graph.on_cpu(q)
        self.q = q = in_double(self.source)
        self.arithmetic, self.wraps = arithmetic, wraps
        self.dtype = next((p.dtype for p in q.parameters() if p.is_floating_point()), torch.float32)
        self._begin()

    def _begin(self) -> None:
        """Nothing is known yet."""
        self.layers: dict[str, nn.Module] = {}
        self.places: dict[str, str] = {}  # quantizer -> new node
        self.islands: dict[str, str] = {}
        self.biases: dict[str, Tensor] = {}  # layer's node -> b_int s_w s_x
        self.constants: dict[str, Tensor] = {}  # parameter -> w_int s_w
        self.root, self.graph = nn.Module(), fx.Graph()
        self.forms: dict[fx.Node, Form] = {}
        self._reals: dict[int, tuple[Form, fx.Node]] = {}
        self._known: dict[fx.Node, Tensor] = {}  # what parameters and numbers alone decide
        self._given: set[fx.Node] = set()  # what depends on an input
        self.wider: dict[str, Quantizer] = {}  # of weights, for biases that 32 bits do not hold

    def run(self) -> Compiler:
        """Walk through the graph; afterwards ``program`` is the network on integers.

        Layers may share a weight, so all are seen before one that is too fine is replaced.
        """
        self._walk()
        if self.wider:
            for name, quantizer in self.wider.items():
                self.q.set_submodule(name, quantizer)
            self._begin()
            self._walk()
        self.graph.set_codegen(copy.deepcopy(self.q.graph._codegen))
        self.program = Network(self.root, self.graph, "IntegerProgram").eval()
        note_network(self.program, **call_of(self.q))
        self.graph.eliminate_dead_code()
        self.program.delete_all_unused_submodules()
        self.program.recompile()
        return self

    def _walk(self) -> None:
        for node in self.q.graph.nodes:
            if node.op == "placeholder" or not self._given.isdisjoint(node.all_input_nodes):
                if _tensors(node):
                    self._given.add(node)
            if (form := getattr(self, f"_{node.op}")(node)) is not None:
                self.forms[node] = form

    # --- nodes ------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Real | Plain:
        new = self.graph.placeholder(node.target)
        if graph.is_float(node):
            return Real(self.graph.call_method("double", (new,)))
        return Plain(new)

    def _get_attr(self, node: fx.Node) -> Parameter | Plain:
        value = graph.get(self.q, node.target).detach()
        if value.is_complex():  # module.double() leaves it
            graph.put(self.q, node.target, value := value.to(torch.complex128))
        self._known[node] = value
        return Parameter(value) if value.is_floating_point() else Plain(self.buffer(value))

    def _call_module(self, node: fx.Node) -> Form:
        if not is_quantizer(node):
            raise TypeError(f"{node.target} is still in training; call minq.qat.finish first")
        quantizer: Quantizer = self.q.get_submodule(node.target)
        form = self.forms[node.args[0]]
        if quantizer.stage == "off":
            return form
        if quantizer.stage == "observe":
            raise RuntimeError(f"{node.target} still observes; call freeze on every quantizer")
        scale, zero_point = (v.detach().double() for v in quantizer.scale_zero_point())
        if quantizer.dynamic:
            raise ValueError(
                f"{node.target} finds its ranges while it runs, which integers do not here; "
                "quantize without cache="
            )
        if quantizer.grid.real:
            raise ValueError(
                f"{node.target} has {quantizer.grid.real}; give weights bits, and "
                'weight_zero_point=None or "integer"'
            )
        if isinstance(form, Parameter):
            return self._constant_form(node, quantizer, form.values, scale, zero_point)
        if scale.ndim:
            raise ValueError(
                f"{node.target} has {scale.numel()} scales; sums of integers need one per tensor"
            )
        if not quantizer.grid.even:
            raise ValueError(
                f"{node.target} rounds to {quantizer.grid}, whose steps differ; only weights may"
            )
        grid = kernels.Quantize(scale, zero_point, quantizer.grid)
        new = rounding.to_grid(self, form, grid, node.target)
        self.places[node.target] = new.name
        return Sum((Term(new, scale, int(zero_point), *quantizer.grid),))

    def _constant_form(self, node, quantizer, values, scale, zero_point) -> Constant:
        scale, zero_point = (
            quantizer.granularity.align(v, values.shape) for v in (scale, zero_point)
        )
        values = (quantizer.quantize(values) - zero_point).long()
        if node.args[0].op == "get_attr":
            self.constants[node.args[0].target] = values * scale
        return Constant(values, scale)

    def _call_function(self, node: fx.Node) -> Form:
        kind, of = graph.op(node), graph.traits(node)
        if self._is_known(node):
            return self._known_form(node)
        if not _tensors(node):  # a size, or a number that is read off data
            of_shape = kind.startswith("sym_") or kind in ("size", "numel", "stride")
            return Plain(self.copy(node, self.shaped if of_shape else self.real_or_plain))
        inputs = [self.forms[x] for x in node.all_input_nodes]
        try:
            if of.integer in ("make", "convert"):
                return HANDLERS[of.integer](self, node)
            if all(isinstance(form, Plain) for form in inputs):
                return self._of_no_data(node)
            if any(isinstance(f, Function) for f in inputs) and of.tabulated:
                return tables.pointwise(self, node)
            handler = HANDLERS.get(of.integer)
            if handler is None:
                raise Island("no integer form")
            form = handler(self, node)
            if isinstance(form, Sum) and not form.terms:
                raise Island("it computes with constants alone")
            return form
        except Island as reason:
            return self._island(node, str(reason))

    def _is_known(self, node: fx.Node) -> bool:
        """Whether parameters and numbers alone decide what the node gives: one tensor."""
        inputs, tags = node.all_input_nodes, getattr(node.target, "tags", ())
        return (
            isinstance(node.meta.get("val"), Tensor)
            and all(x in self._known for x in inputs)
            and (bool(inputs) or graph.op(node) in ("arange", "linspace", "eye"))
            and torch.Tag.nondeterministic_seeded not in tags
        )

    def _known_form(self, node: fx.Node) -> Parameter | Plain:
        def double(x: fx.Node) -> Tensor:
            known = self._known[x]
            return known.double() if known.is_floating_point() else known

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), double)
        self._known[node] = value = node.target(*args, **kwargs)
        return Parameter(value) if value.is_floating_point() else Plain(self.buffer(value))

    def _of_no_data(self, node: fx.Node) -> Real | Plain:
        """Shapes, indices and masks; positions and their cosines, which sizes alone decide."""
        if not graph.is_float(node):
            return Plain(self.copy(node, self.plain))
        if node in self._given:
            return self._island(node, "real numbers are made of whole ones")
        return Real(self.copy(node, self.real_or_plain))

    def _output(self, node: fx.Node) -> None:
        self.graph.output(fx.map_arg(node.args[0], self.real_or_plain))

    # --- rounding, and coming back to real numbers ------------------------------------------------

    def real(self, form: Form) -> fx.Node:
        """The node that gives the real numbers of a form, in double precision."""
        if id(form) not in self._reals:  # the form is kept, so that no other gets its id
            self._reals[id(form)] = form, rounding.to_real(self, form)
        return self._reals[id(form)][1]

    def _island(self, node: fx.Node, reason: str) -> Real | Plain:
        """The operator itself, on real numbers; named, unless it only moves what is no integer."""
        kind = graph.op(node)
        forms = [self.forms[x] for x in node.all_input_nodes]
        moves_floats = graph.traits(node).role in ("move", "join") and not any(
            isinstance(f, Sum | Hidden | Pieces | Function | Normalized | Rows) for f in forms
        )
        if not moves_floats:
            self.islands[graph.unused_in(self.islands, graph.place(node))] = f"{kind}: {reason}"
        new = self.copy(node, self.real_or_plain)
        whole = isinstance(node.meta.get("val"), Tensor) and not graph.is_float(node)
        return Plain(new) if whole else Real(new)

    def real_or_plain(self, node: fx.Node) -> fx.Node:
        form = self.forms[node]
        return form.node if isinstance(form, Plain) else self.real(form)

    def shaped(self, node: fx.Node) -> fx.Node:
        """A node of that shape."""
        form = self.forms[node]
        if isinstance(form, Function | Normalized | Hidden):
            return form.term.node
        if isinstance(form, Sum) and len(form.terms) == 1 and not form.constant.ndim:
            return form.terms[0].node
        return self.real_or_plain(node)

    # --- what operators are made of ---------------------------------------------------------------

    def copy(self, node: fx.Node, new_of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), new_of)
        return self.graph.call_function(node.target, args, kwargs)

    def grid(self, node: fx.Node) -> Term:
        """The one grid that a tensor lies on."""
        form = self.forms[node]
        if not isinstance(form, Sum) or form.grid is None:
            raise Island("its input is not on one grid")
        if not form.grid.scale.all():
            raise Island("its input is 0 times a grid")
        return form.grid

    def factor(self, node: Any) -> Term:
        """A tensor on a grid, or a constant, which may have several scales."""
        form = self.forms[node] if isinstance(node, fx.Node) else None
        if isinstance(form, Constant):
            (term,) = self.sum_of(form).terms
            return term
        return self.grid(node) if form is not None else self._no(node)

    def _no(self, node: Any) -> Any:
        raise Island(f"{node} is not a tensor on a grid")

    def summand(self, value: Any) -> Sum:
        """What can be added: a number, a constant, or a tensor on grids with nothing fused yet."""
        if not isinstance(value, fx.Node):
            return Sum((), torch.tensor(float(value), dtype=torch.float64))
        form = self.forms[value]
        if isinstance(form, Constant):
            return self.sum_of(form)
        if isinstance(form, Rows):
            return tables.rows_as_term(self, form)
        if isinstance(form, Filled):
            return Sum((), torch.tensor(form.value, dtype=torch.float64))
        known = isinstance(form, Parameter) or value in self._known
        if known and torch.isfinite(self.values(value)).all():
            return Sum((), self.values(value))
        if not isinstance(form, Sum) or not form.plain:
            raise Island("an operand is not on a grid")
        return form

    def sum_of(self, form: Constant) -> Sum:
        low, high = int(form.values.min()), int(form.values.max())
        node = self.buffer(form.values.to(kernels.storage(low, high)))
        scale = form.scale.reshape(()) if form.scale.numel() == 1 else form.scale
        return Sum((Term(node, scale, 0, low, high),))

    def values(self, node: fx.Node) -> Tensor:
        """A constant's real numbers, in double precision."""
        form = self.forms[node]
        if isinstance(form, Parameter):
            return form.values.double()
        if isinstance(form, Constant):
            return form.values * form.scale
        if isinstance(form, Filled) and all(map(graph.is_fixed, graph.shape_of(node))):
            return torch.full([*map(int, graph.shape_of(node))], form.value).double()
        if node in self._known:  # whole numbers
            return self._known[node].double()
        raise Island("it needs a constant")

    def is_constant(self, node: fx.Node) -> bool:
        """Whether it is a parameter without quantizer, or made of such."""
        return isinstance(self.forms[node], Parameter) or node in self._known

    def of_one_number(self, node: fx.Node, x: fx.Node) -> Callable[[Tensor], Tensor]:
        """The operator as a function of ``x``, where all other operands are numbers."""

        def value(n: fx.Node) -> Any:
            if n is x:
                return n
            form = self.forms[n]
            if not isinstance(form, Parameter) or form.values.numel() != 1:
                raise Island("it has several operands")
            return self.values(n).item()

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)

        def function(real: Tensor) -> Tensor:
            given = fx.map_arg((args, kwargs), lambda n: real)
            return node.target(*given[0], **given[1])

        return function

    def plain(self, node: fx.Node) -> fx.Node:
        form = self.forms[node]
        return form.node if isinstance(form, Plain) else self._no(node)

    def module(self, name: str, module: nn.Module, args: Sequence, kwargs=None) -> fx.Node:
        name = name.replace(".", "_") or type(module).__name__.lower()
        name = graph.unused(self.root, name)
        self.root.add_module(name, module)
        return self.graph.call_module(name, tuple(args), kwargs)

    def buffer(self, value: Tensor) -> fx.Node:
        name = graph.unused(self.root, "constant")
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)


def _tensors(node: fx.Node) -> bool:
    """Whether a node gives any tensor."""
    return any(isinstance(v, Tensor) for v in tree_leaves(node.meta.get("val")))
