"""The flow chart: every number against the network run by hand, every end of it reached."""

import copy
import math

import matplotlib
import pytest
import torch
from networks import Keywords, captured, noise

import minq
from minq.ptq.debug import EXACT, GOOD, Report, debug, only
from minq.simulate import activation_quantizers, quantizers, weight_quantizers

matplotlib.use("Agg")


def quantized(model, data, **settings):
    """Folded, with all quantizers frozen on min-max grids of the data."""
    mobile = getattr(model, "name", "") == "mobile"  # captured once for all tests
    gm = minq.fold_batch_norms(captured("mobile")[1] if mobile else minq.capture(model, data))
    kind = {"weight_estimator": "min_max", "activation_estimator": "min_max", **settings}
    minq.insert_quantizers(gm, **kind)
    for x in quantizers(gm).values():
        x.observe()
    gm(**data) if isinstance(data, dict) else gm(data)
    for x in quantizers(gm).values():
        x.freeze()
    return gm


def decibel(y, y_hat):
    y, y_hat = y.detach().double(), y_hat.detach().double()
    return float(10 * torch.log10((y**2).sum() / ((y - y_hat) ** 2).sum()))


def by_hand(q, model, x, on):
    """A copy in which only the quantizers in ``on`` were ever switched on."""
    q = copy.deepcopy(q)
    for name, quantizer in quantizers(q).items():
        quantizer.freeze() if name in on else quantizer.off()
    return decibel(copy.deepcopy(model).eval()(x), q(x))


@pytest.fixture
def net():
    model = copy.deepcopy(captured("mobile")[0])
    model.name = "mobile"
    return model


@pytest.fixture
def images():
    return noise(6, 3, 8, 8)


def test_every_number_is_that_of_the_network_run_by_hand(net, images):
    q = quantized(net, images, weights=4, activations=5)
    report = debug(q, net, images)
    every, weights = list(quantizers(q)), set(weight_quantizers(q))
    activations = set(activation_quantizers(q))
    for got, on in (
        (report.quantized, every),
        (report.weights, weights),
        (report.activations, activations),
    ):
        assert got == pytest.approx(by_hand(q, net, images, on), abs=1e-4)
    assert report.exact > 100 and by_hand(q, net, images, []) > 100
    assert list(report.alone) == list(report.without) == list(report.kinds) == every
    assert weights | activations == set(every) and weights and activations
    for name in every:
        others = set(every) - {name}
        assert report.alone[name] == pytest.approx(by_hand(q, net, images, [name]), abs=1e-4)
        assert report.without[name] == pytest.approx(by_hand(q, net, images, others), abs=1e-4)
        assert report.kinds[name] == ("weight" if name in weights else "activation")


def test_batches_count_as_one(net, images):
    q = quantized(net, images, weights=4)
    whole, parts = (debug(q, net, d, each=False) for d in (images, [images[:1], images[1:]]))
    for part in ("quantized", "weights", "activations"):
        assert getattr(parts, part) == pytest.approx(getattr(whole, part), abs=1e-3)
    labelled = debug(q, net, [(images, torch.arange(6))], each=False)
    assert labelled.quantized == pytest.approx(whole.quantized, abs=1e-6)
    assert whole.alone == whole.without == {}
    assert debug(q, net, images[:2], each=False).quantized != pytest.approx(whole.quantized, 1e-6)


def test_the_quantizers_with_the_largest_error_of_their_own_come_first(net, images):
    q = quantized(net, images, layers={"6": {"weights": 2}, "3": {"weights": 3}})
    assert set(debug(q, net, images, most=2).alone) == {"6.weight_quantizer", "3.weight_quantizer"}
    assert set(debug(q, net, images, most=1).alone) == {"6.weight_quantizer"}
    assert debug(q, net, images, most=0).alone == {}
    assert all(not x._forward_hooks for x in quantizers(q).values())


def test_worst_is_sorted(net, images):
    report = debug(quantized(net, images, layers={"6": {"weights": 2}}), net, images)
    assert report.worst(1) == ["6.weight_quantizer"]
    losses = [report.alone[name] for name in report.worst(100)]
    assert losses == sorted(report.alone.values())
    assert len(report.worst()) == 5


# --- Left as it was -------------------------------------------------------------------------------


def mixed(q):
    """One quantizer in each stage."""
    every = list(quantizers(q).values())
    every[0].off()
    every[1].learn()
    every[2]._enter("observe")
    return [(x.stage, x.scale.requires_grad, int(x.batches)) for x in every]


def state(q):
    every = quantizers(q).values()
    return [(x.stage, x.scale.requires_grad, int(x.batches)) for x in every]


def test_the_networks_are_left_as_they_were(net, images):
    q = quantized(net, images)
    net.train()
    net[1].eval()
    training = [m.training for m in net.modules()]
    before = mixed(q), {k: v.clone() for k, v in net.state_dict().items()}
    weights = {k: v.clone() for k, v in q.state_dict().items() if isinstance(v, torch.Tensor)}
    report = debug(q, net, images, most=2)
    assert report.exact > 100  # in eval mode, though the model trains
    assert state(q) == before[0]
    assert [m.training for m in net.modules()] == training
    for k, v in net.state_dict().items():
        assert torch.equal(v, before[1][k]), k
    for k, v in weights.items():
        assert torch.equal(v, q.state_dict()[k]), k


