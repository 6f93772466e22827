"""The whole pipeline: all ranges set, errors small, resumable, repeatable; foreign networks too."""

import copy
import dataclasses
import warnings

import pytest
import torch
from networks import Attention, Keywords, Lambda, captured, made_once, mobile, noise, settle
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minq
from minq import graph
from minq.graph.batches import batches_of
from minq.ptq import GPTQ, AdaRound, Equalize, Nearest, pipeline
from minq.ptq import adaround as adaround_module
from minq.ptq import rounding as rounding_module
from minq.ptq.pipeline import ptq
from minq.ptq.walk import Walk
from minq.simulate import activation_quantizers, quantizers, weight_quantizers


def toy(activation=nn.ReLU6, width=12):
    """A small network that behaves like a trained one: its batch norms know their inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settle(mobile(activation, width)).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            for seed in range(3):
                model(noise(64, 3, 16, 16, seed=seed))
    return model.eval()


@made_once
def graph_of_toy():
    return minq.capture(toy(), data(2))


def data(count=32, seed=7):
    return noise(count, 3, 16, 16, seed=seed)


@torch.no_grad()
def quality(model, gm, x):
    return minq.sqnr(model(x), gm(x))


def same(a, b):
    """Equal networks, bit for bit."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(v, b[k]) for k, v in a.items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("rounding", [AdaRound(sweeps=3, rows=256), Nearest()])
@pytest.mark.parametrize("per_channel", [True, False])
def test_eight_bits_are_close_and_the_model_is_left_alone(rounding, per_channel):
    model, x = toy(), data()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model[0].train()
    random = torch.get_rng_state()
    gm = ptq(model, x, per_channel=per_channel, rounding=rounding)
    assert torch.equal(torch.get_rng_state(), random)
    assert model[0].training and not model[3].training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {q.stage for q in quantizers(gm).values()} == {"frozen"}
    assert quality(model.eval(), gm, data(64, 8)) > 30


def test_every_quantizer_has_a_range_of_its_own():
    model = Attention().eval()
    tokens = torch.randint(1, 11, (40, 6), generator=torch.Generator().manual_seed(0))
    gm = ptq(model, tokens, rounding=AdaRound(sweeps=2, rows=128))
    names = quantizers(gm)
    assert {q.stage for q in names.values()} == {"frozen"} and all(
        int(q.batches) == 1 and (q.high > q.low).all() for q in names.values()
    )
    assert "positions_quantizer" in names
    assert quality(model, gm, tokens) > 20
    for name, (_, captured_gm, shape) in {
        k: captured(k) for k in ("matmul", "split", "buffer")
    }.items():
        gm = ptq(captured_gm, noise(64, *shape), rounding=AdaRound(sweeps=2, rows=64))
        assert {q.stage for q in quantizers(gm).values()} == {"frozen"}, name
        assert quality(captured(name)[0], gm, noise(64, *shape)) > 20, name


