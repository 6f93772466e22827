"""Post-training quantization: a trained network made quantizable without training it again.

The package can be called: ``minq.ptq(model, calibration, ...)`` is the whole pipeline of figure 8,
``minq.ptq.pipeline.ptq``.
"""

from minq._lazy import make_callable
from minq.ptq.awq import AWQ
from minq.ptq.balance import Balance
from minq.ptq.pipeline import Equalize, ptq
from minq.ptq.rounding import GPTQ, AdaRound, Nearest
from minq.ptq.smooth import Smooth

__all__ = ["AWQ", "GPTQ", "AdaRound", "Balance", "Equalize", "Nearest", "Smooth", "ptq"]

make_callable(__name__, ptq)
