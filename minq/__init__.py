"""minq: neural-network quantization, from the equation to the integers.

The names below load on first use, so that ``import minq`` needs NumPy alone.

>>> import minq
>>> scale, zero_point = minq.scale_zero_point(-1.0, 3.0, bits=8)
>>> float(minq.fake_quantize(0.0, scale, zero_point))
0.0
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "affine": (
        "integer_grid scale_zero_point grid_limits quantize dequantize fake_quantize "
        "round_half_even round_straight_through sqnr"
    ),
    "quantizer": "Quantizer",
    "fold": "fold_batch_norm fold_batch_norms",
    "graph": "capture CaptureError",
    "simulate": "insert_quantizers quantizers",
    "ptq": "",
    "ptq.debug": "debug",
    "mac": "",
    "ranges": "",
    "widgets": "",
    "zoo": "",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [*(module for module in _HOME if "." not in module), *_MODULE_OF]


def __getattr__(name: str):
    if name in _HOME:
        return import_module(f"minq.{name}")
    if name in _MODULE_OF:
        return getattr(import_module(f"minq.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"minq has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