def test_ranges_cover_what_the_quantized_network_computes():
    """With min-max, each activation range is that of the values the quantizer really meets.

    In double precision: in single, a batch of another size may bring a value over a tie.
    """
    model, x = toy().double(), data().double()
    gm = ptq(model, [x[:20], x[20:]], weights=4, activation_range="min_max", rounding="nearest")
    seen = {}
    hooks = [
        q.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name, q in activation_quantizers(gm).items()
    ]
    with torch.no_grad():
        gm(x)
    for hook in hooks:
        hook.remove()
    for name, q in activation_quantizers(gm).items():
        torch.testing.assert_close(q.low, seen[name].min(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(q.high, seen[name].max(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_adaround_is_never_worse_than_nearest_in_any_layer(per_channel):
    model, x = toy(nn.ReLU), data(16)
    gm = minq.fold_batch_norms(minq.capture(model, x))
    minq.insert_quantizers(gm, weights=3, activations=None, per_channel=per_channel)
    pipeline.set_weight_ranges(gm)
    exact = {k: p.detach().clone() for k, p in gm.named_parameters()}
    batches = batches_of(gm, x)
    adaround = AdaRound(sweeps=5, rows=10**6)
    rounded = pipeline.calibrate(copy.deepcopy(gm), batches, exact, adaround)
    better = 0
    # Both roundings, on the inputs that the layer has in the network that AdaRound has made.
    walk = Walk(rounded, batches, exact)
    for node in walk:
        if not graph.is_layer(node):
            continue
        (reader,) = [*node.users] or [None]
        f = reader.target if graph.op(reader) == "relu" else lambda y: y
        name = graph.parameter_of(graph.weight_node(node)).target
        quantizer = rounded.get_submodule(graph.weight_node(node).target)
        args = list(node.args)
        values = {
            "ours": quantizer(graph.get(rounded, name).detach()), "nearest": quantizer(exact[name])
        }  # fmt: skip
        errors = {}
        for kind, w in values.items():
            bias = graph.bias_of(rounded, node)
            y = node.target(walk.quantized[args[0]][0], w, bias, *args[3:])
            errors[kind] = float((f(y) - f(walk.exact[node][0])).double().square().sum())
        assert errors["ours"] <= errors["nearest"] * (1 + 1e-5), name
        better += errors["ours"] < 0.95 * errors["nearest"]
        step = quantizer.scale.reshape(-1, *[1] * (w.ndim - 1))
        inside = (exact[name] / step).clamp(*quantizer.grid) * step
        assert ((values["ours"] - inside).abs() <= 1.001 * step).all()
    assert better >= 2
    nearest = pipeline.calibrate(copy.deepcopy(gm), batches, exact, Nearest(correct_bias=False))
    assert quality(model, rounded, x) > quality(model, nearest, x) + 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["relu", "clip per channel", "none", "two readers", "computed"])
def test_adaround_sees_the_activation_that_follows(monkeypatch, kind, groups):
    """Rows are (groups, rows, outputs / groups); a clip may differ from channel to channel."""
    top = torch.linspace(0.1, 1, 6).reshape(6, 1, 1)
    functions = {
        "relu": lambda m, x: m.a(x).relu(),
        "clip per channel": lambda m, x: m.a(x).clamp(m.low, m.top),
        "none": lambda m, x: m.a(x).sigmoid(),
        "two readers": lambda m, x: (lambda y: y.relu() + y)(m.a(x)),
        "computed": lambda m, x: torch.clamp(m.a(x), max=x.mean((2, 3), keepdim=True)[:, :1]),
    }
    layer = nn.Conv2d(4, 6, 1, groups=groups)
    model = Lambda(functions[kind], a=layer, low=torch.zeros(6, 1, 1), top=top)
    given = {}

    def spy(*args, **kwargs):
        given.update(kwargs, y=args[2])
        return adaround_module.adaround(*args, **kwargs)

    monkeypatch.setattr(rounding_module, "adaround", spy)
    ptq(model, noise(4, 4, 3, 3), weights=3, rounding=AdaRound(sweeps=1))
    y, f = given["y"], given["activation"]
    assert y.shape == (groups, 36, 6 // groups)
    if kind in ("relu", "clip per channel"):
        ceiling = top.reshape(groups, 1, -1) if kind == "clip per channel" else torch.inf
        torch.testing.assert_close(f(y), torch.clamp(y, min=0).minimum(torch.as_tensor(ceiling)))
    else:
        assert f is None


def watched_corrections(monkeypatch):
    """For each layer (y, y_hat before, y_hat after, its activation), rows of places by channels."""
    seen, correct = {}, pipeline.correct_bias

    def rows(values, node):
        axis = -1 if graph.op(node) == "linear" else 1
        return torch.cat([v.movedim(axis, -1).flatten(0, -2) for v in values]).double()

    def spy(gm, node, walk):
        name = graph.layer_name(node)
        y, before = rows(walk.exact[node], node), rows(walk.advance(node), node)
        correct(gm, node, walk)
        (user,) = node.users
        f = torch.relu if graph.op(user) == "relu" else lambda v: v
        seen[name] = y, before, rows(walk.quantized[node], node), f

    monkeypatch.setattr(pipeline, "correct_bias", spy)
    return seen


@pytest.mark.parametrize("batches", [[32], [20, 12], [1, 30, 1]])
def test_bias_correction_removes_the_mean_error_where_it_lowers_the_error(monkeypatch, batches):
    """On the calibration set, behind the activation function, whatever the batches are."""
    model, x = toy(nn.ReLU), data(sum(batches))
    seen = watched_corrections(monkeypatch)
    gm = ptq(model, x.split(batches), weights=3, rounding="nearest")
    corrected = 0
    for name, (y, before, after, f) in seen.items():
        errors = [(f(v) - f(y)).square().mean(0) for v in (before, after)]
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all(), name
        mean, spread = (after - y).mean(0), (after - y).square().mean(0).sqrt()
        moved = (before - after).abs().amax(0) > 0
        assert (mean.abs() < 1e-4 * spread + 1e-6)[moved].all(), name
        torch.testing.assert_close((before - after).std(0), torch.zeros(y.shape[1]).double(),
                                   atol=1e-5, rtol=0)  # fmt: skip
        corrected += int(moved.sum())
    assert len(seen) == 4 and corrected > 10
    # What the walk saw is what the network does, but for the quantizer of its outputs.
    assert minq.sqnr(seen[list(graph.layers(gm))[-1]][2].float(), gm(x).detach()) > 40


def test_a_mean_that_few_tokens_make_is_not_taken_off_all_others(monkeypatch):
    """One token of twelve is a hundred times as large, and alike in all samples, as those that a
    detector asks with: its error is the mean, and noise for the eleven others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    x = torch.randn(32, 12, 16)
    x[:, 0] = 100 * torch.randn(16)
    settings = {"weights": 3, "activations": 16, "equalize": False}
    seen = watched_corrections(monkeypatch)
    q = ptq(model, x, rounding=Nearest(), **settings)
    off = ptq(model, x, rounding=Nearest(correct_bias=False), **settings)
    y, before, _, _ = seen["0"]
    others = torch.arange(len(y)) % 12 != 0
    mean = (before - y).mean(0)
    errors = [(v - y)[others].square().mean() for v in (before, before - mean)]
    assert errors[1] > 3 * errors[0]  # what the mean would do
    ratio = [minq.sqnr(model(x)[:, 1:].detach(), n(x)[:, 1:].detach()) for n in (off, q)]
    assert ratio[1] > ratio[0] - 0.1


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU])
def test_what_helps_most_tokens_must_not_spoil_one(activation):
    """The first token is small and nearly right, as that which all others of a decoder look at; the
    mean error of the others is none of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), activation(), nn.Linear(16, 8))
    x = torch.rand(32, 12, 16) + 0.5
    settings = {"weights": 3, "activations": None, "equalize": False}
    on, off = (ptq(model, x, rounding=Nearest(c), **settings) for c in (True, False))
    assert not torch.equal(on.get_parameter("0.bias"), off.get_parameter("0.bias"))
    x[:, 0] /= 100
    on, off = (ptq(model, x, rounding=Nearest(c), **settings) for c in (True, False))
    assert torch.equal(on.get_parameter("0.bias"), off.get_parameter("0.bias"))


def test_layers_of_a_sequence_that_have_no_bias_are_given_none():
    """No file of such a decoder has a place for it; nor is anything computed on the way to it."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16, bias=False)), torch.rand(32, 12, 16)
    for rows, given in ((x, False), (x[:, 0], True)):
        q = ptq(model, rows, weights=2, activations=None, rounding="nearest")
        assert (graph.bias_of(q, graph.layers(q)["0"]) is not None) == given


def test_few_samples_do_not_correct_what_the_next_ones_have_not():
    """Errors without a mean: what the mean of a handful is, is chance."""
    torch.manual_seed(0)
    model, worse = nn.Linear(64, 64), []
    for seed in range(5):
        x, other = noise(4, 64, seed=seed), noise(256, 64, seed=100 + seed)
        settings = {"weights": 4, "equalize": False}
        on, off = (ptq(model, x, rounding=Nearest(c), **settings) for c in (True, False))
        exact = model(other).detach()
        worse.append(minq.sqnr(exact, off(other).detach()) - minq.sqnr(exact, on(other).detach()))
    assert sum(worse) / 5 < 1.0  # all means of four: a quarter more noise, 1 dB; measured below


def test_one_sample_alone_is_halved_by_its_places():
    x = noise(1, 3, 8, 8) + 1
    model = nn.Conv2d(3, 4, 3)
    on, off = (ptq(model, x, weights=2, rounding=Nearest(c)) for c in (True, False))
    errors = [(n(x) - model(x)).detach().square().mean() for n in (on, off)]
    assert errors[0] < errors[1]


def test_a_layer_without_bias_gets_one():
    """Also one that is the whole model, and that no batch norm follows."""
    x = noise(64, 3, 8, 8) + 1
    for model in (nn.Conv2d(3, 4, 3, bias=False), nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))):
        gm = ptq(model, x, weights=2, rounding="nearest")
        with torch.no_grad():
            error = (gm(x) - model(x)).mean((0, 2, 3))
            off = ptq(model, x, weights=2, rounding=Nearest(correct_bias=False))
            before = (off(x) - model(x)).mean((0, 2, 3))
        assert error.abs().max() < 0.05 * before.abs().max()


def test_two_weights_of_one_module_and_shared_layers():
    model = Lambda(
        lambda m, x: nn.functional.linear(nn.functional.linear(x, m.w1).relu(), m.w2),
        w1=nn.Parameter(noise(8, 6)), w2=nn.Parameter(noise(8, 8, seed=2)),
    )  # fmt: skip
    x = noise(128, 6)
    assert quality(model, ptq(model, x, rounding=AdaRound(sweeps=3)), x) > 30
    model = Lambda(lambda m, x: m.a(m.a(x).relu()), a=nn.Linear(6, 6))
    gm = ptq(model, x, rounding=AdaRound(sweeps=3))
    assert quality(model, gm, x) > 30 and len(weight_quantizers(gm)) == 1
    model, gm, shape = captured("shared convolution")
    gm = ptq(model, noise(8, *shape), rounding=AdaRound(sweeps=2))
    assert quality(model, gm, noise(8, *shape)) > 30


def test_the_same_twice_and_another_seed():
    model, x = toy(), data()
    roundings = (AdaRound(sweeps=3, rows=64, seed=seed) for seed in (0, 0, 1))
    first, second, other = (ptq(model, x, weights=4, rounding=r) for r in roundings)
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, monkeypatch, stop):
    model, x, file = toy(), data(), tmp_path / "rounding.pt"
    settings = dict(weights=4, rounding=AdaRound(sweeps=3, rows=64, correct_bias=True))
    whole = ptq(model, x, **settings)
    calls = []

    def until(*args, **kwargs):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return adaround_module.adaround(*args, **kwargs)

    monkeypatch.setattr(rounding_module, "adaround", until)
    with pytest.raises(KeyboardInterrupt):
        ptq(model, x, checkpoint=file, **settings)
    assert file.exists() and [p.name for p in tmp_path.iterdir()] == ["rounding.pt"]
    count = len(calls)
    monkeypatch.setattr(
        rounding_module,
        "adaround",
        lambda *a, **k: calls.append(1) or adaround_module.adaround(*a, **k),
    )
    resumed = ptq(model, x, checkpoint=file, **settings)
    assert same(whole, resumed) and torch.equal(whole(x), resumed(x))
    assert len(calls) - count == 4 - stop  # the layers that were done are not done again
    assert (
        same(ptq(model, x, checkpoint=file, **settings), whole) and len(calls) - count == 4 - stop
    )


@pytest.mark.parametrize("cut", [1, 9, 700])
def test_a_layer_that_was_half_written_is_done_again(tmp_path, cut):
    model, x, file = toy(), data(), tmp_path / "rounding.pt"
    settings = dict(weights=4, rounding=GPTQ(rows=64), checkpoint=file)
    whole = ptq(model, x, **settings)
    written = file.read_bytes()
    file.write_bytes(written[:-cut])
    assert same(ptq(model, x, **settings), whole) and file.read_bytes() == written


@pytest.mark.parametrize("change", [
    *(dict(rounding=dataclasses.replace(AdaRound(sweeps=3, rows=64), **other)) for other in (
        dict(seed=1), dict(rows=65), dict(sweeps=4), dict(correct_bias=True))),
    dict(rounding=GPTQ(rows=64)), dict(weights=3), dict(activations=4), dict(per_channel=True),
    dict(activation_range="min_max"), "data", "model",
], ids=str)  # fmt: skip
def test_a_file_of_other_settings_is_refused(tmp_path, change):
    model, x, file = graph_of_toy(), data(), tmp_path / "rounding.pt"
    settings = dict(weights=4, rounding=AdaRound(sweeps=3, rows=64), checkpoint=file)
    ptq(model, x, **settings)
    if change == "data":
        x, change = x * 1.5, {}
    elif change == "model":
        model, change = toy(nn.ReLU), {}
        model[0].weight.data.mul_(1.1)
    with pytest.raises(ValueError, match="was made with .* give another file"):
        ptq(model, x, **settings | change)


def test_all_forms_of_data_give_the_same():
    model, x = toy(), data(24)
    labels = torch.arange(24)
    settings = dict(weights=4, rounding=AdaRound(sweeps=2, rows=64))
    gm = graph_of_toy()
    expected = ptq(gm, [x[:8], x[8:16], x[16:]], **settings)
    loader = DataLoader(TensorDataset(x, labels), batch_size=8)
    forms = {
        "loader": loader, "generator": (b for b in x.split(8)), "tuple": x.split(8),
        "with labels": [[b, labels] for b in x.split(8)],
        "by name": [{"input": b, "label": labels} for b in x.split(8)],
    }  # fmt: skip
    for name, form in forms.items():
        q = ptq(model if name in ("with labels", "by name") else gm, form, **settings)
        call = dict(input=x) if name == "by name" else None
        with torch.no_grad():
            assert torch.equal(q(**call) if call else q(x), expected(x)), name
    whole = ptq(gm, x, **settings)
    assert quality(model, whole, x) > 10


def test_several_inputs_by_name():
    model, u, v = Keywords().eval(), noise(64, 4), noise(64, 3)
    gm = ptq(model, {"v": v, "u": u, "label": torch.zeros(64)}, rounding=AdaRound(sweeps=2))
    with torch.no_grad():
        exact, rounded = model(u, v), gm(u=u, v=v)
    assert all(minq.sqnr(exact[k], rounded[k]) > 30 for k in exact)


def test_options_that_switch_steps_off():
    model, x = toy(nn.ReLU), data()
    float_weights = ptq(model, x, weights=None, equalize=False)
    assert not weight_quantizers(float_weights)
    nothing = ptq(model, x, weights=None, activations=None)
    assert not quantizers(nothing) and quality(model, nothing, x) > 90
    skipped = ptq(model, x, weights=2, skip=["0", "3", "6", "11"], activations=None)
    assert not quantizers(skipped)
    layers = {"0": {"weights": 8}, "*": {"weights": 2}}
    few = ptq(model, x, layers=layers, rounding=AdaRound(sweeps=2))
    assert {k: q.bits for k, q in weight_quantizers(few).items()}.pop("0.weight_quantizer") == 8
    for relu6 in ("replace", "keep", "per_channel"):
        assert ptq(toy(), x, equalize=Equalize(relu6=relu6))(x).isfinite().all()


def test_a_long_run_shows_where_it_is(capsys):
    ptq(toy(), data(4), rounding=AdaRound(sweeps=1, rows=16), progress=True)
    assert "4/4" in capsys.readouterr().err
    ptq(toy(), data(4), rounding=AdaRound(sweeps=1, rows=16))  # no terminal: quiet
    assert capsys.readouterr() == ("", "")


def test_large_activations_are_sampled_from_all_channels():
    """An even selection that keeps step with the channels would see only one of them."""
    values = torch.arange(256.0).repeat(4096, 1)  # (rows, channels), each channel its own value
    sample = pipeline.range_sample([values, values], most=2**13)
    assert len(sample) < 2**14 and len(sample.unique()) == 256
    counts = torch.bincount(sample.long(), minlength=256)
    assert counts.max() < 2 * counts.min()


@pytest.mark.parametrize("arguments, error, words", [
    (dict(calibration=None), ValueError, "give calibration data, or an example"),
    (dict(rounding="best"), ValueError, "rounding must be one of adaround, nearest"),
    (dict(rounding=AdaRound), TypeError, r"an object such as AdaRound\(\), or one of adaround"),
    (dict(equalize="no"), TypeError, r"True, False, or an object such as Equalize\(\)"),
    (dict(scheme={"weights": 4}), TypeError, "must be a minq.Scheme, not dict"),
    (dict(sweeps=3), TypeError, "no setting sweeps; a scheme has weights, activations"),
    (dict(calibration=None, example=data(2), rounding=AdaRound()), ValueError, "needs calibration"),
    (dict(calibration=None, example=data(2), equalize=Equalize(absorb="data")), ValueError,
     "needs calibration data; without, absorb=True"),
    (dict(calibration=[]), ValueError, "at least one batch"),
    (dict(calibration=data(2) * float("nan")), ValueError, "NaN"),
    (dict(calibration=[data(2), noise(2, 3, 8, 8)]), ValueError, "captured with"),
    (dict(weights=1), ValueError, "bits"),
    (dict(activations=3.5), TypeError, "whole number"),
    (dict(skip=["missing"]), ValueError, "no layer is called missing"),
    (dict(weight_range="best"), ValueError, "estimator must be one of min_max, percentile, mse"),
    (dict(weight_range=8), TypeError, r"an object such as MSE\(\), one of min_max"),
    (dict(model="net"), TypeError, "torch.nn.Module"),
])  # fmt: skip
def test_wrong_arguments_are_refused(arguments, error, words):
    model = arguments.pop("model", None) or toy()
    with pytest.raises(error, match=words):
        ptq(model, **{"calibration": data(2)} | arguments)


@pytest.mark.parametrize("make, error, words", [
    (lambda: AdaRound(sweeps=0), ValueError, "sweeps"),
    (lambda: GPTQ(rows=0), ValueError, "rows"),
    (lambda: Equalize(relu6="no"), ValueError, "relu6 must be one of replace, per_channel, keep"),
    (lambda: Equalize(absorb="bn"), ValueError, 'absorb must be True, False or "data"'),
])  # fmt: skip
def test_wrong_settings_of_a_step_are_refused_where_they_are_made(make, error, words):
    with pytest.raises(error, match=words):
        make()


# --- Networks that others wrote -------------------------------------------------------------------


def test_a_network_of_torchvision():
    """All of them, with quicker settings: test_rows.py."""
    models = pytest.importorskip("torchvision").models
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = settle(models.mobilenet_v2(num_classes=10))
    x = noise(4, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = ptq(model, x, per_channel=True, rounding=AdaRound(sweeps=2, rows=64))
    assert {q.stage for q in quantizers(gm).values()} == {"frozen"}
    convolutions = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    assert len(weight_quantizers(gm)) == convolutions
    assert quality(model, gm, x) > 10


def test_where_the_model_itself_computes_no_numbers_the_place_is_named():
    parts = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    model = Lambda(lambda m, x: m.b((m.a(x) - 100).sqrt()), **parts)
    with pytest.raises(ValueError, match="at sqrt from .* NaN or infinite values"):
        ptq(model, noise(16, 4), rounding="nearest")
