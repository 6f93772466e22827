"""A quantized network as an ONNX file that an engine computes with integers, and back.

to_onnx(q, path)   the file: a standard QDQ graph, see minq.deploy.onnx.qdq
load(path)         the network of the file, computed by ONNX Runtime
fused(path)        the operators that ONNX Runtime makes of it: QLinearConv, QGemm, ...

A file carries a checksum, is written whole or not at all, and holds nothing of the machine it was
made on; minq.deploy.onnx.sealed writes and reads it.
"""

try:
    import onnx as _onnx  # noqa: F401
    import onnx_ir as _onnx_ir  # noqa: F401
except ImportError as error:
    raise ImportError(f"{error}; install: pip install onnx onnxscript onnxruntime") from error

from minq.deploy.onnx.engine import OnnxNetwork, fused, load
from minq.deploy.onnx.export import to_onnx

__all__ = ["OnnxNetwork", "fused", "load", "to_onnx"]
