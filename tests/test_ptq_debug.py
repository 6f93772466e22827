"""The flow chart: every number against the network run by hand, every end of it reached."""

import copy
import math

import matplotlib
import pytest
import torch
from networks import Keywords, captured, noise
from torch import nn

import minq
from minq import graph
from minq.deploy.cost import layer_costs
from minq.ptq import AdaRound, Equalize, Nearest
from minq.ptq.debug import EXACT, GOOD, Report, debug, only
from minq.simulate import activation_quantizers, quantizers, weight_quantizers

matplotlib.use("Agg")


def quantized(model, data, **settings):
    """Folded, with all quantizers frozen on min-max grids of the data."""
    mobile = getattr(model, "name", "") == "mobile"  # captured once for all tests
    gm = captured("mobile")[1] if mobile else minq.capture(model, data)
    gm = minq.fold_batch_norms(gm.to(next(model.parameters()).dtype))
    kind = {"weight_range": "min_max", "activation_range": "min_max", **settings}
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
    """In double precision: batches of other sizes add up in another order, and ties would tell."""
    net, images = net.double(), images.double()
    q = quantized(net, images, weights=4)
    whole, parts = (debug(q, net, d, each=False) for d in (images, [images[:1], images[1:]]))
    for part in ("quantized", "weights", "activations"):
        assert getattr(parts, part) == pytest.approx(getattr(whole, part), abs=1e-6)
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


