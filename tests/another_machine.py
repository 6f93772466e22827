"""Another machine inside this one: products of matrices and convolutions add up in another order.

Which order a machine takes depends on its vector instructions, its threads and its libraries; none
is wrong, and no expectation may rest on one of them. `ANOTHER_MACHINE=3 pytest ...` is machine 3:
every sum over k products runs through a permutation that the seed 3 draws. `make another-machine`
does so with older vector instructions and two threads as well.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

aten = torch.ops.aten


def sum_in_another_order(seed: int) -> torch.library.Library:
    """Replace the kernels of this process; what is returned must be kept alive."""

    @cache
    def order(k: int) -> Tensor:
        return torch.randperm(k, generator=torch.Generator().manual_seed(seed))

    def mixed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        k = order(a.shape[-1])
        return a.index_select(-1, k), b.index_select(max(b.ndim - 2, 0), k)

    def mm(a, b):
        return aten.mm.out(*mixed(a, b), out=a.new_empty(len(a), b.shape[1]))

    def bmm(a, b):
        return aten.bmm.out(*mixed(a, b), out=a.new_empty(*a.shape[:2], b.shape[2]))

    def addmm(c, a, b, *, beta=1, alpha=1):
        out = a.new_empty(len(a), b.shape[1])
        return aten.addmm.out(c, *mixed(a, b), beta=beta, alpha=alpha, out=out)

    def baddbmm(c, a, b, *, beta=1, alpha=1):
        out = a.new_empty(*a.shape[:2], b.shape[2])
        return aten.baddbmm.out(c, *mixed(a, b), beta=beta, alpha=alpha, out=out)

    def mv(a, b):
        return aten.mv.out(*mixed(a, b), out=a.new_empty(len(a)))

    def convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups):
        """Input channels in another order; of one channel a group, the window from its end."""
        rest = (b, stride, padding, dilation, transposed, output_padding, groups)
        ends = range(2 - (x.ndim < w.ndim), x.ndim)
        turned = groups > 1 and not transposed and all(s == 1 for s in stride)
        if turned:
            x, w = x.flip(*ends), w.flip(*range(2, w.ndim))
        elif groups == 1:
            inputs = 0 if transposed else 1
            k = order(w.shape[inputs])
            x, w = x.index_select(ends[0] - 1, k), w.index_select(inputs, k)
        y = aten._convolution(x, w, *rest, False, False, True, True)
        return y.flip(*ends) if turned else y

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel")
        for kernel in (mm, bmm, addmm, baddbmm, mv, convolution):
            library.impl(kernel.__name__, kernel, "CPU")
    return library
