"""A quantized network as an ONNX file that an engine computes with integers, and back.

to_onnx(q, path)   the file: a standard QDQ graph, see minq.deploy.qdq
load(path)         the network of the file, computed by ONNX Runtime
fused(path)        the operators that ONNX Runtime makes of it: QLinearConv, QGemm, ...

A file carries a checksum, is written whole or not at all, and holds nothing of the machine it was
made on; minq.deploy.sealed writes and reads it.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import minq
from minq import graph
from minq._checks import Array, check_count
from minq.batches import batches_of
from minq.deploy import answers
from minq.deploy.integer import simulation
from minq.export import capture, outside, unwrapped
from minq.quantizer import Quantizer
from minq.simulate import quantizers, weight_quantizers

try:
    import onnx
    import onnx_ir as ir

    from minq.deploy import qdq, sealed
except ImportError as error:
    raise ImportError(f"{error}; install: pip install onnx onnxscript onnxruntime") from error
try:
    import onnxruntime
except ImportError:  # files can be written without it
    onnxruntime = None

OPSET = 21
"""The first with 4-bit and 16-bit integers in QuantizeLinear."""

PROVIDERS = ["CPUExecutionProvider"]


# --- The public face ------------------------------------------------------------------------------


@outside()
def to_onnx(q: nn.Module, path: str | Path, example: Any = None) -> Path:
    """Write a network as an ONNX file, whole or not at all; returns the path.

    q: what ``minq.ptq`` or ``minq.qat`` return, or any network without quantizers, which gives the
        float file to compare with. Everything must be float32, and every quantizer frozen.
    example: what the network is called with; needed where ``q`` is not a captured graph.

    The batch size stays free. Types are those that engines have kernels for, and sum exactly on
    every processor: UINT8, where a signed grid stands 128 higher, with its zero-point, and INT8 for
    weights of 5 to 7 bits. Weights of up to 4 bits are stored in INT4 and widened by a Cast when
    the file is loaded. Grids of 9 to 16 bits become INT16 or UINT16, with which ONNX Runtime
    computes in float, as it does with weights that have one scale for each group. A bias that INT32
    cannot hold stays a float, and with it its layer; no optimizer rounds what stays in float.

    A network of more than 2 GB, the most that one ONNX file can hold, has its constants in a second
    file beside it, ``<name>.<digest>.data``; the two are moved together.

    The file is then run, by ONNX Runtime as it comes, on ``example`` or on random numbers within
    the input's range; where that is installed, and the network can be called with them. A warning
    says by how many dB an output is off, where that is more than ties and precision explain.

    Raises ValueError for a quantizer that is not frozen, for activations in groups, for numbers
    that are not float32, for an operator that has no ONNX translation, and for an output that is no
    tensor, number, word or None.
    """
    gm = _captured(q, example)
    weights = set(weight_quantizers(gm))
    for name, quantizer in quantizers(gm).items():
        _check(name, quantizer, name in weights)
    model = _translate(gm)
    qdq.Rewriting(model, quantizers(gm), weights).run()
    model.producer_name, model.producer_version = "minq", minq.__version__
    path = Path(path)
    sealed.write(model, path)
    if onnxruntime is not None:
        _compare(gm, path, example)
    return path


def load(path: str | Path, *, threads: int | None = None, fuse: bool = True) -> OnnxNetwork:
    """The network of a file that ``to_onnx`` wrote, to be called as the original.

    threads: how many work on one call; by default as many as ONNX Runtime finds cores.
    fuse: let ONNX Runtime replace patterns by integer kernels. Without, it computes operator by
        operator, in float between the QuantizeLinear.

    Raises FileNotFoundError, and ValueError for a file that is damaged, cut short or foreign.
    """
    return OnnxNetwork(path, threads=threads, fuse=fuse)


def fused(path: str | Path) -> Counter[str]:
    """How often each operator is in the graph that ONNX Runtime makes of a file.

    Integer kernels are called QLinearConv, QGemm, QLinearAdd, ...; what is left of QuantizeLinear
    and DequantizeLinear shows where the network changes between integers and float.
    """
    sealed.read(path)
    with tempfile.TemporaryDirectory() as folder:
        options = _options(Path(path).parent)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
        model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


class OnnxNetwork:
    """A network that ONNX Runtime computes: torch tensors in, torch tensors out. See ``load``."""

    def __init__(self, path: str | Path, *, threads: int | None = None, fuse: bool = True) -> None:
        content, self.size = sealed.read(path)
        self.options = options = _options(Path(path).parent)
        if threads is not None:
            options.intra_op_num_threads = check_count(threads, "threads")
        if not fuse:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        self.path = Path(path)
        self.session = onnxruntime.InferenceSession(content, options, providers=PROVIDERS)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self._answers = self.session.get_modelmeta().custom_metadata_map["minq.answers"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs for inputs of the shapes and types that the network was captured with."""
        outputs = [torch.from_numpy(v) for v in self.session.run(None, self._feed(args, kwargs))]
        return answers.read(self._answers, outputs)

    def trace(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The integers behind each quantizer of activations, by its name, int32."""
        model = onnx.load_model(self.path, load_external_data=False)
        names = [v for node in model.graph.node for v in node.output if qdq.INTEGERS in v]
        model.graph.output.extend(onnx.ValueInfoProto(name=v) for v in names)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), self.options, providers=PROVIDERS
        )
        values = session.run(names, self._feed(args, kwargs))
        parts = [name.rpartition(qdq.INTEGERS) for name in names]
        return {
            name: torch.from_numpy(v.astype(np.int32)) - int(shift or 0)
            for (name, _, shift), v in zip(parts, values, strict=True)
        }

    def _feed(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Array]:
        named = [kwargs.pop(name) for name in list(self.inputs) if name in kwargs]
        values = pytree.tree_leaves((args, named))
        if kwargs or len(values) != len(self.inputs):
            raise TypeError(
                f"this network takes {', '.join(self.inputs)}; it was given {len(values)} of them"
                + "".join(f", and {name}, which it does not know" for name in kwargs)
            )
        return {
            name: _array(name, expected, value)
            for (name, expected), value in zip(self.inputs.items(), values, strict=True)
        }

    def __repr__(self) -> str:
        return f"OnnxNetwork({str(self.path)!r}, {self.size} bytes)"


def _array(name: str, expected: Any, value: Any) -> Array:
    """One input as ONNX Runtime takes it; what does not fit is named."""
    if not isinstance(value, Tensor):
        raise TypeError(f"input {name} must be a tensor, not {type(value).__name__}")
    array = value.detach().cpu().contiguous().numpy()
    known = {"float": "float32", "double": "float64"}
    kind = expected.type.removeprefix("tensor(").removesuffix(")")
    if array.dtype.name != known.get(kind, kind):
        raise TypeError(f"input {name} must be {known.get(kind, kind)}, not {array.dtype}")
    fits = array.ndim == len(expected.shape) and all(
        isinstance(e, str) or e == size for e, size in zip(expected.shape, array.shape, strict=True)
    )
    if not fits or not array.size:
        shape = ", ".join(map(str, expected.shape))
        raise ValueError(f"input {name} has shape {array.shape}; the network takes ({shape})")
    return array


def _options(folder: Path) -> onnxruntime.SessionOptions:
    """What a session needs to find large constants, and not to chat."""
    if onnxruntime is None:
        raise ImportError("there is no onnxruntime; install: pip install onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    where = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(where, str(folder.resolve()))
    return options


# --- The file beside the simulation ---------------------------------------------------------------


@torch.no_grad()
def _compare(gm: fx.GraphModule, path: Path, example: Any) -> None:
    """Warn where ONNX Runtime, as it comes, answers otherwise than the simulation.

    Ties that fall the other way move an output by as much as double precision does, give or take;
    in any case by less than quantization itself.
    """
    try:
        inputs = _inputs(gm, example)
        expected = _real(gm(*inputs))
        exact = _real(_in_double(gm)(*(v.double() if _is_real(v) else v for v in inputs)))
        off = copy.deepcopy(gm)
        for quantizer in quantizers(off).values():
            quantizer.off()
        before = _real(off(*inputs))
    except Exception:  # a network need not take random numbers
        return
    options = _options(path.parent)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
    names = [value.name for value in session.get_outputs()]
    given = {v.name: x.numpy() for v, x in zip(session.get_inputs(), inputs, strict=True)}
    outputs = [torch.from_numpy(v) for v in session.run(None, given)]
    metadata = session.get_modelmeta().custom_metadata_map["minq.answers"]
    name_of = pytree.tree_leaves(answers.read(metadata, names))
    leaves = pytree.tree_leaves(answers.read(metadata, outputs))
    for k, want in expected.items():
        found = _sqnr(exact[k], leaves[k])
        ties, cost = _sqnr(exact[k], want), _sqnr(before[k], want)
        if found < min(ties - 10, cost + 6, 60):
            warnings.warn(
                f"ONNX Runtime does not compute what the simulation does: its {name_of[k]} from "
                f"{path.name} has {found:.1f} dB of SQNR towards it, where quantization itself has "
                f"{cost:.1f} dB; load(path, fuse=False) computes without the engine's integer "
                "kernels, and skip= keeps a layer out of them",
                stacklevel=3,
            )


def _in_double(gm: fx.GraphModule) -> fx.GraphModule:
    """The simulation, with its biases on their grid where 32 bits hold them."""
    try:
        return simulation(gm)
    except (TypeError, ValueError):
        return copy.deepcopy(gm).double()


def _inputs(gm: fx.GraphModule, example: Any) -> list[Tensor]:
    """A few samples of the example; without one, numbers from all over the input's range."""
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if example is not None:
        (batch,) = batches_of(gm, [example])
        return [x if _fixed(n) else x[:8] for n, x in zip(nodes, batch, strict=True)]
    generator, values = torch.Generator().manual_seed(0), []
    for node in nodes:
        x = _sample(node)
        grids = [quantizers(gm).get(str(user.target)) for user in node.users]
        grid = next((q for q in grids if q is not None), None)
        if not x.is_floating_point():
            values.append(torch.ones_like(x))
        elif grid is None or grid.granularity.axis is not None:
            values.append(torch.randn(x.shape, generator=generator))
        else:
            scale, zero_point = grid.scale_zero_point()
            share = torch.rand(x.shape, generator=generator)
            low, high = grid.grid.limits(scale.detach(), zero_point.detach())
            values.append(low + share * (high - low))
    return values


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _real(tree: Any) -> dict[int, Tensor]:
    """The real tensors of an answer, by their place among its leaves."""
    return {k: v for k, v in enumerate(pytree.tree_leaves(tree)) if _is_real(v) and v.numel()}


def _sqnr(signal: Tensor, other: Tensor) -> float:
    """10 log10(sum x^2 / sum (x - y)^2) of all that is finite in x."""
    x, y = (v.double()[signal.isfinite()] for v in (signal, other))
    noise = float((x - y).square().sum())
    return 10 * math.log10(max(float(x.square().sum()), 1e-300) / noise) if noise else math.inf


# --- From torch to ONNX ---------------------------------------------------------------------------


class _Marker(nn.Module):
    """Stands for a quantizer in the ONNX graph, until ``_Rewriting`` replaces it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            "minq::Quantizer", (x,), {"name": self.name}, dtype=x.dtype, shape=x.shape, version=1
        )


def _captured(q: Any, example: Any) -> fx.GraphModule:
    """A copy of the network's graph."""
    q = unwrapped(q)
    if not isinstance(q, nn.Module):
        raise TypeError(f"q must be a torch.nn.Module, not {type(q).__name__}")
    if isinstance(q, fx.GraphModule) and q.meta.get("minq"):
        gm = graph.on_cpu(q)
    elif any(isinstance(module, Quantizer) for module in q.modules()):
        raise ValueError(
            "this network has quantizers but is no captured graph; give to_onnx what minq.ptq or "
            "minq.qat returned, or capture the network first and quantize it then"
        )
    elif example is None:
        raise ValueError(
            "this network is no captured graph; pass example=, something to call it with"
        )
    else:
        gm = graph.on_cpu(capture(q, example))
    for parameter in (*gm.parameters(), *gm.buffers()):
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f"the network has {parameter.dtype} values; call q.float() first")
    return gm


