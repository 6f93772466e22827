"""What the passes look for in a captured network, a graph of ATen operators: names and finders.

See ``minq.export`` for how a network becomes a graph, and ``minq.batches`` for what it is called
with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

# --- What kinds of operators there are ------------------------------------------------------------

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
LAYERS = CONVOLUTIONS | TRANSPOSED | {"linear", "embedding"}
"""Operators with a weight of their own, the second argument (the first of an embedding)."""

PRODUCTS = frozenset({"matmul", "bmm", "mm"})
"""Products of two tensors; one that is a parameter is quantized as a weight."""

FUSED = frozenset(
    "relu relu6 hardtanh leaky_relu prelu clamp clamp_min clamp_max".split()
)
"""Activation functions that hardware applies before it rounds: no quantizer stands before them."""

SINGULAR = frozenset("log log2 log10 log1p rsqrt reciprocal logit".split())
"""Functions of one number that are infinite somewhere: what they read is not rounded before, or the
level 0 would be."""

FUNCTIONS = SINGULAR | frozenset(
    """sigmoid hardsigmoid tanh hardswish silu gelu elu mish softplus selu celu exp exp2 expm1 sqrt
    pow square abs sign sin cos tan asin acos atan sinh cosh asinh erf erfc softsign softshrink
    hardshrink log_sigmoid threshold rrelu floor ceil round trunc frac remainder fmod
    floor_divide""".split()
)
"""Functions of one number."""

OTHERS = FUNCTIONS | frozenset(
    """add sub rsub mul div neg mean sum cumsum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d layer_norm rms_norm group_norm instance_norm batch_norm
    softmax log_softmax""".split()
)
"""Operators that compute new values; these are quantized again."""

TRANSPARENT = frozenset(
    """view _unsafe_view view_as reshape reshape_as flatten unflatten permute transpose t movedim
    slice select narrow getitem split split_with_sizes tensor_split chunk unbind squeeze unsqueeze
    expand expand_as contiguous clone alias detach detach_ lift_fresh_copy dropout feature_dropout
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d amax amin max min topk sort pad constant_pad_nd reflection_pad1d
    reflection_pad2d replication_pad1d replication_pad2d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d pixel_shuffle pixel_unshuffle channel_shuffle roll flip rot90 tile repeat
    repeat_interleave index index_select gather take_along_dim diagonal unfold im2col tril triu
    masked_fill index_fill max_unpool2d max_unpool3d diag_embed to _to_copy type_as
    convert_element_type""".split()
)
"""Operators that only move values, or pick from them: what was on a grid stays on it."""

JOINS = frozenset(
    """cat stack slice_scatter select_scatter index_put where maximum minimum masked_scatter
    scatter""".split()
)
"""Operators that put several tensors together; these are rounded once, on the result's grid."""

MAKERS = frozenset(
    """zeros ones full empty arange linspace eye scalar_tensor zeros_like ones_like full_like
    empty_like new_zeros new_ones new_full new_empty fill""".split()
)
"""Operators that make a new tensor: a constant, whatever its shape was taken from."""


def fills_up(node: fx.Node) -> bool:
    """Whether a move fills up with a number that no grid need hold: 0 is on all of them, and about
    -infinity stands for no value at all."""
    at = {"masked_fill": 2, "constant_pad_nd": 2, "pad": 3, "index_fill": 3}.get(op(node))
    value = None if at is None else argument(node, at, "value")
    return isinstance(value, (int, float)) and value != 0 and abs(value) < 1e3


def parts_of(node: fx.Node) -> list:
    """What a ``JOINS`` operator puts together: tensors, and numbers where it takes them."""
    if op(node) == "where":
        return list(node.args[1:3])
    if op(node) in ("index_put", "masked_scatter"):
        return [node.args[0], node.args[2]]
    if op(node) == "scatter":
        return [node.args[0], node.args[3]]
    first = node.args[0]
    return list(first) if isinstance(first, (list, tuple)) else list(node.args[:2])