def trainable(**settings):
    """A network in training as ``qat`` holds it, after two steps."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x = noise(6, 3, 8, 8)
    q = minq.qat.prepare(net.eval(), [x], weights=4, activations=4, **settings)
    optimizer = torch.optim.SGD(minq.qat.parameter_groups(q, lr=1e-2), momentum=0.9)
    for _ in range(2):
        step(q, optimizer, x)
    return net, q, optimizer, x


def step(q, optimizer, x):
    optimizer.zero_grad()
    (q(x) - 1).square().sum().backward()
    optimizer.step()


def everything(q):
    """All that looking must not change: identities, flags, stages and hooks; values."""
    tensors = [*q.named_parameters(), *q.named_buffers()]
    objects = [(name, id(t), t.data_ptr(), t.requires_grad, id(t.grad)) for name, t in tensors]
    modules = [(name, id(m), m.training, len(m._forward_hooks)) for name, m in q.named_modules()]
    stages = [m.stage for m in q.modules() if isinstance(m, minq.Quantizer)]
    values = [v.clone() for _, t in tensors for v in (t.detach(), t.grad) if v is not None]
    return (objects, modules, stages, list(q.meta)), [*values, torch.get_rng_state()]


@pytest.mark.parametrize("way", ["fold", "keep", "dynamic"])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_looking_changes_nothing_in_a_network_that_trains(way, logarithmic):
    settings = {"batch_norm": way, "logarithmic": logarithmic, "per_channel": True}
    net, q, optimizer, x = trainable(**settings)
    _, twin, others, _ = trainable(**settings)
    q.register_forward_hook(lambda *_: None)
    objects, values = everything(q)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    minq.debug(q, net, [x], most=2)
    with torch.no_grad(), only(q, ["0.weight_quantizer"] if way != "dynamic" else []):
        pass
    layer_costs(q, x) if way == "fold" else None
    copy.deepcopy(q)
    after, now = everything(q)
    assert after == objects
    for a, b in zip(values, now, strict=True):
        assert torch.equal(a, b)
    assert held <= {id(p) for p in q.parameters()}
    q.state_dict()  # writes scales that have a logarithm, and nothing else
    assert everything(q)[0] == objects or logarithmic
    for _ in range(3):
        step(q, optimizer, x), step(twin, others, x)
    for (name, a), b in zip(q.named_parameters(), twin.parameters(), strict=True):
        if not name.endswith(".scale"):
            assert torch.equal(a, b), name
    assert torch.equal(minq.qat.finish(q)(x), minq.qat.finish(twin)(x))


def test_a_watched_training_ends_as_one_without():
    net, _, _, x = trainable()
    batches = [(x[k : k + 3], torch.tensor([0, 1, 2])) for k in (0, 3)]
    verdicts = []

    def callback(number, loss, gm):
        verdicts.append(minq.debug(gm, net, [x], most=1).verdict)
        gm.eval()(x)
        minq.to_integer(gm)

    ends = [
        minq.qat(net, batches, nn.functional.cross_entropy, epochs=2, weights=4, activations=4,
                 callback=w, progress=False)
        for w in (None, callback)
    ]  # fmt: skip
    for a, b in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(verdicts) == 4 and not any("simulation itself" in v for v in verdicts)


@pytest.mark.parametrize("way", ["fold", "keep", "dynamic"])
def test_all_off_is_all_off_also_where_a_batch_norm_is_folded_in_every_step(way):
    """Before training nothing has moved: the exact network is the model."""
    net, _, _, x = trainable()
    q = minq.qat.prepare(net, [x], weights=2, activations=2, per_channel=True, batch_norm=way)
    report = minq.debug(q, net, [x], each=False)
    assert report.exact > 100 > GOOD > report.quantized and not report.trained


# --- Before rounding ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {}, {"rounding": "gptq"}, {"rounding": "nearest"}, {"equalize": False, "weights": 2},
    {"per_channel": True, "weights": 3}, {"equalize": Equalize(relu6="per_channel", absorb=False)},
], ids=str)  # fmt: skip
def test_all_off_is_the_model_however_weights_were_rounded(net, images, settings):
    settings = {"rounding": AdaRound(sweeps=2)} | settings
    q = minq.ptq(captured("mobile")[1], images, progress=False, **settings)
    report = debug(q, net, images, each=False)
    assert report.exact > 90 and "simulation" not in report.verdict
    restored = copy.deepcopy(q)
    for name, quantizer in quantizers(restored).items():
        quantizer.freeze() if name in weight_quantizers(q) else quantizer.off()
    # A weight's quantizer brings its rounding: here all rounded weights and corrected biases act.
    assert report.weights == pytest.approx(decibel(net(images), restored(images)), abs=1e-3)


def test_a_weight_alone_brings_its_own_rounding_and_no_other(net, images):
    rounding = AdaRound(sweeps=2)
    q = minq.ptq(captured("mobile")[1], images, weights=3, rounding=rounding, progress=False)
    name = "11.weight_quantizer"
    exact = minq.fold_batch_norms(copy.deepcopy(captured("mobile")[1]))
    minq.ptq.channels.equalize_graph(exact, relu6="per_channel", max_scale=2.0)
    for leaf in ("11.weight", "11.bias"):
        exact.get_parameter(leaf).data = q.get_parameter(leaf).data
    report = debug(q, net, images)
    assert report.alone[name] == pytest.approx(decibel(net(images), exact(images)), abs=0.02)
    with only(q, ()), torch.no_grad():
        assert decibel(net(images), q(images)) > 90
    assert decibel(net(images), q(images)) == pytest.approx(report.quantized, abs=1e-3)


def test_what_is_kept_for_it_is_half_of_the_weights_and_travels(net, images):
    q = minq.ptq(captured("mobile")[1], images, rounding=AdaRound(sweeps=1), progress=False)
    kept = sum(s.values.nbytes for s in graph.network_notes(q).added.values())
    weights = sum(q.get_parameter(n.args[0].target).nbytes for n in q.graph.nodes
                  if n.target in weight_quantizers(q))  # fmt: skip
    assert kept <= 0.5 * weights
    for other in (copy.deepcopy(q), copy.deepcopy(q).double(), minq.capture(q, images)):
        report = debug(other, copy.deepcopy(net).to(next(other.parameters()).dtype),
                       images.to(next(other.parameters()).dtype), each=False)  # fmt: skip
        assert report.exact > 90
    plain = minq.ptq(captured("mobile")[1], images, rounding=Nearest(correct_bias=False))
    assert not graph.network_notes(plain).added


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


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 2)

    def forward(self, x):
        return self.b(nn.functional.dropout(torch.relu(self.a(x)), 0.5))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_draws_random_numbers():
    net, x = Dropping().eval(), noise(64, 8)
    q = minq.ptq(net, x, rounding="nearest")
    before = torch.get_rng_state()
    report = debug(q, net, x, each=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert "answers differently every time" in report.verdict and "F.dropout" in report.verdict
    assert "simulation" not in report.verdict


def test_a_fold_that_is_broken(net, images, monkeypatch):
    from minq import fold

    right = fold.fold_batch_norm
    broken = lambda w, b, *rest: (lambda w, b: (w, 0.9 * b))(*right(w, b, *rest))  # noqa: E731
    monkeypatch.setattr(fold, "fold_batch_norm", broken)
    for settings in ({"rounding": "nearest"}, {"rounding": AdaRound(sweeps=1)}):
        q = minq.ptq(captured("mobile")[1], images, progress=False, **settings)
        assert "simulation itself is wrong" in debug(q, net, images, each=False).verdict


@pytest.mark.parametrize("settings", [{"rounding": "nearest"}, {"rounding": AdaRound(sweeps=1)}])
def test_a_weight_that_was_changed_afterwards(net, images, settings):
    q = minq.ptq(captured("mobile")[1], images, progress=False, **settings)
    with torch.no_grad():
        q.get_parameter("11.weight")[0] *= 1.1
    text = debug(q, net, images, each=False).verdict
    assert "simulation itself is wrong" in text and "changed afterwards" in text


def test_a_network_that_was_trained():
    net, q, optimizer, x = trainable()
    for _ in range(60):
        step(q, optimizer, x)
    q = minq.qat.finish(q)
    report = debug(q, net, [x])
    assert report.trained and report.exact < GOOD
    assert report.verdict.startswith("Training has moved the network")
    assert "no fault" in report.verdict
    with only(q, ()), torch.no_grad():
        off = q(x)
    assert report.quantized == pytest.approx(decibel(off, q(x)), abs=1e-3)
    for name, d in report.alone.items():
        with only(q, [name]), torch.no_grad():
            assert d == pytest.approx(decibel(off, q(x)), abs=1e-3)


def test_a_collapse_per_tensor():
    """Channels of very different size under one scale: the weights are to blame."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        net[2].weight[:, 0] *= 300
        net[0].weight[0] /= 300
        net[0].bias[0] /= 300
    x = noise(64, 8)
    settings = {"weights": 4, "equalize": False, "rounding": "nearest", "weight_range": "min_max"}
    report = debug(minq.ptq(net, x, **settings), net, x)
    assert report.exact > 70 and report.quantized < 10
    assert "The weights cost most" in report.verdict and "one scale per channel" in report.verdict


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_floats_differ_by_their_own_error_without_a_fault(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype).eval()
    x = noise(64, 12).to(dtype)
    q = minq.ptq(net, x, rounding="nearest")
    report = debug(q, net, x, each=False)
    assert report.needed < EXACT and report.verdict.startswith("Good")


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
    model = Keywords().double().eval()
    data = {"u": noise(7, 4).double(), "v": noise(7, 3, seed=2).double()}
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
