"""Pictures to play with. Each is an anywidget whose JavaScript computes and draws in the page.

    from minqbook.widgets import AffinePlayground
    AffinePlayground(data, bits=4)

They are loaded on first use, so that ``import minq`` needs neither ipywidgets nor a browser.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "AffinePlayground": "affine_playground",
    "ImageBits": "image_bits",
    "RangeTradeoff": "range_tradeoff",
    "Granularity": "granularity",
    "MacArray": "mac_array",
    "ElementSize": "element_size",
    "Waveform": "waveform",
    "Equalizer": "equalizer",
    "BiasShift": "bias_shift",
    "AdaRoundPlay": "adaround_play",
    "SimulatedBlock": "simulated_block",
    "PipelineSteps": "pipeline_steps",
    "DebugChart": "debug_chart",
    "FloatBits": "float_bits",
    "DeadStart": "dead_start",
    "FoldOrKeep": "fold_or_keep",
    "Descent": "descent",
    "RangePull": "range_pull",
    "MethodChoice": "method_choice",
    "TwoPaths": "two_paths",
    "OutlierMap": "outlier_map",
    "NumberGrids": "number_grids",
    "MemoryPlan": "memory_plan",
    "OwnPicture": "own_picture",
    "BlockBytes": "block_bytes",
    "Question": "question",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"minqbook.widgets has no {name!r}; it has {', '.join(_HOME)}")
    try:
        return getattr(importlib.import_module(f"minqbook.widgets.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise ImportError(
            f"minqbook.widgets.{name} needs {error.name}; install it with: pip install anywidget"
        ) from error


def __dir__() -> list[str]:
    return __all__
