"""Quantization-aware training: it learns, in one's own loop too; stopped, it goes on the same."""

import random
from functools import cache, partial

import numpy as np
import pytest
import torch
from networks import Keywords, Lambda, made_once, mobile, noise, settle
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import minq
from minq import qat
from minq.qat import batchnorm
from minq.qat.pipeline import all_quantizers
from minq.simulate import activation_quantizers, quantizers, weight_quantizers
from minq.straight_through import clamp

CLASSES = 5


def samples(count, seed=0):
    """Five patterns under noise, and which one each is."""
    patterns = noise(CLASSES, 3, 8, 8, seed=100)
    target = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return patterns[target] + 1.5 * noise(count, 3, 8, 8, seed=seed + 1), target


def batches(count, size=32, seed=50):
    return [samples(size, seed + 2 * k) for k in range(count)]


@cache
def _trained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mobile(nn.ReLU6, 12).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, target in batches(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    return model.eval().state_dict()


def toy():
    """A small classifier that has been trained."""
    model = mobile(nn.ReLU6, 12)
    model.load_state_dict(_trained())
    return model.eval()


@made_once
def graph_of_toy():
    return minq.capture(toy(), samples(2)[0])


@torch.no_grad()
def accuracy(model, seed=1000):
    x, target = samples(1000, seed)
    return 100 * float((model(x).argmax(1) == target).float().mean())


def same(a, b):
    """Equal networks, bit for bit."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(v, b[k]) for k, v in a.items() if isinstance(v, torch.Tensor))


def ranges(gm):
    names = "scale", "zero_point"
    return {f"{k}.{n}": getattr(q, n).clone() for k, q in quantizers(gm).items() for n in names}


short = partial(qat, loss=F.cross_entropy, calibration=samples(32)[0], weights=4, activations=4)


# --- It learns ------------------------------------------------------------------------------------


def test_training_wins_back_what_few_bits_lost():
    model, x = toy(), samples(128, 7)[0]
    few = dict(weights=2, activations=2)
    full, rounded = accuracy(model), accuracy(minq.ptq(model, x, rounding="nearest", **few))
    gm = qat(model, batches(150), F.cross_entropy, calibration=x, lr=3e-3, **few)
    learned = accuracy(gm)
    assert full > 85 and rounded < full - 10
    assert learned - rounded > 0.3 * (full - rounded)


@pytest.mark.parametrize("batch_norm", [
    qat.Fold(), qat.Dynamic(reestimate=3), qat.Keep(reestimate=3)], ids=repr)  # fmt: skip
def test_the_pipeline_ends_with_a_network_to_deploy(batch_norm):
    model = toy()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model[0].weight.requires_grad_(False)
    model[3].train()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    losses = []
    gm = short(
        model, batches(12), epochs=2, lr=3e-3, weights=2, batch_norm=batch_norm, per_channel=True,
        callback=lambda step, loss, net: losses.append((step, loss, net.training)),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[3].training and not model[0].training and not model[0].weight.requires_grad
    assert model[3].weight.requires_grad and model[3].weight.grad is None

    assert [step for step, _, _ in losses] == list(range(24)) and all(t for _, _, t in losses)
    epochs = np.array([v for _, v, _ in losses]).reshape(2, 12).mean(1)
    assert epochs[1] < epochs[0]  # the same batches, learned from once
    assert not gm.training and not batchnorm.batch_norms(gm)
    assert {q.stage for q in quantizers(gm).values()} == {"frozen"}
    targets = [n.target for n in gm.graph.nodes]
    assert clamp not in targets and torch.ops.aten.clamp.Tensor in targets
    initial = minq.ptq(model, samples(32)[0], weights=2, activations=4, per_channel=True,
                       rounding=minq.ptq.Nearest(correct_bias=False))  # fmt: skip
    nodes = [sorted(str(n.target) for n in g.graph.nodes) for g in (gm, initial)]
    assert nodes[0] == nodes[1]
    assert gm.state_dict().keys() == initial.state_dict().keys()
    initial.load_state_dict(gm.state_dict())  # so it can be kept as any network of minq.ptq
    x = samples(8, 3)[0]
    torch.testing.assert_close(initial(x), gm(x), rtol=0, atol=0)


@pytest.mark.parametrize("batch_norm", ["fold", "dynamic", "keep"])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_a_loop_of_ones_own(batch_norm, logarithmic):
    gm = qat.prepare(
        toy(), samples(64, 9)[0], weights=3, activations=4, per_channel=True, batch_norm=batch_norm,
        logarithmic=logarithmic, normalize=not logarithmic,
    )  # fmt: skip
    assert gm.training and {q.stage for q in all_quantizers(gm)} == {"learn"}
    before, x = {k: v.clone() for k, v in gm.named_parameters()}, samples(256, 77)
    start = float(F.cross_entropy(gm.eval()(x[0]), x[1]))
    optimizer = torch.optim.SGD([p for p in gm.parameters() if p.requires_grad], 0.01, momentum=0.9)
    for inputs, target in batches(60):
        optimizer.zero_grad()
        F.cross_entropy(gm.train()(inputs), target).backward()
        optimizer.step()
    moved = {k for k, v in gm.named_parameters() if not torch.equal(v, before[k])}
    assert {k for k, v in gm.named_parameters() if v.requires_grad} == moved
    y = gm.eval()(x[0]).detach()
    assert float(F.cross_entropy(y, x[1])) < start
    # Where a weight folds onto another side of a rounding, single answers move.
    assert (qat.finish(gm)(x[0]).argmax(1) == y.argmax(1)).float().mean() > 0.98


def test_ranges_stay_where_they_are_not_learned():
    x = samples(32)[0]
    start = ranges(qat.prepare(graph_of_toy(), x, weights=4, activations=4, learn_ranges=False))
    gm = short(graph_of_toy(), batches(5), learn_ranges=False)
    assert all(torch.equal(v, start[k]) for k, v in ranges(gm).items())
    learned = ranges(short(graph_of_toy(), batches(5)))
    scales = [k for k in start if k.endswith("scale")]
    assert all(not torch.equal(learned[k], start[k]) for k in scales)
    # An unsigned grid behind ReLU begins with its zero-point at the end of the grid: it may move.
    ends = [k for k in start if k.endswith("zero_point") and start[k] == 0 and "weight" not in k]
    gm = qat.prepare(toy(), x, weights=4, activations=4)
    F.cross_entropy(gm(x), samples(32)[1]).backward()
    at_end = [q for q in activation_quantizers(gm).values() if float(q.zero_point.detach()) == 0]
    assert ends and at_end and any(q.zero_point.grad != 0 for q in at_end)


def test_mixed_bits():
    gm = short(
        toy(), batches(3), layers={"0": {"weights": 8, "activations": 8}, "11": {"weights": 2}},
        skip=["3"],
    )  # fmt: skip
    bits = {k: q.bits for k, q in weight_quantizers(gm).items()}
    assert bits == {"0.weight_quantizer": 8, "6.weight_quantizer": 4, "11.weight_quantizer": 2}
    assert {q.bits for q in activation_quantizers(gm).values()} == {4, 8}


def test_only_weights_or_only_activations():
    for off in ("weights", "activations"):
        gm = short(graph_of_toy(), batches(3), **{off: None})
        assert accuracy(gm) > 60
        assert not (weight_quantizers if off == "weights" else activation_quantizers)(gm)


def test_clips_that_the_model_learns_still_learn():
    """Only clips between constants get the quicker way back."""
    model = Lambda(
        lambda m, x: torch.clamp(m.a(x), m.low, m.high), a=nn.Linear(6, 4),
        low=nn.Parameter(torch.tensor([-0.1])), high=nn.Parameter(torch.tensor([0.1])),
    )  # fmt: skip
    gm = qat.prepare(model, noise(16, 6), weights=4, activations=None)
    gm(noise(16, 6)).square().sum().backward()
    assert gm.low.grad.abs() > 0 and gm.high.grad.abs() > 0


def test_parameter_groups():
    gm = qat.prepare(toy(), samples(16)[0], weights=4, activations=8,
                     layers={"0": {"activations": 2}})  # fmt: skip
    groups = qat.parameter_groups(gm, 0.1, weight_decay=0.01)
    assert [g["lr"] for g in groups][:2] == [0.1, 0.1]
    assert sorted(round(g["lr"], 6) for g in groups[2:]) == [0.3, 25.5]
    assert [g["weight_decay"] for g in groups] == [0.01, 0, 0, 0]
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in gm.parameters() if p.requires_grad}
    assert {id(q.log2_scale) for q in all_quantizers(gm)} == {id(p) for p in groups[1]["params"]}
    assert [g["lr"] for g in qat.parameter_groups(gm, 0.1, 0.001)][1] == 0.001
    optimizer = torch.optim.AdamW(groups)
    assert len(optimizer.param_groups) == 4
    gm = qat.prepare(toy(), samples(16)[0], learn_ranges=False)
    assert len(qat.parameter_groups(gm, 0.1)) == 1


# --- What it is given -----------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, u, v):
        return self.b(self.a(u).relu() * v)


def test_two_inputs_by_place_and_by_name():
    model = settle(TwoInputs())
    u, v, target = noise(64, 6), noise(64, 8, seed=2), torch.arange(64) % 3
    pairs = [(u[k : k + 16], v[k : k + 16], target[k : k + 16]) for k in range(0, 64, 16)]
    by_name = [{"v": b, "labels": t, "u": a} for a, b, t in pairs]
    first, second = (qat(model, b, F.cross_entropy, epochs=2) for b in (pairs, by_name))
    assert torch.isfinite(first(u, v)).all()
    torch.testing.assert_close(second(u=u, v=v), first(u, v), rtol=1e-5, atol=1e-5)
    loader = DataLoader(TensorDataset(u, v, target), batch_size=16)
    assert same(qat(model, loader, F.cross_entropy, epochs=2), first)


def test_any_outputs_that_the_loss_understands():
    model = settle(Keywords())
    loader = [((noise(8, 4), noise(8, 3))[0], noise(8, 3), noise(8, 5)) for _ in range(3)]
    gm = qat(model, loader, lambda y, t: F.mse_loss(y["sum"], t) + y["first"].mean())
    assert gm(noise(2, 4), noise(2, 3)).keys() == {"sum", "first"}


def test_other_optimizers_and_no_clip():
    gm = short(toy(), batches(10), lr=0.01, clip=None, range_lr=1e-3,
               optimizer=partial(torch.optim.SGD, momentum=0.9))  # fmt: skip
    assert accuracy(gm) > 60


def test_the_first_batches_calibrate():
    """Up to 256 samples, drawn without changing what is drawn afterwards."""
    loader = batches(12)
    given = torch.cat([x for x, _ in loader[:8]])
    learned = dict(weights=4, activations=4, lr=0.0)
    mine = qat(toy(), loader, F.cross_entropy, **learned)
    again = qat(toy(), loader, F.cross_entropy, calibration=list(given.split(32)), **learned)
    assert same(mine, again)


def test_a_bar_where_one_is_wanted(capsys):
    short(graph_of_toy(), batches(2), progress=True)
    assert "2/2" in capsys.readouterr().err
    short(graph_of_toy(), batches(2))
    assert capsys.readouterr() == ("", "")


class Said(list):
    """A list that says another length."""

    def __len__(self):
        return 3


@pytest.mark.parametrize("arguments, error, words", [
    (dict(loader=[]), ValueError, "loader is empty"),
    (dict(loader=iter(batches(1))), TypeError, "must have a length"),
    (dict(loader=Said(batches(2))), RuntimeError, "said 3 batches and gave 2"),
    (dict(loader=[samples(8)[0]]), TypeError, "inputs ..., target"),
    (dict(loader=[(samples(8)[0],)]), TypeError, "inputs ..., target"),
    (dict(loader=[(samples(8)[0],)], calibration=None), TypeError, "no inputs"),
    (dict(loader=[{"x": samples(8)[0]}]), ValueError, 'under "labels"'),
    (dict(epochs=0), ValueError, "epochs"),
    (dict(checkpoint=0), TypeError, "a path, or a Checkpoint"),
    (dict(rate=1e-3), TypeError, "no setting rate; a scheme has weights"),
    (dict(batch_norm="keep"), ValueError, "per_channel=True"),
    (dict(skip=["missing"]), ValueError, "no layer is called missing"),
    (dict(loss=lambda y, t: y.sum() * float("nan")), RuntimeError, "loss is nan in step 0; try"),
    (dict(model="net"), TypeError, "torch.nn.Module"),
])  # fmt: skip
def test_wrong_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        short(**{"model": graph_of_toy(), "loader": batches(1)} | arguments)


def test_a_checkpoint_is_kept_after_a_positive_number_of_steps():
    with pytest.raises(ValueError, match="every must be at least 1"):
        qat.Checkpoint("kept.pt", every=0)


# --- Stopped and gone on --------------------------------------------------------------------------


class Noisy(Dataset):
    """Samples that are different each time: their noise is drawn where all draw."""

    def __init__(self, count):
        self.x, self.target = samples(count, 5)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return self.x[k] + 0.1 * torch.randn(3, 8, 8), self.target[k]


def drawing_loss(y, target):
    """Draws from all three generators."""
    share = torch.rand(()) + random.random() + np.random.rand() + np.random.randn()
    return F.cross_entropy(y, target) + 0.01 * share * y.square().mean()


LOADERS = {
    "own generator": lambda: DataLoader(
        TensorDataset(*samples(40)), 8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "own generator, a last short batch": lambda: DataLoader(
        Noisy(38), 8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "everything drawn at one place": lambda: DataLoader(Noisy(40), 8, shuffle=True),
    "a list": lambda: batches(5, 8),
}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name, batch_norm, stop, every", [
    ("own generator", "fold", 7, 2),
    ("own generator", "dynamic", 5, None),  # at an epoch's end
    ("own generator", "fold", 13, None),
    ("own generator, a last short batch", "fold", 9, 3),
    ("own generator, a last short batch", "fold", 10, 4),
    ("everything drawn at one place", "fold", 3, None),  # before anything was kept
    ("everything drawn at one place", "dynamic", 8, 1),
    ("everything drawn at one place", "fold", 10, 1),
    ("a list", "fold", 7, 2),
])  # fmt: skip
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, name, batch_norm, stop, every):
    settings = dict(epochs=3, batch_norm=batch_norm, loss=drawing_loss)

    def callback(step, loss, net, at=None):
        net.eval()
        if step == at:
            raise Stopped

    def run(seed, **more):
        graph = graph_of_toy()  # a process's first capture draws at random
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        return short(graph, LOADERS[name](), **settings | more)

    expected = _expected(name, batch_norm, run)
    file = tmp_path / "folder" / "qat.pt"
    kept = qat.Checkpoint(file, every=every)
    with pytest.raises(Stopped):
        run(1, checkpoint=kept, callback=partial(callback, at=stop))
    assert file.exists() == (stop >= (every or 5))
    gone_on = run(1 if stop < 5 and not file.exists() else 2, checkpoint=kept, callback=callback)
    assert same(gone_on, expected)
    steps = []
    again = run(3, checkpoint=kept, callback=lambda step, *_: steps.append(step))
    assert same(again, expected) and not steps  # it was finished


_results = {}


def _expected(name, batch_norm, run):
    if (name, batch_norm) not in _results:
        _results[name, batch_norm] = run(1)
    return _results[name, batch_norm]


def test_other_random_numbers_give_another_network():
    """Else the tests above would show nothing."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loader = LOADERS["everything drawn at one place"]()
        results.append(short(graph_of_toy(), loader, loss=drawing_loss))
    assert not same(*results)


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "foreign"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    file = tmp_path / "kept.pt"
    short(graph_of_toy(), batches(2), checkpoint=file)
    whole = file.read_bytes()
    if damage == "foreign":
        torch.save([1, 2], file)
    else:
        file.write_bytes({"text": b"hello", "empty": b"", "cut": whole[:-2000]}[damage])
    with pytest.raises(ValueError, match=r"kept.pt is damaged or no checkpoint.*delete it"):
        short(graph_of_toy(), batches(2), checkpoint=file)


@pytest.mark.parametrize("other", [
    dict(weights=5), dict(lr=1e-2), dict(epochs=2), dict(optimizer=torch.optim.SGD),
    dict(batch_norm="dynamic"), dict(calibration=samples(32, 8)[0]),
], ids=str)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(tmp_path, other):
    file = tmp_path / "kept.pt"
    short(graph_of_toy(), batches(2), checkpoint=file)
    with pytest.raises(ValueError, match="kept.pt belongs to another training"):
        short(graph_of_toy(), batches(2), checkpoint=file, **other)
