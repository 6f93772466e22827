"""A quantized network as an ONNX file that an engine computes with integers, and back.

to_onnx(q, path)   the file: a standard QDQ graph, see minq.deploy.qdq
load(path)         the network of the file, computed by ONNX Runtime
fused(path)        the operators that ONNX Runtime makes of it: QLinearConv, QGemm, ...

A file carries a checksum, is written whole or not at all, and holds nothing of the machine it was
made on.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import minq
from minq import graph
from minq._checks import Array, check_count
from minq._work import write_whole
from minq.export import capture
from minq.quantizer import Quantizer
from minq.simulate import quantizers, weight_quantizers

try:
    import onnx
    import onnx_ir as ir
    import onnxruntime

    from minq.deploy import qdq
except ImportError as error:
    raise ImportError(f"{error}; install: pip install onnx onnxscript onnxruntime") from error

OPSET = 21
"""The first with 4-bit and 16-bit integers in QuantizeLinear."""

PROVIDERS = ["CPUExecutionProvider"]


# --- The public face ------------------------------------------------------------------------------


def to_onnx(q: nn.Module, path: str | Path, example: Any = None) -> Path:
    """Write a network as an ONNX file, whole or not at all; returns the path.

    q: what ``minq.ptq`` or ``minq.qat`` return, or any network without quantizers, which gives the
        float file to compare with. Everything must be float32, and every quantizer frozen.
    example: what the network is called with; needed where ``q`` is not a captured graph.

    The batch size stays free. Types are those that engines have kernels for: INT8 for weights and
    UINT8 for all else, where a signed grid stands 128 higher, with its zero-point. Weights of up to
    4 bits are stored in INT4 and widened by a Cast when the file is loaded. Grids of 9 to 16 bits
    become INT16 or UINT16, with which ONNX Runtime computes in float. A bias that INT32 cannot hold
    stays a float, and with it its layer.

    Raises ValueError for a quantizer that is not frozen or has groups, for numbers that are not
    float32, and for an operator that has no ONNX translation.
    """
    gm = _captured(q, example)
    for name, quantizer in quantizers(gm).items():
        _check(name, quantizer)
    model = _translate(gm)
    qdq.Rewriting(model, quantizers(gm), set(weight_quantizers(gm))).run()
    model.producer_name, model.producer_version = "minq", minq.__version__
    model.metadata_props["minq.outputs"] = pytree.treespec_dumps(_structure(gm))
    model = ir.to_proto(model)
    onnx.checker.check_model(model, full_check=True)
    path = Path(path)
    write_whole(path, lambda part: part.write_bytes(_sealed(model.SerializeToString())))
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
    _unsealed(path)
    with tempfile.TemporaryDirectory() as folder:
        options = _options()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
        model = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in model.graph.node)


class OnnxNetwork:
    """A network that ONNX Runtime computes: torch tensors in, torch tensors out. See ``load``."""

    def __init__(self, path: str | Path, *, threads: int | None = None, fuse: bool = True) -> None:
        content = _unsealed(path)
        self.options = options = _options()
        if threads is not None:
            options.intra_op_num_threads = check_count(threads, "threads")
        if not fuse:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        self.path, self.size = Path(path), len(content)
        self.session = onnxruntime.InferenceSession(content, options, providers=PROVIDERS)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        structure = self.session.get_modelmeta().custom_metadata_map["minq.outputs"]
        self._structure = pytree.treespec_loads(structure)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs for inputs of the shapes and types that the network was captured with."""
        outputs = [torch.from_numpy(v) for v in self.session.run(None, self._feed(args, kwargs))]
        return pytree.tree_unflatten(outputs, self._structure)

    def trace(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The integers behind each quantizer of activations, by its name, int32."""
        model = onnx.load_model(self.path)
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


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not _sums_are_exact():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@cache
def _sums_are_exact() -> bool:
    """Whether the engine adds products of UINT8 and INT8 without loss.

    x86 without VNNI adds two of them in 16 bits, and saturates. There is an exact way, up to four
    times slower, so it is asked for only where this sum comes out wrong.
    """
    weight = onnx.numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")
    x, y = (
        onnx.helper.make_tensor_value_info(name, kind, [16, size])
        for name, kind, size in (
            ("x", onnx.TensorProto.UINT8, 64),
            ("y", onnx.TensorProto.INT32, 16),
        )
    )
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "sums", [x], [y], [weight]),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=PROVIDERS)
    (sums,) = session.run(None, {"x": np.full((16, 64), 255, np.uint8)})
    return bool((sums == 64 * 255 * 127).all())


# --- The file -------------------------------------------------------------------------------------


def _seal(content: bytes) -> bytes:
    """A checksum, as the last of the model's metadata: protobuf lets messages be concatenated."""
    entry = onnx.StringStringEntryProto(
        key="minq.checksum", value=hashlib.sha256(content).hexdigest()
    )
    return onnx.ModelProto(metadata_props=[entry]).SerializeToString()


def _sealed(content: bytes) -> bytes:
    return content + _seal(content)


def _unsealed(path: str | Path) -> bytes:
    """The content of a file that is what ``to_onnx`` wrote."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; write it with minq.to_onnx(q, path)")
    content = path.read_bytes()
    size = len(_seal(b""))
    if content[-size:] != _seal(content[:-size]):
        raise ValueError(
            f"{path.name} is damaged, cut short, or was not written by minq.to_onnx; "
            "write it again with minq.to_onnx(q, path)"
        )
    return content


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
    if not isinstance(q, nn.Module):
        raise TypeError(f"q must be a torch.nn.Module, not {type(q).__name__}")
    if not (isinstance(q, fx.GraphModule) and q.meta.get("minq")):
        if example is None:
            raise ValueError(
                "this network is no captured graph; pass example=, something to call it with"
            )
        return capture(q, example)
    for parameter in (*q.parameters(), *q.buffers()):
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f"the network has {parameter.dtype} values; call q.float() first")
    return graph.on_cpu(q)


def _check(name: str, quantizer: Quantizer) -> None:
    if quantizer.stage not in ("frozen", "learn"):
        raise ValueError(
            f"quantizer {name} is not frozen but at stage {quantizer.stage!r}; calibrate the "
            "network first, as minq.ptq does, and freeze its quantizers"
        )
    if quantizer.group is not None:
        raise ValueError(
            f"quantizer {name} has one scale for each group of {quantizer.group} values; "
            "only one for each tensor or channel can be exported"
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
    output.args = (tuple(pytree.tree_leaves(output.args[0])),)
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
                output_names=_output_names(_structure(gm)),
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


def _output_names(structure: pytree.TreeSpec) -> list[str]:
    """output, or output_0 and output_1, or output_sum, after the place in the structure."""
    leaves = pytree.tree_unflatten(list(range(structure.num_leaves)), structure)
    paths, _ = pytree.tree_flatten_with_path(leaves)
    keys = [[str(getattr(k, "key", getattr(k, "idx", k))) for k in path] for path, _ in paths]
    return ["_".join(["output", *key]) for key in keys]


def _reason(error: BaseException) -> str:
    """The first line of the deepest cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().split("\n") or [type(error).__name__])[0][:300]
