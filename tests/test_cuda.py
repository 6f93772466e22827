"""The pipelines on a GPU: networks and data stay there, and what comes out is the CPU's.

Skipped where there is no GPU. Products are taken in full float32: with TF32, PyTorch's default for
convolutions, a sum has 11 bits, which is what some grids here have.
"""

import json
import subprocess
import sys
from functools import partial

import pytest
import tiny_data
import torch
from networks import NETWORKS, network, noise
from test_qat_pipeline import batches, samples, toy
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import minq
from minq.ptq.mixed import allocate, sensitivity
from minq.ptq.smooth import smooth
from minq.qat import Checkpoint, batchnorm
from minq.simulate import quantizers
from minqbook import zoo

if not torch.cuda.is_available():
    pytest.skip("this machine has no GPU", allow_module_level=True)

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def full_precision():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def all_on_gpu(gm):
    return all(v.device.type == "cuda" for v in (*gm.parameters(), *gm.buffers()))


@torch.no_grad()
def decibels(exact, y):
    """Of all outputs together."""
    exact, y = (torch.cat([v.flatten().double().cpu() for v in tree_leaves(o)]) for o in (exact, y))
    return minq.sqnr(exact, y)


@torch.no_grad()
def check(model, data, x, **settings):
    """Quantized there and here; as far from the float network, and near each other."""
    here = minq.ptq(model, data, progress=False, **settings)
    model = model.to(GPU)
    there = minq.ptq(model, data.to(GPU), progress=False, **settings)
    assert all_on_gpu(there)
    exact, there = model(x.to(GPU)), there(x.to(GPU))
    assert all(v.device.type == "cuda" for v in tree_leaves(there))
    here = here(x)
    noise_here = decibels(exact, here)
    assert decibels(exact, there) > noise_here - 1.5
    assert decibels(here, there) > min(noise_here, 40) - 1.5
    return noise_here


# --- After training -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits, per_channel", [(8, False), (4, True)])
def test_every_operator(name, bits, per_channel):
    model, shape = network(name)
    check(
        model, noise(64, *shape), noise(32, *shape, seed=2),
        weights=bits, per_channel=per_channel, rounding="nearest",
    )  # fmt: skip


@pytest.mark.parametrize("settings", [
    {"weights": 8},
    {"weights": 4},
    {"weights": 4, "rounding": "gptq"},
    {"absorb": True, "relu6": "replace", "reach": None},
    {"symmetric": True, "activation_range": "min_max", "weight_range": "min_max"},
], ids=str)  # fmt: skip
def test_every_way_of_rounding(settings):
    name = "mobilenet_v2"
    x = zoo.test_set(name, 100)[0]
    assert check(zoo.load(name), zoo.calibration_set(name, 64), x, **settings) > 3


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_groups(rounding):
    model, shape = network("linear3d")
    how = {"weights": 4, "activations": None, "group_size": 3, "rounding": rounding}
    check(model, noise(64, *shape), noise(32, *shape, seed=2), per_channel=True, **how)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_networks_of_the_zoo_keep_their_accuracy(name):
    model, test = zoo.load(name), zoo.test_set(name, 100)
    exact = zoo.evaluate(model, name, test)
    q = minq.ptq(model.to(GPU), zoo.calibration_set(name, 64), progress=False)
    assert all_on_gpu(q)
    found = zoo.evaluate(q, name, test)
    assert found > exact - 6, (found, exact)


def test_without_data():
    model, x = zoo.load("mobilenet_v2"), zoo.test_set("mobilenet_v2", 100)[0]
    blind = partial(minq.ptq, example=x[:2], input_range=(-2.0, 2.0), progress=False)
    here = blind(model)
    there = blind(model.to(GPU), example=x[:2].to(GPU))
    assert all_on_gpu(there)
    with torch.no_grad():
        assert decibels(here(x), there(x.to(GPU))) > 25


