"""Networks on integers: figure 4a of the paper, files for an inference engine, and what they cost.

to_integer      a network that computes with integers only, and its report
simulation      what it must equal, bit for bit
to_onnx, load   a file that ONNX Runtime computes with integer kernels
to_c            C for a microcontroller, equal to the integers bit for bit
layer_costs     cycles, bytes and joules of every layer on chapter 2's accelerator
"""

from minq._lazy import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "integer": "to_integer simulation IntegerNetwork",
        "kernels": "",
        "onnx": "to_onnx load fused OnnxNetwork",
        "c": "to_c CNetwork",
        "cost": "layer_costs",
    },
)
