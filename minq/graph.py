"""Any network as a graph of operators that the passes can read and change.

``capture`` runs ``torch.export`` on a copy of the model and gives a ``torch.fx.GraphModule``: a
plain module that trains, moves, saves and copies as any other. Its graph holds ATen operators, its
parameters keep their names. The rest of this file names what the passes look for in it.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

# --- What kinds of operators there are ------------------------------------------------------------

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
LAYERS = CONVOLUTIONS | TRANSPOSED | {"linear", "embedding"}
"""Operators with a weight of their own, the second argument (the first of an embedding)."""

PRODUCTS = frozenset({"matmul", "bmm", "mm"})
"""Products of two tensors; one that is a parameter is quantized as a weight."""

FUSED = frozenset({"relu", "relu6", "hardtanh", "leaky_relu", "prelu", "clamp", "clamp_min"})
"""Activation functions that hardware applies before it rounds: no quantizer stands before them."""

OTHERS = frozenset(
    """add sub mul div neg cat stack mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d layer_norm group_norm instance_norm batch_norm softmax
    sigmoid hardsigmoid tanh hardswish silu gelu elu mish softplus""".split()
)
"""Operators that compute new values; these are quantized again."""

TRANSPARENT = frozenset(
    """view _unsafe_view reshape flatten unflatten permute transpose t movedim slice select narrow
    getitem split split_with_sizes chunk unbind squeeze unsqueeze expand expand_as contiguous clone
    alias detach detach_ lift_fresh_copy dropout feature_dropout max_pool1d max_pool2d max_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d pad constant_pad_nd
    upsample_nearest1d upsample_nearest2d upsample_nearest3d pixel_shuffle channel_shuffle roll flip
    repeat repeat_interleave index index_select gather masked_fill slice_scatter select_scatter
    new_zeros new_ones zeros_like ones_like fill
    """.split()
)
"""Operators that only move values, or pick from them: what was on a grid stays on it."""


def op(node: fx.Node) -> str:
    """The operator's short name, "conv2d"; "" for what is not a call.

    A product with a plain number only changes the scale, so it is called "rescale"; so is one with
    the constants that ``minq.ptq.smooth`` leaves behind.
    """
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", node.target)
    name = packet.__name__
    if name in ("mul", "div"):
        numbers = [a for a in node.args[:2] if not isinstance(a, fx.Node) or _is_smoothing(a)]
        name = "rescale" if numbers else name
    return "softmax" if name == "_softmax" else name


SMOOTHING = "smoothing"
"""The last part of the name of such a constant."""


def _is_smoothing(node: fx.Node) -> bool:
    return node.op == "get_attr" and str(node.target).endswith(SMOOTHING)


def is_float(node: Any) -> bool:
    """Whether the node gives a floating-point tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def shape_of(node: fx.Node) -> tuple:
    """The shape of the node's tensor; the batch size is a symbol."""
    return tuple(node.meta["val"].shape)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an operator, given by place or by name, else its default."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


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
    """Part a weight that several layers share: this one gets a copy of its own."""
    parameter = weight_node(node)
    if len(parameter.users) == 1:
        return
    path, _, leaf = parameter.target.rpartition(".")
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
    return next(n for n in chain([name], numbered) if not _taken(gm, n))


def _taken(gm: nn.Module, name: str) -> bool:
    """Whether a module, a parameter or a buffer has that name."""
    try:
        return isinstance(get(gm, name), (nn.Module, Tensor))
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


# --- Capture --------------------------------------------------------------------------------------


class CaptureError(ValueError):
    """The model could not be turned into a graph."""


