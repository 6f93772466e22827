"""Which tensors get a quantizer, what errors say, and that the result is an ordinary module."""

import copy
import io
import warnings

import pytest
import torch
from networks import NETWORKS, Attention, Lambda, Residual, captured, mobile, noise, settle
from torch import nn

import minq
from minq import graph
from minq.simulate import activation_quantizers, is_quantizer, quantizers, weight_quantizers


def quantized(model, example, **settings):
    gm = minq.fold_batch_norms(minq.capture(settle(model), example))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return minq.insert_quantizers(gm, **settings)


def calibrated(model, x, **settings):
    gm = quantized(model, x, weight_range="min_max", activation_range="min_max", **settings)
    for q in quantizers(gm).values():
        q.observe()
    gm(x)
    for q in quantizers(gm).values():
        q.freeze()
    return gm


def rounded(gm):
    """The operators whose result is quantized, by name."""
    sources = [n.args[0] for n in gm.graph.nodes if is_quantizer(n)]
    return [graph.op(s) or s.op for s in sources if s.op != "get_attr"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_and_every_operand_is_on_a_grid(name):
    """Whoever computes reads only what was rounded, or what is still in the accumulator."""
    _, gm, _ = captured(name)
    minq.insert_quantizers(minq.fold_batch_norms(gm))
    assert {q.stage for q in quantizers(gm).values()} == {"off"}
    for node in gm.graph.nodes:
        if graph.traits(node).multiplies:
            for x in node.args[:2] if graph.op(node) != "embedding" else node.args[:1]:
                while graph.traits(x).passes:
                    x = x.all_input_nodes[0]
                assert is_quantizer(x), (node, x)


def test_quantizers_lie_where_the_network_does():
    gm = captured("mobile")[1].to("meta")
    for q in quantizers(minq.insert_quantizers(gm, per_channel=True)).values():
        assert {v.device.type for v in (*q.parameters(), *q.buffers())} == {"meta"}


def test_nothing_between_convolution_norm_and_activation():
    gm = quantized(mobile(), noise(2, 3, 8, 8))
    # Pooling and flattening: the pool computes a mean, flattening moves values.
    assert rounded(gm) == [
        "placeholder", "hardtanh", "hardtanh", "hardtanh", "adaptive_avg_pool2d", "linear",
    ]  # fmt: skip
    assert list(weight_quantizers(gm)) == [f"{k}.weight_quantizer" for k in (0, 3, 6, 11)]
    assert list(activation_quantizers(gm))[1] == "2.quantizer"


def test_addition_and_its_activation_are_one():
    gm = quantized(nn.Sequential(Residual(), Residual()), noise(2, 4, 6, 6))
    # conv1 + relu, conv2 (its sum is a computation of its own), add + relu; twice
    assert rounded(gm) == ["placeholder"] + ["relu", "conv2d", "relu"] * 2


def test_an_activation_that_is_not_fused_has_both_sides_rounded():
    gm = quantized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU()), noise(2, 3, 4, 4))
    assert rounded(gm) == ["placeholder", "conv2d", "silu"]


def test_branches_that_are_concatenated_share_a_grid():
    _, gm, _ = captured("concatenation")
    minq.insert_quantizers(gm)
    assert rounded(gm) == ["placeholder", "cat"]


def test_moving_values_needs_no_new_grid():
    layers = nn.MaxPool2d(2), nn.Flatten(), nn.Unflatten(1, (3, 16)), nn.Flatten(), nn.Linear(48, 2)
    assert rounded(quantized(nn.Sequential(*layers), noise(2, 3, 8, 8))) == [
        "placeholder",
        "linear",
    ]
    _, gm, _ = captured("split")
    minq.insert_quantizers(gm)
    assert rounded(gm) == ["placeholder", "linear", "cat", "linear"]