def op(node: fx.Node) -> str:
    """The operator's short name, "conv2d"; "" for what is not a call.

    A product with a plain number only changes the scale, so it is called "rescale"; so is one with
    the constants that ``minq.ptq.smooth`` leaves behind.
    """
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", node.target)
    name = packet.__name__
    if name == "div" and node.kwargs.get("rounding_mode"):
        return "floor_divide"
    if name in ("mul", "div"):
        numbers = [not isinstance(a, fx.Node) or _is_smoothing(a) for a in node.args[:2]]
        if name == "div" and numbers == [True, False]:
            return "reciprocal"
        name = "rescale" if any(numbers) else name
    if name in ("max", "min") and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        return f"{name}imum"
    return {"_softmax": "softmax", "_log_softmax": "log_softmax"}.get(name, name)


SMOOTHING = "smoothing"
"""The last part of the name of such a constant."""


def _is_smoothing(node: fx.Node) -> bool:
    return node.op == "get_attr" and str(node.target).endswith(SMOOTHING)


def is_float(node: Any) -> bool:
    """Whether the node gives a floating-point tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def is_real(node: fx.Node) -> bool:
    """Whether any tensor that the node gives holds real (or complex) numbers."""
    tensors = [v for v in tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return any(v.is_floating_point() or v.is_complex() for v in tensors)


def shape_of(node: fx.Node) -> tuple:
    """The shape of the node's tensor; the batch size is a symbol."""
    return tuple(node.meta["val"].shape)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an operator, given by place or by name, else its default."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


_CLIPS = {
    "relu": ((0.0, None), ()),
    "relu6": ((0.0, 6.0), ()),
    "hardtanh": ((-1.0, 1.0), ("min_val", "max_val")),
    "clamp": ((None, None), ("min", "max")),
    "clip": ((None, None), ("min", "max")),
    "clamp_min": ((None, None), ("min",)),
    "clamp_max": ((None, None), ("max",)),
}
"""Of each clip: its bounds by default, and the names of those that are given in this order."""


def clip_bounds(node: fx.Node, axis: int = 1) -> tuple[Tensor, Tensor] | None:
    """Where the operator clips, (low, high): whoever wrote it, and in whatever form.

    Each is a number, shape (), or one for each place along ``axis``, shape (size,); -inf and inf
    stand for no bound. None for what is no clip, and for bounds that are computed from data or
    differ along another dimension.
    """
    if (name := op(node)) not in _CLIPS:
        return None
    defaults, names = _CLIPS[name]
    given = dict(zip(("low", "high"), defaults, strict=True))
    for position, key in enumerate(names):
        end = "high" if key.startswith("max") else "low"
        given[end] = argument(node, position + 1, key, given[end])
    module, bounds = node.graph.owning_module, []
    for value, missing in zip(given.values(), (-math.inf, math.inf), strict=True):
        if isinstance(value, fx.Node):
            if value.op != "get_attr":
                return None
            value = get(module, value.target).detach()
        bound = torch.as_tensor(missing if value is None else value, device=device_of(module))
        bound = bound if bound.is_floating_point() else bound.float()
        if bound.numel() == 1:
            bounds.append(bound.reshape(()))
            continue
        dims = len(shape_of(node))
        if bound.numel() != ([1] * (dims - bound.ndim) + list(bound.shape))[axis % dims]:
            return None
        bounds.append(bound.flatten())
    return bounds[0], bounds[1]


def set_clip_bounds(node: fx.Node, low: Tensor, high: Tensor) -> None:
    """Let a clip end here instead, at one number or one for each channel of dimension 1.

    The bounds become buffers of its own: what it read before may be another clip's too.
    """
    module = node.graph.owning_module
    arguments: list[fx.Node | None] = []
    for name, value in (("floor", low), ("ceiling", high)):
        if value.isinf().all():
            arguments.append(None)
            continue
        name = unused(module, f"{node.name}_{name}")
        if value.ndim:
            value = value.reshape(-1, *[1] * (len(shape_of(node)) - 2))
        module.register_buffer(name, value)
        with node.graph.inserting_before(node):
            bound = node.graph.get_attr(name)
        bound.meta["val"] = value
        arguments.append(bound)
    node.target, node.kwargs = torch.ops.aten.clamp.Tensor, {}
    node.args = (node.args[0], *arguments)