def test_a_loader_on_the_cpu_feeds_a_network_on_the_gpu():
    """As a DataLoader does, whose batches lie where its workers are."""
    model, x = toy().to(GPU), samples(64)[0]
    mine = minq.ptq(model, x.split(16), rounding="nearest", progress=False)
    theirs = minq.ptq(model, x.to(GPU), rounding="nearest", progress=False)
    with torch.no_grad():
        assert decibels(theirs(x.to(GPU)), mine(x.to(GPU))) > 30


def test_the_report_smoothing_and_bits_by_sensitivity():
    model, x = toy().to(GPU), samples(64)[0].to(GPU)
    plain = {"equalize": False, "rounding": minq.ptq.Nearest(correct_bias=False)}
    q = minq.ptq(model, x, weights=4, progress=False, **plain)
    report = minq.debug(q, model, x[:16])
    assert report.exact > 60 and report.worst(1)[0] in quantizers(q)
    gm = minq.capture(model, x)
    with torch.no_grad():
        assert decibels(model(x), smooth(gm, x)(x)) > 60
    gm = minq.capture(model, x)
    table = sensitivity(gm, x, (2, 4, 8))
    cost = {name: {b: float(b) for b in row} for name, row in table.items()}
    chosen = allocate(table, cost, 5.0 * len(cost))
    assert all_on_gpu(minq.ptq(model, x, layers=chosen.layers, progress=False))


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", batchnorm.NAMES)
def test_training_learns(way):
    model, x = toy().to(GPU), samples(128, 7)[0].to(GPU)
    losses = []
    gm = minq.qat(
        model, batches(60), F.cross_entropy, calibration=x, lr=3e-3, weights=2, activations=2,
        batch_norm=way, per_channel=True, callback=lambda step, value, net: losses.append(value),
    )  # fmt: skip
    assert all_on_gpu(gm) and not gm.training
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_stopped_training_goes_on_with_the_same_random_numbers(tmp_path):
    """Numbers of the GPU's own generator, which a loss draws here, are kept with the rest."""
    x = samples(32)[0].to(GPU)

    def loss(y, target):
        return F.cross_entropy(y + torch.rand_like(y), target)

    def train(seed=0, **more):
        torch.cuda.manual_seed_all(seed)
        return minq.qat(toy().to(GPU), batches(6), loss, calibration=x, weights=4, **more)

    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    whole, path = train(), tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=Checkpoint(path, every=1), callback=stop)
    again = train(seed=7, checkpoint=Checkpoint(path, every=1))
    for k, v in whole.state_dict().items():
        if isinstance(v, torch.Tensor):
            torch.testing.assert_close(again.state_dict()[k], v, rtol=1e-4, atol=1e-5)


# --- Deployment -----------------------------------------------------------------------------------


def test_integers_and_files_come_out_of_a_network_on_the_gpu(tmp_path):
    model, x = toy().to(GPU), samples(64)[0].to(GPU)
    q = minq.ptq(model, x, per_channel=True, progress=False)
    with torch.no_grad():
        simulated = q(x)
        integers = minq.to_integer(q)  # which compute on the CPU
        assert decibels(simulated, integers(x)) > 30
        onnx = pytest.importorskip("minq.deploy.onnx")
        engine = onnx.load(minq.to_onnx(q, tmp_path / "q.onnx"))
        assert decibels(simulated, engine(x)) > 30
    assert all_on_gpu(q)


def test_a_row_of_the_tables_under_torchrun(tmp_path):
    data, out = tiny_data.imagenet(tmp_path / "data"), tmp_path / "row.json"
    launch = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=1 -m"
    line = (
        f"minqbook.tables --model resnet18 --data {data} --weights random --size 32 --samples 2 "
        f"--rounding nearest --batch 2 --steps 2 --workers 0 --bits W8A8 --granularity channel"
    )
    command = [*launch.split(), *line.split(), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-4000:]
    row = json.loads(out.read_text())
    assert [r["table"] for r in row["records"]] == ["fp32", "ptq", "qat"]
    assert torch.cuda.get_device_name() in row["machine"]
