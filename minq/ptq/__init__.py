"""Post-training quantization: a trained network made quantizable without training it again.

The package can be called: ``minq.ptq(model, calibration, ...)`` is the whole pipeline of figure 3,
``minq.ptq.pipeline.ptq``.
"""

from minq._lazy import make_callable
from minq.ptq.balance import Balance
from minq.ptq.pipeline import Equalize, ptq
from minq.ptq.rounding import GPTQ, AdaRound, Nearest

__all__ = ["GPTQ", "AdaRound", "Balance", "Equalize", "Nearest", "ptq"]

make_callable(__name__, ptq)
