"""Post-training quantization: a trained network made quantizable without training it again.

The package can be called: ``minq.ptq(model, calibration, ...)`` is the whole pipeline of figure 3,
``minq.ptq.pipeline.ptq``.
"""

import sys
from types import ModuleType

from minq.ptq.pipeline import ptq


class _Callable(ModuleType):
    __call__ = staticmethod(ptq)


sys.modules[__name__].__class__ = _Callable
