"""Quantization-aware training: a network that is trained while it is quantized.

The package can be called: ``minq.qat(model, loader, loss, ...)`` is the whole pipeline of figure 4,
``minq.qat.pipeline.qat``. Its steps are here for a training loop of one's own.
"""

import sys
from types import ModuleType

from minq.qat.batchnorm import reestimate
from minq.qat.pipeline import finish, parameter_groups, prepare, qat

__all__ = ["finish", "parameter_groups", "prepare", "qat", "reestimate"]


class _Callable(ModuleType):
    __call__ = staticmethod(qat)


sys.modules[__name__].__class__ = _Callable