# --- Layers and their parameters ------------------------------------------------------------------


def input_of(node: fx.Node) -> fx.Node:
    """The data a layer reads."""
    return node.args[1] if op(node) == "embedding" else node.args[0]


def weight_node(node: fx.Node) -> fx.Node:
    """Where a layer's weight comes from: a parameter, or the quantizer behind it."""
    return node.args[0] if op(node) == "embedding" else node.args[1]


def bias_node(node: fx.Node) -> fx.Node | None:
    """Where a layer's bias comes from, or None."""
    return None if op(node) == "embedding" else argument(node, 2, "bias")


def parameter_of(node: fx.Node | None) -> Any:
    """The ``get_attr`` behind a node, through a quantizer; None where there is none."""
    if node is not None and node.op == "call_module":
        node = node.args[0]
    return node if node is not None and node.op == "get_attr" else None


def groups_of(node: fx.Node) -> int:
    """How many groups a convolution has; 1 for other layers."""
    return argument(node, 6, "groups", 1) if op(node) in CONVOLUTIONS | TRANSPOSED else 1


def geometry(node: fx.Node, kernel: Sequence[int]) -> tuple[list, list, list]:
    """Stride, padding (before, after) and dilation of a convolution, one for each dimension."""
    stride, padding, dilation = (
        _each(argument(node, k, name, default), len(kernel))
        for k, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if isinstance(padding[0], str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        total = reach if padding[0] == "same" else [0] * len(kernel)
        return stride, [(t // 2, t - t // 2) for t in total], dilation
    return stride, [(p, p) for p in padding], dilation


def _each(value: Any, dims: int) -> list:
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * dims if len(value) == 1 else value


def is_layer(node: fx.Node) -> bool:
    """Whether the node is a layer whose weight is a parameter."""
    return op(node) in LAYERS and parameter_of(weight_node(node)) is not None


def layer_name(node: fx.Node) -> str:
    """The name of a layer, "features.0.0", after its weight."""
    return parameter_of(weight_node(node)).target.rpartition(".")[0]


def layers(gm: fx.GraphModule) -> dict[str, fx.Node]:
    """The layers by name, in the order of computation; a module's second weight by its own name."""
    found: dict[str, fx.Node] = {}
    for node in filter(is_layer, gm.graph.nodes):
        name, weight = layer_name(node), parameter_of(weight_node(node)).target
        other = parameter_of(weight_node(found.get(name, node))).target != weight
        found[weight if other else name] = node
    return found


def get(gm: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or submodule of that dotted name."""
    path, _, leaf = name.rpartition(".")
    return getattr(gm.get_submodule(path), leaf)


def put(gm: nn.Module, name: str, value: Tensor) -> None:
    """Set (or make) the parameter of that dotted name; the old tensor is left as it was."""
    path, _, leaf = name.rpartition(".")
    module = gm
    for part in path.split(".") if path else ():
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    old = getattr(module, leaf, None)
    keep = old.requires_grad if isinstance(old, Tensor) else True
    if isinstance(old, Tensor) and not isinstance(old, nn.Parameter):
        setattr(module, leaf, value.detach())
        return
    module.__dict__.pop(leaf, None)  # a plain "bias = None"
    module.register_parameter(leaf, nn.Parameter(value.detach().clone(), requires_grad=keep))


def weight_of(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """A layer's weight in front of its quantizer, as (outputs, inputs per group, *kernel)."""
    return _turn(node, get(gm, parameter_of(weight_node(node)).target).detach())


def rounded_weight_of(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """A layer's weight behind its quantizer, as ``weight_of`` lays it out."""
    source = weight_node(node)
    weight = get(gm, parameter_of(source).target).detach()
    if source.op == "call_module":
        weight = gm.get_submodule(source.target)(weight).detach()
    return _turn(node, weight)


def set_weight(gm: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Give a layer a new weight, in the layout of ``weight_of``."""
    put(gm, parameter_of(weight_node(node)).target, _turn(node, value))


def _turn(node: fx.Node, weight: Tensor) -> Tensor:
    return turn(weight, groups_of(node)) if op(node) in TRANSPOSED else weight


def turn(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed convolution with its outputs first; its own inverse.

    It is stored as (inputs, outputs per group, *kernel).
    """
    rows, columns, *kernel = weight.shape
    turned = weight.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    return turned.reshape(groups * columns, rows // groups, *kernel)


def bias_of(gm: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """A layer's bias, or None."""
    parameter = parameter_of(bias_node(node))
    return None if parameter is None else get(gm, parameter.target).detach()


def set_bias(gm: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Give a layer a new bias: made where there was none, parted from those that share it."""
    parameter = parameter_of(bias_node(node))
    if parameter is None or len(parameter.users) > 1:
        name = unused(gm, f"{layer_name(node)}.bias".lstrip("."))
        put(gm, name, value)
        with gm.graph.inserting_before(node):
            new = gm.graph.get_attr(name)
        new.meta["val"] = value
        node.args = (*node.args[:2], new, *node.args[3:])
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "bias"}
    else:
        put(gm, parameter.target, value)


def own_weight(gm: fx.GraphModule, node: fx.Node) -> None:
    """Part a weight that several layers share: this one gets a copy of its own.

    It has the name of the module that reads it, where torch has such modules and it is free.
    """
    parameter = weight_node(node)
    if len(parameter.users) == 1:
        return
    path, _, leaf = parameter.target.rpartition(".")
    inside = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1]
    name = f"{inside[0]}.weight"
    if "torch.nn.modules" not in str(inside[1]) or not inside[0] or taken(gm, name):
        name = unused(gm, f"{path}_copy.{leaf}")
    put(gm, name, get(gm, parameter.target))
    with gm.graph.inserting_before(node):
        new = gm.graph.get_attr(name)
    new.meta.update(parameter.meta)
    node.replace_input_with(parameter, new)


def unused(gm: nn.Module, name: str) -> str:
    """The name itself, or with a number behind it where it is taken."""
    path, _, leaf = name.rpartition(".")
    numbered = (f"{path}_{k}.{leaf}" if path else f"{leaf}_{k}" for k in count(1))
    return next(n for n in chain([name], numbered) if not taken(gm, n))


def taken(gm: nn.Module, name: str) -> bool:
    """Whether a module, a parameter, a buffer or a method has that name."""
    try:
        return get(gm, name) is not None
    except AttributeError:
        return False


def device_of(module: nn.Module) -> torch.device:
    """Where a network lies: its first parameter or buffer. Without any, the CPU."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def beside(module: nn.Module, data: Any) -> Any:
    """All tensors in ``data``, on the device of the network."""
    device = device_of(module)
    quick = device.type == "cuda"  # on the way back, nothing would wait for the copy to be there
    return tree_map_only(Tensor, lambda t: t.to(device, non_blocking=quick), data)


def on_cpu(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy; operators that make tensors make them there too."""
    gm = copy.deepcopy(gm).cpu()
    for node in gm.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.update_kwarg("device", torch.device("cpu"))
    gm.recompile()
    return gm


def tidy(gm: fx.GraphModule) -> fx.GraphModule:
    """Drop what nothing uses any more, check the graph and compile it again."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    used = {n.target for n in gm.graph.nodes if n.op == "get_attr"}
    called = tuple(f"{n.target}." for n in gm.graph.nodes if n.op == "call_module")
    for path, module in gm.named_modules():
        if f"{path}.".startswith(called):  # a module that is called keeps what is its own
            continue
        for kind in (module._parameters, module._buffers):
            for leaf in [k for k in kind if (f"{path}.{k}" if path else k) not in used]:
                del kind[leaf]
    gm.graph.lint()
    gm.recompile()
    return gm


def fixed(size: Any) -> bool:
    """Whether a dimension is a number; a symbol that has become one does not say so otherwise."""
    return str(size).isdigit()
