"""minq: neural-network quantization, from the equation to the integers.

The names below load on first use, so that ``import minq`` needs NumPy alone.

>>> import minq
>>> scale, zero_point = minq.scale_zero_point(-1.0, 3.0, bits=8)
>>> float(minq.fake_quantize(0.0, scale, zero_point))
0.0
"""

from minq._lazy import lazily

__version__ = "0.1.0"

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "affine": "scale_zero_point grid_limits quantize dequantize fake_quantize sqnr",
        "grid": "Grid integer_grid round_half_even round_straight_through",
        "granularity": "Granularity",
        "measures": "kl_divergence perplexity token_losses",
        "quantizer": "Quantizer",
        "scheme": "Scheme",
        "estimators": "",
        "fold": "fold_batch_norm fold_batch_norms",
        "export": "capture CaptureError",
        "graph": "",
        "simulate": "insert_quantizers quantizers",
        "ptq": "",
        "qat": "",
        "deploy": "",
        "ptq.debug": "debug",
        "deploy.integer": "to_integer",
        "deploy.onnx": "to_onnx",
        "deploy.c": "to_c",
        "mac": "",
        "ranges": "",
        "floats": "",
    },
)