def test_words_positions_and_scores():
    gm = quantized(Attention(), torch.ones(2, 6, dtype=torch.int64))
    names = rounded(gm)
    assert "placeholder" not in names and "embedding" not in names  # whole numbers; on a grid
    assert names[:2] == ["add", "linear"] and names.count("matmul") == 2 and "softmax" in names
    assert "words.weight_quantizer" in weight_quantizers(gm)
    assert "positions_quantizer" in activation_quantizers(gm)  # a constant that is added


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("source", ["input", "buffer"])
def test_masks_are_left_alone(turned, twice, source):
    """-infinity is on no grid; a mask may stand on either side, and come after another one."""

    def attend(m, x, mask=None):
        scores = m.q(x) @ x.transpose(1, 2) * 0.5
        mask = m.mask if mask is None else mask.unsqueeze(0)
        scores = mask + scores if turned else scores + mask
        return ((scores + m.bias if twice else scores).softmax(-1) @ x)[:, 0]

    mask = torch.zeros(5, 5).masked_fill(~torch.ones(5, 5).tril().bool(), float("-inf"))
    layers = dict(q=nn.Linear(4, 4), mask=mask, bias=noise(5, 5))
    args = (noise(3, 5, 4),) if source == "buffer" else (noise(3, 5, 4), mask)
    model = Lambda(attend, **layers)
    gm = quantized(model, args)
    expected = ["placeholder", "linear", "matmul", "softmax", "matmul"]
    assert rounded(gm) == expected
    assert len(weight_quantizers(gm)) == 1 and len(quantizers(gm)) == 6 + twice
    assert ("bias_quantizer" in quantizers(gm)) == twice  # small numbers are data
    for q in quantizers(gm).values():
        q.set_range(-4, 4).freeze()
    out = gm(*args)
    assert out.isfinite().all() and minq.sqnr(model(*args).detach(), out.detach()) > 20


def test_an_unsupported_operator_is_named_and_stays_in_float():
    model = Lambda(
        lambda m, x: m.b(torch.cumprod(m.a(x), 1).relu()), a=nn.Linear(6, 4), b=nn.Linear(4, 2)
    )
    gm = minq.capture(model.eval(), noise(2, 6))
    with pytest.warns(UserWarning, match="cumprod is not among"):
        minq.insert_quantizers(gm)
    # Its operand stays on a grid, and what it gives is rounded behind the next one.
    assert rounded(gm) == ["placeholder", "linear", "relu", "linear"]
    with torch.no_grad():
        torch.testing.assert_close(gm(noise(2, 6)), model(noise(2, 6)))
    gm = minq.capture(
        Lambda(lambda m, x: m.g(x)[0], g=nn.GRU(6, 4, batch_first=True)), noise(2, 200, 6)
    )
    with pytest.warns(UserWarning, match="gru .* in g; its sequences must have a fixed length"):
        minq.insert_quantizers(gm)


@pytest.mark.parametrize("settings, error, words", [
    (dict(skip=["classifier"]), ValueError, "no layer is called classifier; there are 0, 3"),
    (dict(skip="heads.*"), ValueError, r"heads\.\*"),
    (dict(layers={"nothing": {"weights": 4}}), ValueError, "nothing"),
    (dict(layers={"0": {"bits": 4}}), ValueError, r"layers\['0'\] has bits; it may have weights"),
    (dict(weights=0), ValueError, "bits"),
    (dict(weights=17), ValueError, "1 to 16"),
    (dict(activations="8"), TypeError, "whole number"),
    (dict(weight_range="best"), ValueError, "estimator must be one of min_max"),
])  # fmt: skip
def test_wrong_settings_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        quantized(mobile(), noise(2, 3, 8, 8), **settings)


def test_a_second_set_of_quantizers_is_refused():
    gm = quantized(mobile(), noise(2, 3, 8, 8))
    with pytest.raises(ValueError, match="quantizers already"):
        minq.insert_quantizers(gm)


