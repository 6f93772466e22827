"""The whole pipeline beside AIMET's, and what it costs for larger networks.

    python tests/bench/bench_ptq.py [--iterations 300 ...] [--cost resnet18 resnet50] [--threads 2]

1. W4A8 per channel with AdaRound: seconds and SQNR of the logits on unseen data, for the small
   ResNet of the zoo; the same network, calibration data and threads for both. AIMET's AdaRound gets
   ``--iterations`` steps for each layer; 0 means its own default, which takes half an hour.
2. Cross-layer equalization, tracing included: seconds.
3. Seconds and peak memory of ``minq.ptq`` for networks of torchvision (random weights, 32 pictures
   of 224 x 224, 20 sweeps).

AIMET comes from requirements-bench.txt. Beside the time on the clock stands the processor's, which
other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import minq
from minq.export import capture
from minq.ptq import pipeline
from minq.ptq.channels import absorb_biases, equalize_graph
from minqbook import zoo

NETWORK, BATCH = "resnet_basic", 32


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds on the clock, the seconds of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - clock, time.process_time() - processor


@torch.no_grad()
def quality(model: nn.Module, quantized: nn.Module, x: torch.Tensor) -> float:
    return minq.sqnr(model(x), quantized(x))


# --- minq -----------------------------------------------------------------------------------------


def minq_ptq(model: nn.Module, x: torch.Tensor) -> nn.Module:
    return pipeline.ptq(model, x.split(BATCH), weights=4, per_channel=True, progress=False)


def minq_equalize(model: nn.Module, x: torch.Tensor) -> nn.Module:
    gm = capture(model, x)
    minq.fold_batch_norms(gm)
    return absorb_biases(equalize_graph(gm))


# --- AIMET ----------------------------------------------------------------------------------------


def aimet_ptq(model: nn.Module, x: torch.Tensor, iterations: int) -> nn.Module:
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    example, config = x[:1], get_path_for_per_channel_config()
    prepared = prepare_model(copy.deepcopy(model).eval())
    fold_all_batch_norms(prepared, input_shapes=tuple(example.shape), dummy_input=example)
    loader = DataLoader(x, batch_size=BATCH)
    parameters = AdaroundParameters(
        loader, len(loader), default_num_iterations=iterations or None, forward_fn=lambda m, b: m(b)
    )
    with tempfile.TemporaryDirectory() as folder:
        rounded = Adaround.apply_adaround(
            prepared, example, parameters, path=folder, filename_prefix="adaround",
            default_param_bw=4, default_config_file=config,
        )  # fmt: skip
        sim = QuantizationSimModel(
            rounded, example, default_output_bw=8, default_param_bw=4, config_file=config
        )
        sim.set_and_freeze_param_encodings(f"{folder}/adaround.encodings")

    def run(m: nn.Module, *_: Any) -> None:
        with torch.no_grad():
            for batch in loader:
                m(batch)

    sim.compute_encodings(run, None)
    return sim.model


def aimet_equalize(model: nn.Module, x: torch.Tensor) -> nn.Module:
    from aimet_torch.cross_layer_equalization import equalize_model

    twin = copy.deepcopy(model).eval()
    equalize_model(twin, input_shapes=tuple(x[:1].shape), dummy_input=x[:1])
    return twin


# --- The comparison -------------------------------------------------------------------------------


def compare(iterations: list[int], repeat: int) -> None:
    model = zoo.load(NETWORK)
    x, (unseen, _) = zoo.calibration_set(NETWORK, 256), zoo.test_set(NETWORK, 1000)
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{NETWORK}, {size / 1000:.0f} k parameters, {len(x)} pictures, W4A8 per channel, AdaRound"
    )
    ours, clock, processor = timed(lambda: minq_ptq(model, x))
    good = quality(model, ours, unseen)
    print(f"  minq                     {clock:7.1f} s ({processor:6.1f} s cpu)  {good:5.1f} dB")
    if not importlib.util.find_spec("aimet_torch"):
        print("  AIMET is not installed: pip install -r requirements-bench.txt; skipped")
        return
    logging.disable(logging.WARNING)
    for steps in iterations:
        theirs, c, p = timed(lambda steps=steps: aimet_ptq(model, x, steps))
        db, name = quality(model, theirs, unseen), f"{steps or 'default'} iterations"
        print(f"  AIMET {name:18s} {c:7.1f} s ({p:6.1f} s cpu)  {db:5.1f} dB")
        print(
            f"  minq / AIMET: time {clock / c:.2f} (cpu {processor / p:.2f}), {good - db:+.1f} dB"
        )

    times = {}
    for _ in range(repeat + 1):
        for name, function in (("minq", minq_equalize), ("AIMET", aimet_equalize)):
            _, c, p = timed(lambda f=function: f(model, x[:2]))
            times.setdefault(name, []).append((c, p))
    print("Cross-layer equalization with tracing")
    middle = {
        name: [statistics.median(v) for v in zip(*t[1:], strict=True)] for name, t in times.items()
    }
    for name, (c, p) in middle.items():
        print(f"  {name:6s} {c:6.2f} s ({p:5.2f} s cpu)")
    ratios = [a / b for a, b in zip(middle["minq"], middle["AIMET"], strict=True)]
    print(f"  minq / AIMET: time {ratios[0]:.2f} (cpu {ratios[1]:.2f})")


# --- Cost against size ----------------------------------------------------------------------------


def peak() -> float:
    """The most memory this process has had, in MiB."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 1024 / (1024 if sys.platform == "darwin" else 1)


def cost(name: str, count: int = 32) -> None:
    """In a process of its own, so that its peak is its own."""
    from torchvision import models

    torch.manual_seed(0)
    model, x = getattr(models, name)().eval(), torch.randn(count, 3, 224, 224)
    with torch.no_grad():
        model(x)
    before = peak()
    quantized, clock, processor = timed(
        lambda: pipeline.ptq(
            model, x.split(8), weights=4, per_channel=True, progress=False
        )
    )
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"  {name:10s} {size:5.1f} M parameters {clock:7.1f} s ({processor:6.1f} s cpu), peak "
        f"{peak():6.0f} MiB, {before:.0f} MiB before; {quality(model, quantized, x):.1f} dB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, nargs="*", default=[300])
    parser.add_argument("--cost", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.one:
        cost(options.one)
        return
    if options.iterations:
        compare(options.iterations, options.repeat)
    if options.cost:
        print("minq.ptq, W4A8 per channel with AdaRound, 32 pictures of 224 x 224, random weights")
        for name in options.cost:
            sys.stdout.flush()
            threads = ["--threads", str(options.threads)]
            subprocess.run([sys.executable, __file__, "--one", name, *threads], check=True)


if __name__ == "__main__":
    main()
