"""Any network as a graph of operators that the passes can read and change.

``capture`` runs ``torch.export`` on a copy of the model and gives a ``torch.fx.GraphModule``: a
plain module that trains, moves, saves and copies as any other. Its graph holds ATen operators, its
parameters keep their names.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map, tree_map_only

from minq import graph
from minq.affine import sqnr
from minq.batches import arguments_for, flat, normal
from minq.fold import fold_constants
from minq.inplace import functional
from minq.masks import write_as_fill
from minq.network import Network, check_sizes, own_sizes
from minq.recurrent import write_out
from minq.refusals import CaptureError, refuse, refuse_operators, why
from minq.rewrite import rewrite
from minq.simulate import place

__all__ = ["CaptureError", "capture", "evaluation_copy", "outside", "unwrapped"]


def capture(model: nn.Module, example: Any, *, dynamic_batch: bool = True) -> fx.GraphModule:
    """The model in evaluation mode as a graph of ATen operators; the model itself is left alone.

    example: what the model is called with (see ``as_arguments``), on whatever device; the first
        dimension of each tensor is the batch, and stays free. Where the model takes another path
        for other sizes, the network keeps the condition and refuses them.

    Raises CaptureError where ``torch.export`` cannot follow the model, for example because a branch
    depends on values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    model = unwrapped(model)
    if isinstance(model, fx.GraphModule) and model.meta.get("minq"):
        return copy.deepcopy(model)
    refuse(model)
    with outside():
        args, kwargs = tree_map_only(Tensor, normal, arguments_for(model, example))
        return _capture(evaluation_copy(model), args, kwargs, dynamic_batch)


