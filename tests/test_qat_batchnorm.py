"""Batch norm three ways: nothing changes when it comes back, torch's beside it, folded again."""

import copy

import pytest
import torch
from networks import network, noise, settle, zoo_graph
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from minq import graph, qat
from minq.graph.batches import flatten_outputs
from minq.ptq.pipeline import ptq
from minq.ptq.rounding import Nearest
from minq.qat import batchnorm
from minq.qat.batchnorm import (
    DynamicallyFoldedLayer,
    KeptBatchNorm,
    as_batch_norm,
    reestimate,
    remove,
)
from minq.simulate import weight_quantizers
from minqbook import zoo

NORMED = ["conv3d", "grouped", "transposed", "transposed1d", "linear2d", "plain batch norm",
          "residual", "mobile", "shared convolution"]  # fmt: skip
COUNTS = {"residual": 4, "mobile": 3, "shared convolution": 2}
WAYS = ["dynamic", "keep"]

LAYERS = {
    "conv1d": (lambda: [nn.Conv1d(3, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4)], (3, 9)),
    "conv2d": (lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.1)], (3, 8, 8)),
    "depthwise": (lambda: [nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)], (4, 6, 6)),
    "conv3d": (lambda: [nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3)], (2, 4, 5, 5)),
    "linear": (lambda: [nn.Linear(6, 5), nn.BatchNorm1d(5)], (6,)),
    "transposed": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), nn.BatchNorm2d(6)],
        (4, 4, 4),
    ),
    "transposed, grouped": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)],
        (4, 4, 4),
    ),
}


def layer(name):
    make, shape = LAYERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(nn.Sequential(*make())), shape


def prepared(model, x, way, **settings):
    """Calibrated with weights in integers; everything else exact, unless told."""
    settings = dict(weights=4, activations=None, per_channel=True, equalize=False) | settings
    gm = ptq(model, x, rounding=Nearest(correct_bias=False), **settings)
    return as_batch_norm(way).restore(gm)


def grouped_transposed(name):
    return name in ("transposed", "transposed, grouped")


def without_quantizers(gm):
    for q in qat.pipeline.all_quantizers(gm):
        q.off()
    return gm


def norms(gm):
    return list(batchnorm.batch_norms(gm).values())


