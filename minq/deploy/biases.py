"""Steps of weights that leave a bias room in 32 bits, for integers, C and ONNX alike."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from minq.quantizer import Quantizer

MOST = 2.0**30
"""The largest |b_int|: half of what 32 bits hold. The other half is left to the products."""


def wide_enough(quantizer: Quantizer, bias: Tensor, s_x: Tensor | float) -> Quantizer:
    """The quantizer of a weight, with steps that are wide enough for the bias behind it.

        b_int = round(b / (s_w s_x)),    |b_int| <= 2^30    where    s_w >= |b| / (2^30 s_x)

    The weights of a channel that is all but dead have tiny steps, and its bias is so many steps of
    s_w s_x that no accumulator of 32 bits holds it. Such an s_w becomes the least that is allowed;
    the smallest power of two above it, where steps are powers of two. M weights move by half a step
    at most, so with inputs of 8 bits the output moves by less than M |b| / 2^23.

    Args:
        quantizer: of the weight, frozen or learned; it is left alone.
        bias: (N,), real numbers.
        s_x: the scale of the layer's input.

    Returns:
        The same quantizer where its steps are wide enough, else a frozen copy.

    >>> quantizer = Quantizer(8, signed=True, symmetric=True, axis=0)
    >>> quantizer = quantizer.set_range(*torch.tensor([[-127.0, -1e-9], [127.0, 1e-9]])).freeze()
    >>> wide_enough(quantizer, torch.tensor([1.0, 2.0]), 0.5).scale.log2()
    tensor([  0., -28.])
    """
    scale = quantizer.scale_zero_point()[0].detach()
    least = bias.detach().double().abs() / (MOST * float(s_x))
    if quantizer.power_of_two:
        least = torch.exp2(torch.log2(least).ceil())
    least = least.float().to(scale)  # in single precision, whoever asks
    least = least if scale.ndim else least.max()
    if bool((scale >= least).all()):
        return quantizer
    wider = copy.deepcopy(quantizer).freeze()
    wider.scale.data = torch.maximum(scale, least)
    return wider