def unwrapped(model: Any) -> Any:
    """The model inside ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


@contextmanager
def outside() -> Iterator[None]:
    """Leave autocast, inference mode and no_grad, whatever the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode.

    Weight norm and pruning keep a computed tensor beside its parameters, which cannot be copied;
    they compute it again at each call.
    """
    computed = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor))
    memo: dict[int, Any] = {id(v): v.detach().clone() for v in computed if v.grad_fn is not None}
    try:
        return copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied, and capture works on a copy: "
            f"copy.deepcopy(model) says {str(error).strip().splitlines()[:1]}. Take out of the "
            "model what cannot be copied, or give its class a __deepcopy__"
        ) from error


# --- torch.export ---------------------------------------------------------------------------------


def _capture(model: nn.Module, args: tuple, kwargs: dict, dynamic_batch: bool) -> Network:
    batch = _batch_size(args, kwargs)
    if not dynamic_batch or batch is None:
        return _finished(model, _exported(model, args, kwargs, False), args, kwargs)
    # A batch of one would be taken for a constant.
    tries = [_repeated(args, kwargs, batch, 2)] if batch == 1 else []
    tries.append((args, kwargs))
    for more in tries:
        try:
            exported = _exported(model, *more, True)
            break
        except CaptureError:
            if more is tries[-1]:
                raise
    gm = _finished(model, exported, *more)
    size = _batch_size(*more)
    if _is_fixed(gm) and size is not None:
        # Perhaps only because the batch is as large as something else is by accident.
        try:
            other = _repeated(args, kwargs, batch, size + 1)
            free = _finished(model, _exported(model, *other, True), *other)
            check_sizes(free, tree_leaves(more))
        except Exception:
            free = gm
        if _is_fixed(free):
            warnings.warn(
                f"the model fixes its batch size at {size}, and takes no other then; len(x) and "
                "int(x.shape[0]) in forward do that, x.shape[0] does not",
                stacklevel=5,
            )
        else:
            gm = free
    _check_one(model, gm, args, kwargs, batch)
    return gm


def _exported(model: nn.Module, args: tuple, kwargs: dict, dynamic: bool) -> Any:
    try:
        named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise CaptureError(
            f"the example does not fit {type(model).__name__}.forward"
            f"{inspect.signature(model.forward)}: {error}"
        ) from error
    shapes = tree_map(_free_batch, named) if dynamic else None
    first: Exception | None = None
    for mode in (torch.enable_grad, torch.no_grad):  # the second for inference_mode in forward
        try:
            with mode(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The tensor attribute")  # of old weight norm
                return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            first = first or error
            if "nference tensor" not in str(error):
                break
    assert first is not None
    raise CaptureError(why(model, first)) from first


def _free_batch(value: Any) -> dict[int, Any] | None:
    """The first dimension of a tensor may vary."""
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim else None


def _batch_size(args: tuple, kwargs: dict) -> int | None:
    """The first dimension of the first tensor."""
    tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.ndim]
    return tensors[0].shape[0] if tensors else None


def _repeated(args: tuple, kwargs: dict, batch: int, size: int) -> tuple[tuple, dict]:
    """The same inputs with ``size`` samples: the first of them again and again, or fewer."""

    def resized(x: Tensor) -> Tensor:
        if not x.ndim or x.shape[0] != batch:
            return x  # no batch
        return torch.cat([x, *[x[:1]] * (size - batch)]) if size > batch else x[:size]

    return tree_map_only(Tensor, resized, (args, kwargs))


def _is_fixed(gm: Network) -> bool:
    inputs = [n.meta.get("val") for n in gm.graph.nodes if n.op == "placeholder"]
    batch = [v.shape[0] for v in inputs if isinstance(v, Tensor) and v.ndim][:1]
    return bool(batch) and graph.fixed(batch[0])


def _finished(model: nn.Module, exported: Any, args: tuple, kwargs: dict) -> Network:
    """The network of an exported program."""
    dropped = _drop_dropout(exported)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gm = _plain(exported.module())
            if not functional(gm):
                gm = _plain(exported.run_decompositions({}).module())
                functional(gm)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(why(model, error)) from error
    gm.meta["keywords"], gm.meta["arguments"] = list(kwargs), len(args)
    gm.meta["sizes"] = _conditions(model, gm, args, kwargs)
    gm.meta["random"] = dropped + (drawn := _random(gm))
    _warn_of_chance(dropped, drawn)
    if dtype := gm.meta.pop("autocast", None):
        warnings.warn(
            f"the model computes in {dtype} where its forward turns autocast on; the network "
            "computes that in its parameters' own type",
            stacklevel=2,
        )
    if len(args) == 1 and isinstance(args[0], dict) and not kwargs:
        gm.meta["dict"] = list(args[0])
    own_sizes(gm)
    return write_as_fill(fold_constants(rewrite(write_out(graph.tidy(gm)))))


# --- Sizes that take another path -----------------------------------------------------------------


def _conditions(model: nn.Module, gm: Network, args: tuple, kwargs: dict) -> list[str]:
    """What the model's own code asked of sizes, "x.shape[0] > 4"; other sizes go another way.

    What torch asks inside of operators is no choice of a path: the operator stands in the graph,
    and decides again.
    """
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    modes = [getattr(n.meta.get("val"), "fake_mode", None) for n in inputs]
    env = next((m.shape_env for m in modes if m is not None), None)
    if env is None:
        return []
    named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    paths = [keystr(path) for path, _ in tree_flatten_with_path(named)[0]]
    sizes = {
        f"L{path}.size()[{d}]": f"{node.name}.shape[{d}]"
        for path, node in zip(paths, inputs, strict=False)
        for d in range(getattr(node.meta.get("val"), "ndim", 0))
    }
    letters: dict[Any, str] = {}
    for symbol, sources in env.var_to_sources.items():
        names = [s.name() if callable(s.name) else s.name for s in sources]
        if known := [sizes[n] for n in names if n in sizes]:
            letters[symbol] = known[0]
    found = []
    for guard in env.guards:
        if _by_the_model(guard) and guard.expr.free_symbols <= letters.keys():
            found.append(_words(guard.expr, letters))
    return list(dict.fromkeys(found))


def _by_the_model(guard: Any) -> bool:
    where = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    path = str(getattr(where, "filename", where))
    torch_itself = Path(torch.__file__).parent
    return not path.startswith(str(torch_itself)) or path.startswith(str(torch_itself / "nn"))


def _words(expression: Any, letters: dict[Any, str]) -> str:
    """The condition as Python writes it."""
    import sympy

    named = expression.xreplace({k: sympy.Symbol(v, integer=True) for k, v in letters.items()})
    sign = {sympy.Eq: "==", sympy.Ne: "!="}.get(type(named))
    text = f"{named.lhs} {sign} {named.rhs}" if sign else str(named)
    return re.sub(r"\b(?:Python)?Mod\(([^(),]+), ([^(),]+)\)", r"\1 % \2", text)


@torch.no_grad()
def _check_one(model: nn.Module, gm: Network, args: tuple, kwargs: dict, batch: int) -> None:
    """Whether a batch of one is like the others: torch.export takes for granted that it is none."""
    one = _repeated(args, kwargs, batch, 1)
    if gm.meta["random"] or _is_fixed(gm):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = flat(gm(*copy.deepcopy(one[0]), **copy.deepcopy(one[1])))
    except Exception:
        return  # it refuses itself
    try:
        expected = flat(model(*one[0], **one[1]))
        alike = expected.shape == answer.shape and not sqnr(expected, answer) < 20
    except torch.OutOfMemoryError:
        return
    except Exception:
        alike = False
    if not alike:
        first = next(n for n in gm.graph.nodes if n.op == "placeholder" and graph.shape_of(n))
        gm.meta["sizes"] = [*gm.meta["sizes"], f"{first.name}.shape[0] != 1"]


# --- A plain graph --------------------------------------------------------------------------------


def _plain(module: fx.GraphModule) -> Network:
    """A fresh graph of the exported one: nothing wrapped, one form for each thing."""
    module.graph._tracer_cls = None  # export's own can only be made by export: pickling needs one
    gm = Network(module, module.graph)
    gm.meta["minq"] = True
    _inline(gm)
    refuse_operators(gm)
    ops = gm.graph
    for node in list(ops.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            ops.erase_node(node)
        elif graph.op(node) == "_assert_tensor_metadata":
            ops.erase_node(node)
        elif graph.op(node) == "to" and _same_kind(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
            ops.erase_node(node)
        elif graph.op(node) in ("detach_", "lift_fresh_copy", "alias"):
            node.replace_all_uses_with(node.args[0])
            ops.erase_node(node)
        elif graph.op(node) in ("view", "_unsafe_view"):
            # a view asks for strides that another device lacks
            node.target = torch.ops.aten.reshape.default
        elif graph.op(node) == "_native_batch_norm_legit_no_training":
            _old_batch_norm(ops, node)
    return gm


_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint")


def _inline(gm: Network) -> None:
    """What stands under no_grad, autocast or a checkpoint, as if it stood outside."""
    while wrapped := [n for n in gm.graph.nodes if graph.op(n) in _WRAPPERS]:
        for node in wrapped:
            if graph.op(node) == "wrap_with_autocast" and node.args[2]:
                gm.meta["autocast"] = str(node.args[1])
            where = [k for k, a in enumerate(node.args) if _holds_graph(gm, a)]
            inner = graph.get(gm, node.args[where[0]].target)
            _paste(gm, inner, node, list(node.args[where[0] + 1 :]))


def _holds_graph(gm: Network, x: Any) -> bool:
    if not isinstance(x, fx.Node) or x.op != "get_attr":
        return False
    return isinstance(graph.get(gm, x.target), fx.GraphModule)


def _paste(gm: Network, inner: fx.GraphModule, node: fx.Node, operands: list[Any]) -> None:
    """Put the nodes of an inner graph in place of the node that calls it."""
    inputs = [n for n in inner.graph.nodes if n.op == "placeholder"]
    known = dict(zip(inputs, operands, strict=True))
    for x in inner.graph.nodes:
        if x.op == "get_attr":
            name = graph.unused(gm, x.target)
            setattr(gm, name, graph.get(inner, x.target))
            x.target = name
    with gm.graph.inserting_before(node):
        results = gm.graph.graph_copy(inner.graph, known)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


# --- Random numbers -------------------------------------------------------------------------------


_DROPOUTS = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout".split())
_SEEDED = frozenset("scaled_dot_product_attention lstm gru rnn_tanh rnn_relu".split())
"""Operators that draw random numbers only while a model trains."""


def _drop_dropout(exported: Any) -> list[str]:
    """Take dropout out of the graph; where the model leaves it on, say so."""
    on = []
    for module in exported.graph_module.modules():
        for node in list(module.graph.nodes) if isinstance(module, fx.GraphModule) else ():
            kind = graph.op(node)
            if kind.rstrip("_") in _DROPOUTS:
                if node.args[1] and node.args[2]:
                    on.append(place(node))
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
            elif kind == "scaled_dot_product_attention" and graph.argument(node, 4, "dropout_p"):
                on.append(place(node))
                args = [*node.args[:3], graph.argument(node, 3, "attn_mask"), 0.0]
                args.append(graph.argument(node, 5, "is_causal", False))
                keep = ("scale", "enable_gqa")
                node.args = tuple(args)
                node.kwargs = {k: v for k, v in node.kwargs.items() if k in keep}
    return on


def _random(gm: Network) -> list[str]:
    """The places of operators that draw random numbers whenever they are called."""
    found = []
    for node in gm.graph.nodes:
        tags = getattr(node.target, "tags", ())
        kind = graph.op(node)
        if torch.Tag.nondeterministic_seeded not in tags or kind in _SEEDED:
            continue
        if kind != "rrelu" or graph.argument(node, 3, "training", False):
            found.append(place(node))
    return found


def _warn_of_chance(dropped: list[str], drawn: list[str]) -> None:
    if dropped:
        warnings.warn(
            f"the model leaves dropout on in evaluation mode, in {', '.join(dropped)}; the network "
            "is captured without it. Where that is not meant, pass training=self.training to "
            "dropout's function",
            stacklevel=2,
        )
    if drawn:
        warnings.warn(
            f"the model draws random numbers in evaluation mode, in {', '.join(drawn)}; the "
            "network does so too, so two of its answers differ and cannot be compared",
            stacklevel=2,
        )


def _same_kind(a: fx.Node, b: fx.Node) -> bool:
    a, b = a.meta["val"], b.meta["val"]
    return (a.dtype, a.device, a.layout) == (b.dtype, b.device, b.layout)


def _old_batch_norm(ops: fx.Graph, node: fx.Node) -> None:
    """The functional batch norm gives three results; the network uses the first."""
    x, gamma, beta, mean, variance, momentum, epsilon = node.args
    with ops.inserting_before(node):
        new = ops.call_function(
            torch.ops.aten.batch_norm.default,
            (x, gamma, beta, mean, variance, False, momentum, epsilon, False),
        )
    for user in list(node.users):
        new.meta.update(user.meta)
        user.replace_all_uses_with(new)