def test_stages_come_back_after_an_exception(net, images):
    q = quantized(net, images)
    before = mixed(q)
    with pytest.raises(ZeroDivisionError), only(q, {"6.weight_quantizer"}):
        assert state(q) != before
        raise ZeroDivisionError
    assert state(q) == before


def test_only_the_named_act(net, images):
    q = quantized(net, images)
    with only(q, ["6.weight_quantizer"]):
        on = [name for name, x in quantizers(q).items() if x.stage == "frozen"]
        assert on == ["6.weight_quantizer"]
        assert {x.stage for x in quantizers(q).values()} == {"frozen", "off"}
        with only(q, ()):
            assert {x.stage for x in quantizers(q).values()} == {"off"}
        assert quantizers(q)["6.weight_quantizer"].stage == "frozen"
    assert {x.stage for x in quantizers(q).values()} == {"frozen"}


def test_unknown_names(net, images):
    q = quantized(net, images)
    with pytest.raises(ValueError, match="no quantizer is called 7.quantizer, nobody"):
        with only(q, {"nobody", "7.quantizer", "6.weight_quantizer"}):
            pass
    assert {x.stage for x in quantizers(q).values()} == {"frozen"}


def test_a_quantizer_without_a_range(net, images):
    q = quantized(net, images)
    quantizers(q)["6.weight_quantizer"].observe()
    before = state(q)
    with pytest.raises(ValueError, match="6.weight_quantizer has no range; calibrate"):
        debug(q, net, images)
    with pytest.raises(RuntimeError, match="no range"), only(q, {"6.weight_quantizer"}):
        pass
    assert state(q) == before


# --- Verdicts -------------------------------------------------------------------------------------


def test_a_healthy_network(net, images):
    report = debug(quantized(net, images), net, images, each=False)
    assert report.quantized > GOOD and report.verdict.startswith(f"Good: {report.quantized:.1f} dB")


def test_another_network(net, images):
    q = quantized(net, images)
    with torch.no_grad():
        net[11].weight[0] *= 1.1
    report = debug(q, net, images, each=False)
    assert report.exact < EXACT and report.verdict.startswith("The simulation itself is wrong")
    assert f"{report.exact:.1f} dB" in report.verdict


@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_which_kind_costs_most(net, images, kind):
    q = quantized(net, images, **{kind: 2})
    text = debug(q, net, images, each=False).verdict
    assert f"The {kind} cost most" in text and "lossy" not in text
    assert ("AdaRound" in text) == (kind == "weights")


def test_one_that_stands_out(net, images):
    q = quantized(net, images, layers={"11": {"weights": 2}})
    text = debug(q, net, images).verdict
    assert "Most lossy alone: 11.weight_quantizer" in text and "Few stand out" in text


def test_none_that_stands_out():
    names = [f"{k}.quantizer" for k in range(10)]
    alone = dict.fromkeys(names, 20.0) | {"0.quantizer": math.inf}
    report = Report(100.0, 10.0, 15.0, 12.0, alone=alone)
    assert "(33% of all noise)" in report.verdict and "Few stand out" not in report.verdict
    report.alone = dict.fromkeys(names, math.inf)
    assert "(0% of all noise)" in report.verdict


# --- Pictures, and other kinds of models ----------------------------------------------------------


def test_plot(net, images):
    import matplotlib.pyplot as plt

    report = debug(quantized(net, images, weights=4), net, images)
    axes = report.plot(count=4)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[::-1] == report.worst(4)
    assert [bar.get_width() for bar in axes.patches] == [report.alone[n] for n in labels]
    colours = {bar.get_facecolor() for bar, n in zip(axes.patches, labels, strict=True)}
    assert len(colours) == len({report.kinds[n] for n in labels})
    mine = plt.subplots()[1]
    assert report.plot(mine) is mine
    plt.close("all")


def test_inputs_by_name_and_several_outputs():
    torch.manual_seed(0)
    model = Keywords().eval()
    data = {"u": noise(7, 4), "v": noise(7, 3, seed=2)}
    q = quantized(model, data, weights=4)
    report = debug(
        q, model, [{k: v[rows] for k, v in data.items()} for rows in (range(4), range(4, 7))]
    )
    y, y_hat = model(**data), q(**data)
    flat = [torch.cat([d[k].flatten() for k in ("sum", "first")]) for d in (y, y_hat)]
    assert report.exact > 100
    assert report.quantized == pytest.approx(decibel(*flat), abs=1e-4)
    turned = debug(q, model, {k: data[k] for k in ("v", "u")}, each=False)
    assert turned.quantized == pytest.approx(report.quantized, abs=1e-3)


def test_the_model_may_be_a_graph(net, images):
    q = quantized(net, images, weights=4)
    plain = minq.fold_batch_norms(captured("mobile")[1])
    a, b = debug(q, net, images, each=False), debug(q, plain, images, each=False)
    assert b.quantized == pytest.approx(a.quantized, abs=1e-3)
    assert b.exact == math.inf  # the very same operators