def test_bits_for_each_layer():
    gm = quantized(
        mobile(), noise(2, 3, 8, 8), weights=4, activations=None, per_channel=True, skip="11",
        layers={
            "0": {"weights": 8, "activations": 6, "symmetric": True}, "[36]": {"weights": None},
        },
    )  # fmt: skip
    assert {k: (q.bits, q.granularity.axis, q.grid.signed) for k, q in quantizers(gm).items()} == {
        "0.weight_quantizer": (8, 0, True),
        "0.input.quantizer": (6, None, True),
        "2.quantizer": (6, None, True),  # the layer's own ReLU6
    }  # fmt: skip
    gm = quantized(
        mobile(), noise(2, 3, 8, 8), layers={"11": {"activations": 16, "symmetric": True}}
    )
    q = quantizers(gm)["11.quantizer"]
    assert (q.bits, q.grid.signed, q.symmetric) == (16, True, True)


@pytest.mark.parametrize("name", ["conv2d", "transposed", "linear3d", "matmul", "transposed1d"])
def test_a_scale_for_each_output_channel(name):
    """Per channel is never worse than per tensor, and exact for channels on a grid each."""
    model, gm, shape = captured(name)
    minq.insert_quantizers(gm, per_channel=True, activations=None, weights=3)
    for q in weight_quantizers(gm).values():
        q.observe()
    gm(noise(2, *shape))
    for n in gm.graph.nodes:
        if not is_quantizer(n):
            continue
        q, w = gm.get_submodule(n.target), graph.get(gm, n.args[0].target)
        (layer,) = n.users
        if graph.traits(layer).role == "transposed" and graph.groups_of(layer) > 1:
            assert q.granularity.axis is None
            continue
        by_output = w if graph.traits(layer).role == "product" else graph.weight_of(gm, layer)
        outputs = w.shape[-1] if graph.traits(layer).role == "product" else len(by_output)
        assert q.scale.shape == (outputs,)


def toy():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(mobile())


def test_simulated_quantization_is_close_and_on_the_grid():
    x = noise(16, 3, 8, 8)
    model = toy()
    gm = calibrated(model, x)
    with torch.no_grad():
        assert 20 < minq.sqnr(model(x), gm(x)) < 60
        out = gm(x)
    scale = quantizers(gm)["11.quantizer"].scale
    steps = out / scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert len(out.unique()) <= 256
    for q in quantizers(gm).values():
        q.off()
    with torch.no_grad():
        torch.testing.assert_close(gm(x), model(x))


def test_it_is_an_ordinary_module():
    x = noise(4, 3, 8, 8)
    gm = calibrated(toy(), x, per_channel=True)
    expected = gm(x).detach()

    fresh = quantized(toy(), x, per_channel=True)
    fresh.load_state_dict(gm.state_dict())
    assert torch.equal(fresh(x), expected)

    twin = copy.deepcopy(gm)
    assert torch.equal(twin(x), expected) and list(quantizers(twin)) == list(quantizers(gm))
    quantizers(twin)["2.quantizer"].off()
    assert quantizers(gm)["2.quantizer"].stage == "frozen"

    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), expected)
    assert list(weight_quantizers(loaded)) == list(weight_quantizers(gm))
    assert list(activation_quantizers(loaded)) == list(activation_quantizers(gm))

    exported = torch.export.export(gm, (x,)).module()
    assert torch.equal(exported(x), expected)

    assert torch.equal(gm.train()(x), expected) and torch.equal(gm.eval()(x), expected)
    double = gm.to(torch.float64)(x.double())
    assert double.dtype == torch.float64
    assert minq.sqnr(expected.double(), double.detach()) > 30


def test_grids_can_be_learned_through_the_network():
    x = noise(4, 3, 8, 8)
    gm = calibrated(toy(), x, weights=4)
    for q in quantizers(gm).values():
        q.learn()
    gm(x).square().sum().backward()
    for name, q in quantizers(gm).items():
        assert q.scale.grad is not None and q.scale.grad.isfinite().all(), name
    missing = [k for k, p in gm.named_parameters() if p.grad is None and p.requires_grad]
    assert not missing
