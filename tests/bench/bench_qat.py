"""A step of quantization-aware training, as a multiple of the same step in FP32.

    python tests/bench/bench_qat.py [--networks resnet_basic ...] [--bits 8] [--repeat 15]

A step is forward, loss, backward and Adam on one batch of 64 pictures; FP32 is the network of the
zoo as it is, batch norms unfolded and in training mode. Weights and activations are quantized, and
ranges are learned (by torch.ao with its learnable fake quantization; "default" is its usual one,
which observes ranges). All contenders take turns, one step each, so a busy machine slows all of
them; medians are shown. Those of requirements-bench.txt that are not installed are skipped.

What each does about batch norm: fold, dynamic, keep as in minq.qat.batchnorm; torch.ao folds in
each step, AIMET and Brevitas fold before training.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minq import qat
from minqbook import zoo

NETWORKS = ["resnet_basic", "mobilenet_v2"]
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
BATCH = 64

Maker = Callable[[nn.Module, Tensor, int], nn.Module]


# --- The contenders: each makes a network in training mode, calibrated on x -----------------------


def minq_qat(model: nn.Module, x: Tensor, bits: int, **settings) -> nn.Module:
    return qat.prepare(model, x, weights=bits, activations=bits, **settings)


def torch_ao(model: nn.Module, x: Tensor, bits: int, learned: bool) -> nn.Module:
    from torch.ao import quantization as ao
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    kinds = {
        "activation": (0, 2**bits - 1, torch.quint8, torch.per_tensor_affine),
        "weight": (-(2**bits) // 2, 2**bits // 2 - 1, torch.qint8, torch.per_tensor_symmetric),
    }
    fake = _LearnableFakeQuantize if learned else ao.FusedMovingAvgObsFakeQuantize
    config = ao.QConfig(**{
        kind: fake.with_args(
            observer=ao.MovingAverageMinMaxObserver, quant_min=n, quant_max=p, dtype=dtype,
            qscheme=scheme,
        )
        for kind, (n, p, dtype, scheme) in kinds.items()
    })  # fmt: skip
    mapping = ao.QConfigMapping().set_global(config)
    prepared = prepare_qat_fx(copy.deepcopy(model).train(), mapping, (x[:2],))
    prepared(x)
    for m in prepared.modules():
        if isinstance(m, _LearnableFakeQuantize):
            m.enable_param_learning()
    return prepared


def aimet(model: nn.Module, x: Tensor, bits: int) -> nn.Module:
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    folded = prepare_model(copy.deepcopy(model).eval())
    fold_all_batch_norms(folded, input_shapes=tuple(x[:1].shape), dummy_input=x[:1])
    sim = QuantizationSimModel(folded, x[:1], default_output_bw=bits, default_param_bw=bits)
    with torch.no_grad():
        sim.compute_encodings(lambda m, _: m(x), None)
    return sim.model.train()


def brevitas(model: nn.Module, x: Tensor, bits: int) -> nn.Module:
    """Its own graph mode, which has 8 bits; a step takes as long with fewer."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    folded = preprocess_for_quantize(copy.deepcopy(model).eval(), equalize_iters=0)
    quantized = quantize(folded)
    with torch.no_grad(), calibration_mode(quantized):
        quantized(x)
    return quantized.train()


CONTENDERS: dict[str, tuple[str, Maker]] = {
    "minq, fold": ("minq", minq_qat),
    "minq, fold, per channel": ("minq", functools.partial(minq_qat, per_channel=True)),
    "minq, dynamic": ("minq", functools.partial(minq_qat, batch_norm="dynamic")),
    "minq, keep, per channel": (
        "minq",
        functools.partial(minq_qat, batch_norm="keep", per_channel=True),
    ),
    "torch.ao, learned ranges": ("torch", functools.partial(torch_ao, learned=True)),
    "torch.ao, default": ("torch", functools.partial(torch_ao, learned=False)),
    "AIMET": ("aimet_torch", aimet),
    "Brevitas": ("brevitas", brevitas),
}


# --- The comparison -------------------------------------------------------------------------------


class Step:
    """One step of training, which keeps how long each took."""

    def __init__(self, model: nn.Module, loss: Callable, batch: tuple[Tensor, Tensor]) -> None:
        self.model, self.loss, self.batch, self.seconds = model, loss, batch, []
        weights = [p for p in model.parameters() if p.requires_grad]
        mine = any(isinstance(m, qat.pipeline.Quantizer) for m in model.modules())
        groups = qat.parameter_groups(model, 1e-5) if mine else weights
        self.optimizer = torch.optim.Adam(groups, lr=1e-5)

    def __call__(self) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.model(self.batch[0]), self.batch[1]).backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)

    def learns(self) -> bool:
        """Whether anything but weights, biases and batch norms has a gradient."""
        trained = (n for n, p in self.model.named_parameters() if p.grad is not None)
        names = {n.rpartition(".")[2] for n in trained}
        return bool(names - {"weight", "bias"})


def compare(name: str, layout: str, bits: int, repeat: int) -> None:
    x, answers = zoo.TrainingBatches(name, 1, BATCH)[0]
    x = x.contiguous(memory_format=FORMATS[layout])
    model, loss = zoo.load(name).to(memory_format=FORMATS[layout]), zoo.loss_of(name)
    steps = {"FP32": Step(copy.deepcopy(model).train(), loss, (x, answers))}
    for label, (package, make) in CONTENDERS.items():
        if not importlib.util.find_spec(package):
            continue
        try:
            step = Step(make(model, x, bits), loss, (x, answers))
            step()
            steps[label] = step
        except Exception as error:  # a peer's failure is its own result
            print(f"  {label} fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
    for k in range(repeat + 2):
        for step in steps.values():
            step()
            if k < 2:
                step.seconds.clear()
    print(f"{name}, {layout}, W{bits}A{bits}, batch {BATCH}, {torch.get_num_threads()} threads")
    middle = {label: statistics.median(step.seconds) for label, step in steps.items()}
    for label, seconds in middle.items():
        learned = "" if label == "FP32" or steps[label].learns() else "  (ranges not learned)"
        ratio = seconds / middle["FP32"]
        print(f"  {label:26s} {1000 * seconds:8.1f} ms  {ratio:6.2f} x{learned}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=zoo.NAMES)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for package in sorted({p for p, _ in CONTENDERS.values()}):
        if not importlib.util.find_spec(package):
            print(f"{package} is not installed: pip install -r requirements-bench.txt; skipped")
    for name in options.networks:
        for layout in options.formats:
            compare(name, layout, options.bits, options.repeat)


if __name__ == "__main__":
    main()
