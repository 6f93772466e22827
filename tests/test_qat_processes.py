"""Two processes under torchrun: one network, the same in both, and that of the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import mobile, noise, settle
from torch import distributed, nn
from torch.nn import functional as F

from minq import qat

STEPS, SIZE, STOP = 5, 12, 3


def model():
    """In double precision: sums in another order change no rounding to the grid."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(mobile(nn.ReLU6, 6)).double()


def batches(rank=None):
    """All samples of each batch, or the share of one process."""
    share = slice(None) if rank is None else slice(rank * SIZE, (rank + 1) * SIZE)
    return [
        (noise(2 * SIZE, 3, 8, 8, seed=k).double()[share], (torch.arange(2 * SIZE) * k % 5)[share])
        for k in range(1, STEPS + 1)
    ]


def noisy_loss(y, target):
    """Draws random numbers: when a training goes on, each process must find its own again."""
    return F.cross_entropy(y, target) * (1 + torch.rand(()))


def train(rank=None, **settings):
    """The first process calibrates for all; what the second has is another range."""
    torch.manual_seed(10 if rank is None else rank)
    calibration = noise(16, 3, 8, 8, seed=20).double() * (3 if rank else 1)
    options = {"weights": 4, "activations": 4, "per_channel": True, "epochs": 2, "lr": 0.01}
    return qat(
        model(), batches(rank), calibration=calibration,
        optimizer=lambda groups: torch.optim.SGD(groups, momentum=0.9), **options | settings,
    )  # fmt: skip


CASES = {
    "fold": dict(loss=F.cross_entropy),
    "ranges stay": dict(loss=F.cross_entropy, learn_ranges=False),
    "keep": dict(loss=F.cross_entropy, batch_norm="keep"),
    "dynamic, statistics again": dict(
        loss=F.cross_entropy, batch_norm=qat.Dynamic(reestimate=2)
    ),
}


class Stopped(Exception):
    pass


def stop(step, *_):
    if step == STOP:
        raise Stopped


def work(folder):
    """What each process does."""
    rank = distributed.get_rank()
    results = {name: train(rank, **case).state_dict() for name, case in CASES.items()}
    file = folder / "kept.pt"
    kept = qat.Checkpoint(file, every=1)
    results["noisy"] = train(rank, loss=noisy_loss).state_dict()
    try:
        train(rank, loss=noisy_loss, checkpoint=kept, callback=stop)
    except Stopped:
        results["kept by"] = file.exists()
    distributed.barrier()
    results["gone on"] = train(rank, loss=noisy_loss, checkpoint=kept).state_dict()
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(folder)], env=environment, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def tensors(state):
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("name", CASES)
def test_both_processes_end_with_the_same_bits(results, name):
    assert same(results[0][name], results[1][name])


@pytest.mark.parametrize("name", ["fold", "ranges stay"])
def test_it_is_the_result_of_one_process_with_the_joint_batch(results, name):
    alone, together = train(**CASES[name]).state_dict(), results[0][name]
    assert any("scale" in k for k in alone) and tensors(alone).keys() == tensors(together).keys()
    for key, value in tensors(alone).items():
        torch.testing.assert_close(together[key], value, rtol=1e-9, atol=1e-11)
    shares = train(0, **CASES[name]).state_dict()  # half of the data gives something else
    assert not torch.allclose(shares["0.weight"], alone["0.weight"], rtol=1e-4)


def test_a_stopped_training_goes_on_in_both(results):
    for mine in results:
        assert mine["kept by"] and same(mine["gone on"], mine["noisy"])
    assert same(results[0]["noisy"], results[1]["noisy"])


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    work(Path(sys.argv[1]))
    distributed.destroy_process_group()
