"""The oracle of the networks on integers: torch's own kernels in double precision."""

import torch
from torch.utils._pytree import tree_leaves

import minq
from minq.deploy import simulation
from minq.simulate import activation_quantizers


def quantized(model, x, **settings):
    settings = {"weight_range": "min_max", "activation_range": "min_max"} | settings
    return minq.ptq(model, x, rounding="nearest", **settings)


def levels(q, x):
    """The integers behind the floats of the simulation, at every quantizer; and its answers."""
    found, gm = {}, simulation(q)
    for name, quantizer in activation_quantizers(gm).items():

        def look(module, _, y, name=name):
            scale, zero_point = module.scale_zero_point()
            found[name] = torch.round(y / scale) + zero_point

        quantizer.register_forward_hook(look)
    with torch.no_grad():
        y = gm(x.double() if x.is_floating_point() else x)
    return found, y


def assert_same(q, x, ties=1e-6):
    """Bit for bit with float multipliers; with fixed ones one step of each layer at most.

    ties: the share of results so near to a tie that fixed multipliers may round them otherwise.
    """
    net, (expected, y_expected) = minq.to_integer(q, multipliers="float"), levels(q, x)
    found = net.trace(x)
    assert set(found) <= set(expected)  # those of constants are computed beforehand
    for name, integers in found.items():
        assert not integers.is_floating_point()
        assert torch.equal(integers.double(), expected[name]), name
    for a, b in zip(tree_leaves(net(x)), tree_leaves(y_expected), strict=True):
        assert torch.equal(a, b.to(a.dtype))
    for row in minq.to_integer(q).report(x):
        assert row.worst <= 1 and row.differ <= ties * row.outputs + 2, row
        assert row.bits is None or row.bits <= row.bound <= 32, row
    return net
