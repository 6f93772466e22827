"""Networks and data that the book runs on.

The names below load on first use; torch is needed for most of them, other packages where an error
says so.
"""

from importlib import import_module

_HOME = {
    "small": "NAMES METRICS calibration_set evaluate info load test_set",
    "pretrained": (
        "STRIDE_2 efficientnet_lite0 efficientnet_lite0_model efficientnet_lite0_weights "
        "imagenet_samples photo_crops same_convolution"
    ),
    "data": "scenes",
    "text": "reviews spell",
    "models": "EfficientNetLite",
    "metrics": "",
    "photos": "",
    "train": "",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [*_HOME, *_MODULE_OF]


def __getattr__(name: str):
    if name in _HOME:
        return import_module(f"minq.zoo.{name}")
    if name in _MODULE_OF:
        return getattr(import_module(f"minq.zoo.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"minq.zoo has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