def _check(name: str, quantizer: Quantizer, weight: bool) -> None:
    if quantizer.stage not in ("frozen", "learn"):
        raise ValueError(
            f"quantizer {name} is not frozen but at stage {quantizer.stage!r}; calibrate the "
            "network first, as minq.ptq does, and freeze its quantizers"
        )
    group = quantizer.granularity.group
    if group is not None and not weight:
        raise ValueError(
            f"quantizer {name} has one scale for each group of {group} values, which "
            "only weights can have in a file"
        )


def _structure(gm: fx.GraphModule) -> pytree.TreeSpec:
    """How the outputs are nested."""
    codegen = gm.graph._codegen
    info = getattr(codegen, "pytree_info", None)
    if info is not None and info.out_spec is not None:
        return info.out_spec
    return pytree.tree_structure(gm.graph.output_node().args[0])


def _translate(gm: fx.GraphModule) -> ir.Model:
    """The graph in ONNX, a marker for each quantizer."""
    if not hasattr(torch.onnx, "ops"):
        raise ImportError(f"torch {torch.__version__} is too old for this; 2.8 or newer is needed")
    flat = copy.deepcopy(gm)
    flat.graph.set_codegen(fx.graph.CodeGen())  # tensors in, tensors out, nothing nested
    for node in list(flat.graph.nodes):
        if graph.op(node) == "linear":
            _as_rows(flat.graph, node)
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
                tuple(_sample(node) for node in inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=[str(node.target) for node in inputs],
                output_names=names,
                dynamic_shapes=tuple(None if _fixed(node) else free for node in inputs),
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
    model.metadata_props["minq.answers"] = places
    return model


def _as_rows(g: fx.Graph, node: fx.Node) -> None:
    """linear(x) = linear(rows of x): ONNX has a layer with a bias for matrices only."""
    sizes = [int(n) if graph.fixed(n) else -1 for n in graph.shape_of(node)]
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


def _sample(node: fx.Node) -> Tensor:
    """Something to call the network with: two samples of zeros."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise ValueError(f"input {node.target} is no tensor; only tensors can be exported")
    shape = [int(size) if graph.fixed(size) else 2 for size in value.shape]
    return torch.zeros(shape, dtype=value.dtype)


def _fixed(node: fx.Node) -> bool:
    shape = graph.shape_of(node)
    return not shape or graph.fixed(shape[0])


def _outputs(output: fx.Node, structure: pytree.TreeSpec) -> tuple[list[fx.Node], str, list[str]]:
    """The tensors among the answers, once each; where they stand, written down; their names."""
    leaves = pytree.tree_leaves(output.args[0])
    names = _output_names(structure)
    found: dict[fx.Node, str] = {}
    values: list[Any] = []
    for leaf, name in zip(leaves, names, strict=True):
        if isinstance(leaf, fx.Node):
            if not isinstance(leaf.meta.get("val"), Tensor):
                raise ValueError(
                    f"{name} is a number that depends on the inputs' shapes, which a file cannot "
                    "hold; let the network answer with tensors, or with constants"
                )
            found.setdefault(leaf, name)
            leaf = answers.Place(list(found).index(leaf))
        values.append(leaf)
    if not found:
        raise ValueError("the network answers with no tensor; there is nothing to compute")
    tree = pytree.tree_unflatten(values, structure)
    return list(found), answers.write(tree), list(found.values())


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