# --- Nothing changes in eval mode -----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NORMED)
def test_restoring_changes_no_output(name, way):
    model, shape = network(name)
    x = noise(16, *shape)
    if name == "transposed" and way == "keep":  # one scale for all channels of all groups
        pytest.skip("refused, see below")
    gm = prepared(model, x, "fold")
    before = {k: q.quantize(_weight(gm, k)) for k, q in weight_quantizers(gm).items()}
    expected = flatten_outputs(gm(x))
    as_batch_norm(way).restore(gm)
    kinds = {"dynamic": DynamicallyFoldedLayer, "keep": KeptBatchNorm}
    assert [type(m) for m in norms(gm)] == [kinds[way]] * COUNTS.get(name, 1)
    torch.testing.assert_close(flatten_outputs(gm.eval()(x)), expected, rtol=1e-5, atol=1e-5)
    remove(gm)
    assert not norms(gm)
    torch.testing.assert_close(flatten_outputs(gm(x)), expected, rtol=1e-5, atol=1e-5)
    after = {k: q.quantize(_weight(gm, k)) for k, q in weight_quantizers(gm).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def _weight(gm, quantizer):
    """The parameter that a quantizer reads."""
    (node,) = (n for n in gm.graph.nodes if n.op == "call_module" and n.target == quantizer)
    return graph.get(gm, node.args[0].target).detach()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet_basic"])
def test_restoring_changes_no_output_of_trained_networks(name, way):
    model, x = zoo.load(name), zoo.calibration_set(name, 32)
    # Per-channel ReLU6 and moved moments. Grids of min-max are the same on all machines, those of
    # least squares are not, and one weight in 10^5 may lie at a tie.
    settings = dict(activations=None, equalize=True, weight_range="min_max")
    expected = prepared(zoo_graph(name), x, "fold", **settings)(x)
    gm = prepared(zoo_graph(name), x, way, **settings)
    torch.testing.assert_close(gm.eval()(x), expected, rtol=1e-4, atol=1e-4)
    # Training starts near it: the batch's statistics are near the running ones.
    y = gm.train()(x)
    error = (y - expected).square().mean() / expected.square().mean()
    assert 0 < error < 0.5
    assert len(norms(gm)) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


# --- Training mode is torch's ---------------------------------------------------------------------


class Twin(nn.Module):
    """The layer of a restored network with a batch norm of torch, from the same numbers."""

    def __init__(self, gm, kind):
        super().__init__()
        (module,) = norms(gm)
        self.weight = nn.Parameter(gm.get_parameter("0.weight").detach().clone())
        if isinstance(module, DynamicallyFoldedLayer):
            self.operator = module.layer
        else:
            (node,) = graph.layers(gm).values()
            self.operator = batchnorm.LayerOperator(node, "")
        self.norm = kind(len(module.weight), eps=module.eps, momentum=module.momentum)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(self.norm, name).copy_(getattr(module, name))

    def forward(self, x):
        return self.norm(self.operator(x, self.weight))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name, momentum", [*((k, 0.1) for k in LAYERS), ("conv2d", None)])
def test_training_is_that_of_torch_batch_norm(name, way, momentum):
    """Without rounding: outputs, gradients, running statistics over several steps."""
    if way == "keep" and grouped_transposed(name) and "grouped" in name:
        pytest.skip("refused, see below")
    model, shape = layer(name)
    gm = without_quantizers(prepared(model, noise(8, *shape), way)).train()
    (module,) = norms(gm)
    module.momentum = momentum
    twin = Twin(gm, type(model[1])).train()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (gm, twin)]
    for seed in range(4):
        x = noise(8, *shape, seed=seed) * 2 + 1
        results = [m(x) for m in (gm, twin)]
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        target = noise(*results[0].shape, seed=seed + 9)
        for y, optimizer in zip(results, optimizers, strict=True):
            optimizer.zero_grad()
            (y * target).mean().backward()
            optimizer.step()
    pairs = [(gm.get_parameter("0.weight"), twin.weight)]
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        pairs.append((getattr(module, key), getattr(twin.norm, key)))
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    x = noise(8, *shape, seed=7)
    torch.testing.assert_close(gm.eval()(x), twin.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["residual", "mobile", "shared convolution", "linear2d"])
def test_training_mode_is_that_of_the_model(name, way):
    """Folded and restored, and the sign of gamma in the weights: still the model in training mode.

    The share of epsilon in a channel's variance, 1e-5 of 0.5, makes the difference.
    """
    model, shape = network(name)
    x = noise(32, *shape)
    gm = without_quantizers(prepared(model, x, way)).train()
    expected = flatten_outputs(copy.deepcopy(model).train()(x))
    torch.testing.assert_close(flatten_outputs(gm(x)), expected, rtol=1e-2, atol=2e-3)


def test_dynamic_folding_quantizes_the_folded_weight():
    """Eq. (11) with running statistics, then the correction to those of the batch."""
    model, shape = layer("conv2d")
    gm = prepared(model, noise(8, *shape), "dynamic").train()
    (module,) = norms(gm)
    with torch.no_grad():
        module.running_var.mul_(2), module.running_mean.add_(0.3), module.weight.mul_(-1.5)
    x, w = noise(8, *shape, seed=4), gm.get_parameter("0.weight").detach()
    sigma = (module.running_var + module.eps).sqrt()
    folded = w * (module.weight / sigma).reshape(-1, 1, 1, 1)
    y = F.conv2d(x, w)
    sigma_b = (y.var((0, 2, 3), correction=0) + module.eps).sqrt()
    rounded = F.conv2d(x, module.quantizer(folded)) * (sigma / sigma_b).reshape(-1, 1, 1)
    shift = module.bias - module.weight / sigma_b * y.mean((0, 2, 3))
    expected = (rounded + shift.reshape(-1, 1, 1)).detach()
    torch.testing.assert_close(gm(x).detach(), expected, rtol=1e-4, atol=1e-5)


