"""From torch's graph to ONNX's, a marker for each quantizer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from minq import graph
from minq.deploy.onnx import outputs
from minq.simulate import quantizers

OPSET = 21
"""The first with 4-bit and 16-bit integers in QuantizeLinear."""


class _Marker(nn.Module):
    """Stands for a quantizer in the ONNX graph, until ``_Rewriting`` replaces it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "minq::Quantizer", (x,), {"name": self.name}, dtype=x.dtype, shape=x.shape, version=1
        )


def _structure(gm: fx.GraphModule) -> pytree.TreeSpec:
    """How the outputs are nested."""
    codegen = gm.graph._codegen
    info = getattr(codegen, "pytree_info", None)
    if info is not None and info.out_spec is not None:
        return info.out_spec
    return pytree.tree_structure(gm.graph.output_node().args[0])


def translate(gm: fx.GraphModule) -> ir.Model:
    """The graph in ONNX, a marker for each quantizer."""
    if not hasattr(torch.onnx, "ops"):
        raise ImportError(f"torch {torch.__version__} is too old for this; 2.8 or newer is needed")
    flat = copy.deepcopy(gm)
    flat.graph.set_codegen(fx.graph.CodeGen())  # tensors in, tensors out, nothing nested
    for node in list(flat.graph.nodes):
        if graph.op(node) == "linear":
            _as_rows(flat.graph, node)
        elif graph.op(node) == "rsub" and len(node.args) == 2 and not node.kwargs:
            _less_whole(flat.graph, node)
    for name in quantizers(flat):
        flat.set_submodule(name, _Marker(name))
    output = flat.graph.output_node()
    tensors, places, names = _outputs(output, _structure(gm))
    output.args = (tuple(tensors),)
    flat.recompile()
    inputs = [node for node in flat.graph.nodes if node.op == "placeholder"]
    free = {0: torch.export.Dim.AUTO}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                flat.eval(),
                tuple(sample(node) for node in inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=[str(node.target) for node in inputs],
                output_names=names,
                dynamic_shapes=tuple(None if batch_is_fixed(node) else free for node in inputs),
                verbose=False,
            )
        except Exception as error:
            raise ValueError(
                f"torch.onnx could not translate this network: {_reason(error)}"
            ) from error
    model = program.model
    ir.passes.common.ClearMetadataAndDocStringPass()(model)  # it holds the paths of source files
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props["minq.outputs"] = places
    if sizes := graph.network_notes(gm).sizes:
        model.metadata_props["minq.sizes"] = " and ".join(sizes)
    return model


def _as_rows(g: fx.Graph, node: fx.Node) -> None:
    """linear(x) = linear(rows of x): ONNX has a layer with a bias for matrices only."""
    sizes = [int(n) if graph.is_fixed(n) else -1 for n in graph.shape_of(node)]
    if len(sizes) == 2 or sizes.count(-1) > 1:
        return
    reshape, x = torch.ops.aten.reshape.default, graph.input_of(node)
    with g.inserting_before(node):
        rows = g.call_function(reshape, (x, [-1, graph.shape_of(x)[-1]]))
    node.args = (rows, *node.args[1:])
    with g.inserting_after(node):
        back = g.call_function(reshape, (node, sizes))
    back.meta.update(node.meta)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def _less_whole(g: fx.Graph, node: fx.Node) -> None:
    """1.0 - x = -(x - 1.0): torch.onnx fails at a number less a tensor of whole numbers."""
    x, number = node.args
    if not graph.is_float(x) and isinstance(number, float):
        with g.inserting_before(node):
            turned = g.call_function(torch.ops.aten.sub.Tensor, (x, number))
            new = g.call_function(torch.ops.aten.neg.default, (turned,))
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        g.erase_node(node)


def sample(node: fx.Node) -> Tensor:
    """Something to call the network with: two samples of zeros."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise ValueError(f"input {node.target} is not a tensor; only tensors can be exported")
    shape = [int(size) if graph.is_fixed(size) else 2 for size in value.shape]
    return torch.zeros(shape, dtype=value.dtype)


def batch_is_fixed(node: fx.Node) -> bool:
    shape = graph.shape_of(node)
    return not shape or graph.is_fixed(shape[0])


def _outputs(output: fx.Node, structure: pytree.TreeSpec) -> tuple[list[fx.Node], str, list[str]]:
    """The tensors among the outputs, once each; where they stand, written down; their names."""
    leaves = pytree.tree_leaves(output.args[0])
    names = _output_names(structure)
    found: dict[fx.Node, str] = {}
    values: list[Any] = []
    for leaf, name in zip(leaves, names, strict=True):
        if isinstance(leaf, fx.Node):
            if not isinstance(leaf.meta.get("val"), Tensor):
                raise ValueError(
                    f"{name} is a number that depends on the inputs' shapes, which a file cannot "
                    "hold; let the network return tensors, or constants"
                )
            found.setdefault(leaf, name)
            leaf = outputs.Place(list(found).index(leaf))
        values.append(leaf)
    if not found:
        raise ValueError("the network returns no tensor; there is nothing to compute")
    tree = pytree.tree_unflatten(values, structure)
    return list(found), outputs.write(tree), list(found.values())


def _output_names(structure: pytree.TreeSpec) -> list[str]:
    """output, or output_0 and output_1, or output_sum, after the place in the structure."""
    leaves = pytree.tree_unflatten(list(range(structure.num_leaves)), structure)
    paths, _ = pytree.tree_flatten_with_path(leaves)
    parts = ("key", "idx", "name")
    keys = [
        [str(next((getattr(k, p) for p in parts if hasattr(k, p)), k)) for k in path]
        for path, _ in paths
    ]
    return ["_".join(["output", *key]) for key in keys]


def _reason(error: BaseException) -> str:
    """The first line of the deepest cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().split("\n") or [type(error).__name__])[0][:300]
