"""Quantization-aware training: a network that is trained while it is quantized.

The package can be called: ``minq.qat(model, loader, loss, ...)`` is the whole pipeline of
figure 11, ``minq.qat.pipeline.qat``. Its steps are here for a training loop of one's own.
"""

from minq._lazy import make_callable
from minq.qat.batchnorm import Dynamic, Fold, Keep, reestimate
from minq.qat.pipeline import finish, parameter_groups, prepare, qat
from minq.qat.run import Checkpoint

__all__ = [
    "Checkpoint",
    "Dynamic",
    "Fold",
    "Keep",
    "finish",
    "parameter_groups",
    "prepare",
    "qat",
    "reestimate",
]

make_callable(__name__, qat)