def as_arguments(example: Any) -> tuple[tuple, dict]:
    """What to call a model with: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)) and example:
        return tuple(example), {}
    raise TypeError(
        "the example must be a tensor, a tuple of arguments, or a dict of keywords, "
        f"not {type(example).__name__}"
    )


def capture(model: nn.Module, example: Any, *, dynamic_batch: bool = True) -> fx.GraphModule:
    """The model in evaluation mode as a graph of ATen operators; the model itself is left alone.

    example: what the model is called with (see ``as_arguments``), on whatever device; the first
        dimension of each tensor is the batch, and stays free.

    Raises CaptureError where ``torch.export`` cannot follow the model, for example because a branch
    depends on values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, fx.GraphModule) and model.meta.get("minq"):
        return copy.deepcopy(model)
    args, kwargs = tree_map_only(Tensor, _two, arguments_for(model, example))
    dynamic = None
    try:
        if dynamic_batch:
            named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
            dynamic = tree_map(_free_batch, dict(named))
        exported = torch.export.export(
            copy.deepcopy(model).eval(), args, kwargs, dynamic_shapes=dynamic, strict=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if any(_unsafe(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})
            module = exported.module()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CaptureError(
            f"torch.export could not follow {type(model).__name__}: {reason}\n"
            "Its forward must not choose its path by the values of tensors; "
            "torch.export.export(model, example) shows the line to change."
        ) from error
    gm = _plain(module)
    gm.meta["keywords"] = list(kwargs)
    inputs = [n.meta.get("val") for n in gm.graph.nodes if n.op == "placeholder"]
    batch = [v.shape[0] for v in inputs if isinstance(v, Tensor) and v.ndim][:1]
    if dynamic_batch and batch and _fixed(batch[0]):
        warnings.warn(f"the model fixes its batch size at {batch[0]}", stacklevel=2)
    return gm


def arguments_for(model: nn.Module, batch: Any) -> tuple[tuple, dict]:
    """Of a batch what the model takes, beside it; labels come behind, or by another name."""
    args, kwargs = as_arguments(batch)
    parameters = inspect.signature(model.forward).parameters
    kinds = [p.kind for p in parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        args = args[: sum(kind.name.startswith("POSITIONAL") for kind in kinds)]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        kwargs = {k: v for k, v in kwargs.items() if k in parameters}
    return beside(model, (args, kwargs))


def _free_batch(value: Any) -> dict[int, Any] | None:
    """The first dimension of a tensor may vary."""
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.ndim else None


def _two(x: Tensor) -> Tensor:
    """A batch of one would be taken for a constant."""
    return torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x


def _unsafe(node: fx.Node) -> bool:
    """Whether the node overwrites a tensor that something else may look at."""
    if node.op != "call_function" or not _in_place(node):
        return False
    target = node.args[0]
    views = [op(x) for x in (target, *target.users)]
    return target.op != "call_function" or not TRANSPARENT.isdisjoint(views)


def _in_place(node: fx.Node) -> bool:
    name = op(node)
    return name.endswith("_") and not name.endswith("__") and name != "detach_"


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """A fresh GraphModule of the exported graph: nothing in place, attention spelled out."""
    module.graph._tracer_cls = None  # export's own can only be made by export: pickling needs one
    gm = fx.GraphModule(module, module.graph)
    gm.meta["minq"] = True
    graph = gm.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
        elif op(node) == "_assert_tensor_metadata":
            graph.erase_node(node)
        elif op(node) == "to" and _same_kind(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif op(node) in ("dropout", "feature_dropout", "detach_", "lift_fresh_copy", "alias"):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)  # what draws random numbers is never taken for dead code
        elif op(node) in ("view", "_unsafe_view"):  # it asks for strides that another device lacks
            node.target = torch.ops.aten.reshape.default
        elif op(node) == "_native_batch_norm_legit_no_training":
            _old_batch_norm(graph, node)
        elif op(node) == "scaled_dot_product_attention":
            _spell_out_attention(gm, node)
        elif node.op == "call_function" and _in_place(node):
            packet = getattr(torch.ops.aten, op(node)[:-1])
            node.target = getattr(packet, node.target._overloadname)
            later = False  # whoever reads the overwritten tensor afterwards, reads the result
            for user in graph.nodes:
                if later:
                    user.replace_input_with(node.args[0], node)
                later = later or user is node
    return tidy(gm)


def _same_kind(a: fx.Node, b: fx.Node) -> bool:
    a, b = a.meta["val"], b.meta["val"]
    return (a.dtype, a.device, a.layout) == (b.dtype, b.device, b.layout)


def _old_batch_norm(graph: fx.Graph, node: fx.Node) -> None:
    """The functional batch norm gives three results; the network uses the first."""
    x, gamma, beta, mean, variance, momentum, epsilon = node.args
    with graph.inserting_before(node):
        new = graph.call_function(
            torch.ops.aten.batch_norm.default,
            (x, gamma, beta, mean, variance, False, momentum, epsilon, False),
        )
    for user in list(node.users):
        new.meta.update(user.meta)
        user.replace_all_uses_with(new)


def _spell_out_attention(gm: fx.GraphModule, node: fx.Node) -> None:
    """softmax(Q K^T / sqrt(d) + mask) V as its operators, so that each can be quantized."""
    q, k, v = node.args[:3]
    mask, dropout = argument(node, 3, "attn_mask"), argument(node, 4, "dropout_p", 0.0)
    causal, scale = argument(node, 5, "is_causal", False), node.kwargs.get("scale")
    if dropout or causal or node.kwargs.get("enable_gqa"):
        return  # stays one operator, and is named as unsupported
    scale = shape_of(q)[-1] ** -0.5 if scale is None else scale
    aten, value = torch.ops.aten, node.meta["val"]

    def call(target, *args):
        new = gm.graph.call_function(target, args)
        new.meta.update({k: m for k, m in node.meta.items() if k != "val"})
        with torch.no_grad(), _fake_mode(value):
            new.meta["val"] = target(
                *(a.meta["val"] if isinstance(a, fx.Node) else a for a in args)
            )
        return new

    with gm.graph.inserting_before(node):
        scores = call(aten.matmul.default, q, call(aten.transpose.int, k, -2, -1))
        scores = call(aten.mul.Tensor, scores, scale)
        if mask is not None and is_float(mask):
            scores = call(aten.add.Tensor, scores, mask)
        elif mask is not None:
            hidden = call(aten.logical_not.default, mask)
            scores = call(aten.masked_fill.Scalar, scores, hidden, float("-inf"))
        out = call(aten.matmul.default, call(aten.softmax.int, scores, -1), v)
    node.replace_all_uses_with(out)
    gm.graph.erase_node(node)


def _fake_mode(value: Tensor):
    from contextlib import nullcontext

    return getattr(value, "fake_mode", None) or nullcontext()


def as_batches(data: Any) -> list[Any]:
    """A tensor or a dict is one batch; of anything else, each item is (see ``as_arguments``)."""
    if isinstance(data, (Tensor, Mapping)):
        return [data]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise TypeError(
            "the data must be one batch (a tensor or a dict) or an iterable of batches, "
            f"not {type(data).__name__}"
        )
    batches = list(data)
    if not batches:
        raise ValueError("there is no data; at least one batch is needed")
    return batches


def batches_of(gm: fx.GraphModule, data: Any) -> list[list[Any]]:
    """Data as a list of batches, each a list with one value for every input of ``gm``, beside it.

    What comes after the inputs, such as the labels of a data loader, is left out. Raises where a
    batch does not fit what the model was captured with, or is not finite.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    batches = []
    for batch in as_batches(data):
        args, kwargs = as_arguments(batch)
        named = [kwargs[k] for k in gm.meta.get("keywords", ()) if k in kwargs]
        values = tree_leaves((args, named))
        if len(values) < len(inputs):
            raise ValueError(f"a batch has {len(values)} values, the model takes {len(inputs)}")
        batches.append(beside(gm, values[: len(inputs)]))
        for node, value in zip(inputs, batches[-1], strict=True):
            _check_input(node, value)
    return batches


def flat(outputs: Any) -> Tensor:
    """All real numbers that a network answers, in one vector."""
    tensors = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.cat([t.detach().flatten() for t in tensors])


def _fixed(size: Any) -> bool:
    """Whether a dimension is a number; a symbol that has become one does not say so otherwise."""
    return str(size).isdigit()


def _check_input(node: fx.Node, value: Any) -> None:
    """Data that the model was not captured for is named before it fails deep inside."""
    expected = node.meta.get("val")
    if not isinstance(expected, Tensor):
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"input {node.name} must be a tensor, not {type(value).__name__}")
    fits = value.ndim == expected.ndim and all(
        not _fixed(e) or int(e) == v for e, v in zip(expected.shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"input {node.name} has shape {tuple(value.shape)}; the model was captured with "
            f"{tuple(expected.shape)}, where letters may vary"
        )
    if value.numel() == 0:
        raise ValueError(f"input {node.name} is empty; at least one sample is needed")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise ValueError(f"input {node.name} has NaN or infinite values; clean the data first")
