"""A file computed by ONNX Runtime; see ``minq.deploy.onnx``."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from minq._checks import Array, check_count
from minq.deploy.onnx import outputs, sealed
from minq.deploy.onnx.store import INTEGERS

try:
    import onnxruntime
except ImportError:  # files can be written without it
    onnxruntime = None

PROVIDERS = ["CPUExecutionProvider"]


def load(path: str | Path, *, threads: int | None = None, fuse: bool = True) -> OnnxNetwork:
    """The network of a file that ``to_onnx`` wrote, to be called as the original.

    Args:
        path: of the file.
        threads: how many work on one call; by default as many as ONNX Runtime finds cores.
        fuse: let ONNX Runtime replace patterns by integer kernels. Without, it computes operator by
            operator, in float between the QuantizeLinear.

    Returns:
        The network; tensors in, tensors out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut short, or was not written by ``to_onnx``.
        ImportError: there is no onnxruntime.
    """
    return OnnxNetwork(path, threads=threads, fuse=fuse)


def fused(path: str | Path) -> Counter[str]:
    """How often each operator is in the graph that ONNX Runtime makes of a file.

    Integer kernels are called QLinearConv, QGemm, QLinearAdd, ...; what is left of QuantizeLinear
    and DequantizeLinear shows where the network changes between integers and float.

    Args:
        path: of the file.

    Returns:
        Operators by name, with their number.

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``load``.
    """
    sealed.read(path)
    with tempfile.TemporaryDirectory() as folder:
        options = options_for(Path(path).parent)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
        model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


class OnnxNetwork:
    """A network that ONNX Runtime computes: torch tensors in, torch tensors out. See ``load``."""

    def __init__(self, path: str | Path, *, threads: int | None = None, fuse: bool = True) -> None:
        content, self.size = sealed.read(path)
        self.options = options = options_for(Path(path).parent)
        if threads is not None:
            options.intra_op_num_threads = check_count(threads, "threads")
        if not fuse:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        self.path = Path(path)
        self.session = onnxruntime.InferenceSession(content, options, providers=PROVIDERS)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self._outputs = self.session.get_modelmeta().custom_metadata_map["minq.outputs"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs for inputs of the shapes and types that the network was captured with."""
        values = self.session.run(None, self._feed(args, kwargs))
        return outputs.read(self._outputs, [torch.from_numpy(v) for v in values])

    def trace(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The integers behind each quantizer of activations, by its name, int32."""
        model = onnx.load_model(self.path, load_external_data=False)
        names = [v for node in model.graph.node for v in node.output if INTEGERS in v]
        model.graph.output.extend(onnx.ValueInfoProto(name=v) for v in names)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), self.options, providers=PROVIDERS
        )
        values = session.run(names, self._feed(args, kwargs))
        parts = [name.rpartition(INTEGERS) for name in names]
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


def options_for(folder: Path) -> onnxruntime.SessionOptions:
    """What a session needs to find large constants, and not to chat."""
    if onnxruntime is None:
        raise ImportError("there is no onnxruntime; install: pip install onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    where = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(where, str(folder.resolve()))
    return options