# --- Folding for good -----------------------------------------------------------------------------


def trained(gm, x, steps=5):
    optimizer = torch.optim.SGD([p for p in gm.parameters() if p.requires_grad], lr=0.02)
    target = noise(*gm.train()(x).shape, seed=3)
    for _ in range(steps):
        optimizer.zero_grad()
        (gm(x) - target).square().mean().backward()
        optimizer.step()
    return gm


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("logarithmic", [True, False])
@pytest.mark.parametrize("name", [*LAYERS, "mobile"])
def test_finish_leaves_the_trained_outputs(name, way, logarithmic):
    if way == "keep" and "grouped" in name:
        pytest.skip("refused, see below")
    model, shape = network(name) if name == "mobile" else layer(name)
    x = noise(16, *shape)
    gm = qat.prepare(
        model, x, weights=4, activations=None, per_channel=True, batch_norm=way,
        logarithmic=logarithmic,
    )  # fmt: skip
    trained(gm, x)
    with torch.no_grad():
        for k, m in enumerate(norms(gm)):
            m.weight[0] = 0
            if way == "dynamic":
                m.weight[1] *= -1
            m.running_mean += 0.1 * k
    expected = gm.eval()(noise(8, *shape, seed=2)).detach()
    done = qat.finish(gm)
    assert done is gm and not norms(gm) and not gm.training
    assert {q.stage for q in weight_quantizers(gm).values()} == {"frozen"}
    y = gm(noise(8, *shape, seed=2)).detach()
    scale = float(expected.abs().max())
    torch.testing.assert_close(y / scale, expected / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("when", ["finished", "while it still learns"])
@pytest.mark.parametrize("name", [k for k in LAYERS if "grouped" not in k])
def test_a_kept_batch_norm_moves_into_the_scale(name, when):
    """f W_hat = (f s) W_int, eq. (41) to (43): the integers stay, up to their sign."""
    model, shape = layer(name)
    x = noise(16, *shape)
    settings = dict(weights=4, activations=None, per_channel=True, batch_norm="keep")
    gm = trained(qat.prepare(model, x, **settings), x).eval()
    (module,), ((key, q),) = norms(gm), weight_quantizers(gm).items()
    (node,) = graph.layers(gm).values()
    with torch.no_grad():
        module.weight[:3] = torch.tensor([0.0, -0.7, 1e-3])
    grid = q.grid
    rows = graph.outputs_first(node, q.quantize(_weight(gm, key))).clone()
    scale = q.scale_zero_point()[0].detach().clone()
    expected = gm(noise(8, *shape, seed=2)).detach()
    factor = (module.weight / (module.running_var + module.eps).sqrt()).detach()
    (qat.finish if when == "finished" else remove)(gm)
    (node,) = graph.layers(gm).values()
    after = graph.outputs_first(node, q.quantize(_weight(gm, key)))
    signs = factor.sign().int().reshape(-1, *[1] * (rows.ndim - 1))
    assert torch.equal(after, (rows * signs).clamp(*grid))
    size = torch.where(factor == 0, 1, factor.abs())
    torch.testing.assert_close(q.scale_zero_point()[0].detach(), scale * size, rtol=1e-5, atol=0)
    clipped = ((rows * signs).clamp(*grid) != rows * signs).flatten(1).any(1)
    assert not clipped[2:].any()  # only n, where the sign turns, has no counterpart
    keep = ~clipped
    y = gm(noise(8, *shape, seed=2)).detach()
    torch.testing.assert_close(y[:, keep], expected[:, keep], rtol=1e-4, atol=1e-5)


# --- Statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["conv2d", "linear", "depthwise", "transposed"])
def test_reestimated_statistics_are_those_of_update_bn(name, way):
    model, shape = layer(name)
    batches = [noise(6, *shape, seed=s) + s for s in range(5)]
    gm = without_quantizers(prepared(model, batches[0], way))
    twin = Twin(gm, type(model[1]))
    update_bn(batches, twin)
    (module,) = norms(gm)
    parameters = {k: v.clone() for k, v in gm.named_parameters()}
    assert reestimate(gm, batches) is gm
    torch.testing.assert_close(module.running_mean, twin.norm.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.running_var, twin.norm.running_var, rtol=1e-5, atol=1e-5)
    assert module.momentum == 0.1
    assert all(torch.equal(v, parameters[k]) for k, v in gm.named_parameters())


@pytest.mark.parametrize("way", WAYS)
def test_reestimating_a_whole_network(way):
    """Every batch norm sees what those before it normalize, as in update_bn."""
    model, shape = network("mobile")
    batches = [noise(32, *shape, seed=s) * 2 for s in range(3)]
    gm = without_quantizers(prepared(model, batches[0], way)).train()
    reestimate(gm, [(x, torch.zeros(32)) for x in batches])  # labels are left out
    assert gm.training and all(m.training for m in norms(gm))
    model = copy.deepcopy(model)
    update_bn(batches, model)
    x = noise(16, *shape, seed=9)
    torch.testing.assert_close(gm.eval()(x), model.eval()(x), rtol=1e-2, atol=2e-3)
    reestimate(gm, iter(batches))
    assert not gm.training


def test_frozen_statistics_stay():
    model, shape = network("mobile")
    gm = prepared(model, noise(8, *shape), "dynamic").train()
    state = [m.running_var.clone() for m in norms(gm)]
    expected = gm.eval()(noise(8, *shape, seed=5))
    batchnorm.freeze_statistics(gm.train())
    torch.testing.assert_close(gm(noise(8, *shape, seed=5)), expected)
    assert all(torch.equal(m.running_var, v) for m, v in zip(norms(gm), state, strict=True))
    gm.train()(noise(8, *shape))
    assert not any(torch.equal(m.running_var, v) for m, v in zip(norms(gm), state, strict=True))


# --- What is refused, and what is left alone ------------------------------------------------------


def test_refused():
    model, shape = network("mobile")
    x = noise(8, *shape)
    with pytest.raises(ValueError, match="0 has one scale for all channels.*per_channel=True"):
        prepared(model, x, "keep", per_channel=False)
    other, shape = layer("transposed, grouped")
    with pytest.raises(ValueError, match="one scale for all channels"):
        prepared(other, noise(8, *shape), "keep")
    words = "batch_norm must be one of fold, dynamic, keep, not 'drop'"
    with pytest.raises(ValueError, match=words):
        qat.prepare(model, x, batch_norm="drop")
    with pytest.raises(TypeError, match=r"batch_norm must be an object such as Keep\(\)"):
        qat.prepare(model, x, batch_norm=qat.Keep)
    gm = prepared(model, x, "dynamic")
    state = [m.running_var.clone() for m in norms(gm)]
    with pytest.raises(ValueError, match="at least one is needed"):
        reestimate(gm, [])
    assert all(torch.equal(m.running_var, v) for m, v in zip(norms(gm), state, strict=True))


def test_networks_without_batch_norm_are_left_alone():
    model, shape = network("linear3d")
    gm = prepared(model, noise(8, *shape), "fold")
    expected = gm(noise(8, *shape))
    for way in WAYS:
        as_batch_norm(way).restore(gm)
    remove(reestimate(gm, [noise(8, *shape)]))
    torch.testing.assert_close(gm(noise(8, *shape)), expected, rtol=0, atol=0)


def test_layers_that_stay_in_float_stay_folded():
    model, shape = network("mobile")
    gm = prepared(model, noise(8, *shape), "keep", skip=["0"])
    assert len(norms(gm)) == 2
