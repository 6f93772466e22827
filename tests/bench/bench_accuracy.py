"""EfficientNet-Lite0 quantized by minq and by its peers: how far the answers are from FP32's.

    python tests/bench/bench_accuracy.py [minq "ONNX Runtime" ...] [--bits W8A8] [--per-tensor]
                                         [--crops 128] [--test 500] [--iterations 300]

Every peer gets the recipe of its own documentation and the same crops; 500 others judge: SQNR of
the logits in dB, and for how many the largest logit is the same. W4A8 is each tool's rounding to
nearest, but AIMET's AdaRound with ``--iterations`` steps a layer, and minq's. A peer that is not
installed is skipped by name, one that fails says how. The peers are in requirements-bench.txt; they
ask for different versions of the same packages, so some need an environment of their own.

Not in it: the peers' own GPTQ, GPFQ and SeqMSE. Integer kernels for processors without VNNI may
saturate sums of 8-bit products, so the same file can score lower on one machine than on another.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench_ptq import aimet_ptq
from torch import Tensor, nn

import minq
from minqbook import zoo
from minqbook.zoo.models import SamePad

Answer = Callable[[Tensor], Tensor]
BATCH = 16


def minq_(model: nn.Module, x: Sequence[Tensor], weights: int, per_channel: bool, _: int) -> Answer:
    rounding = minq.ptq.AdaRound(sweeps=30, rows=8192, held_out=weights < 8)
    return minq.ptq(
        model, x, weights=weights, per_channel=per_channel, equalize=not per_channel,
        rounding=rounding, progress=False,
    )  # fmt: skip


def onnx_runtime(model, x, weights, per_channel, _) -> Answer:
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(x)

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, done = (Path(folder, f"{k}.onnx") for k in ("plain", "prepared", "done"))
        torch.onnx.export(
            model, (x[0],), plain, input_names=["input"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
        )  # fmt: skip
        quant_pre_process(plain, prepared)
        quantization.quantize_static(
            prepared, done, Reader(), per_channel=per_channel,
            weight_type=getattr(quantization.QuantType, f"QInt{weights}"),
        )  # fmt: skip
        session = onnxruntime.InferenceSession(done.read_bytes())
    return lambda t: torch.from_numpy(session.run(None, {"input": t.numpy()})[0])


def torchao(model, x, weights, per_channel, _) -> Answer:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    _only(weights == 8 and per_channel, "the x86 recipe has W8A8 per channel")
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (x[0],), dynamic_shapes=({0: batch},)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for t in x:
        prepared(t)
    return convert_pt2e(prepared)


def nncf(model, x, weights, per_channel, _) -> Answer:
    import nncf

    _only(weights == 8 and per_channel, "nncf.quantize has W8A8 per channel")
    return nncf.quantize(model, nncf.Dataset(list(x)), subset_size=len(x))


def brevitas(model, x, weights, per_channel, _) -> Answer:
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    _only(weights == 8 and not per_channel, "the quantizers of brevitas.graph are 8 bits a tensor")
    q = quantize(preprocess_for_quantize(torch.fx.symbolic_trace(model)))
    for mode in (calibration_mode, bias_correction_mode):
        with mode(q):
            for t in x:
                q(t)
    return q


def mct(model, x, weights, per_channel, _) -> Answer:
    import model_compression_toolkit as mct

    _only(weights == 8 and per_channel, "its default platform has W8A8 per channel")
    q, _ = mct.ptq.pytorch_post_training_quantization(model, lambda: ([t] for t in x))
    return q


def aimet(model, x, weights, per_channel, iterations) -> Answer:
    _only(weights == 4 and per_channel, "here only its AdaRound, W4A8 per channel, is asked for")
    return aimet_ptq(model, torch.cat(list(x)), iterations)


PEERS = {
    "minq": ("minq", minq_),
    "ONNX Runtime": ("onnxruntime", onnx_runtime),
    "torchao": ("torchao", torchao),
    "NNCF": ("nncf", nncf),
    "Brevitas": ("brevitas", brevitas),
    "MCT": ("model_compression_toolkit", mct),
    "AIMET": ("aimet_torch", aimet),
}


def traceable(model: nn.Module) -> nn.Module:
    """The same network for pictures of 224 x 224, without padding that asks for their size.

    torch.fx, which several peers build on, cannot follow it. There every size in front of a stride
    of 2 is even, which takes kernel - 2 zeros.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SamePad):
                zeros = child.kernel - 2
                pads = (zeros // 2, zeros - zeros // 2) * 2
                setattr(parent, name, nn.ZeroPad2d(pads))
    return model


def _only(fits: bool, why: str) -> None:
    if not fits:
        raise NotImplementedError(why)


@torch.no_grad()
def judge(answer: Answer, x: Tensor, exact: Tensor) -> tuple[float, float]:
    """SQNR in dB, and for how many per cent the largest logit is the same."""
    y = torch.cat([answer(t).detach() for t in x.split(BATCH)]).reshape(exact.shape)
    return minq.sqnr(exact, y), 100 * float((y.argmax(1) == exact.argmax(1)).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peers", nargs="*", default=list(PEERS), metavar="peer")
    parser.add_argument("--bits", choices=("W8A8", "W4A8"), default="W8A8")
    parser.add_argument("--per-tensor", action="store_true")
    parser.add_argument("--crops", type=int, default=128)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=300)
    given = parser.parse_args()
    if unknown := set(given.peers) - set(PEERS):
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    model = traceable(zoo.efficientnet_lite0_model())
    crops = zoo.photo_crops(given.crops, split="calibration").split(BATCH)
    x = zoo.photo_crops(given.test, split="test")
    with torch.no_grad():
        exact = torch.cat([model(t) for t in x.split(BATCH)]).flatten(1)
    kind = "per tensor" if given.per_tensor else "per channel"
    print(f"EfficientNet-Lite0, {given.bits} {kind}, {given.crops} crops, judged on {given.test}")
    for name in given.peers:
        package, quantize = PEERS[name]
        if importlib.util.find_spec(package) is None:
            print(f"  {name:13s} not installed: pip install -r requirements-bench.txt; skipped")
            continue
        start = time.perf_counter()
        settings = int(given.bits[1]), not given.per_tensor, given.iterations
        try:
            with torch.no_grad() if name != "AIMET" else torch.enable_grad():
                answer = quantize(copy.deepcopy(model), crops, *settings)
            db, same = judge(answer, x, exact)
        except NotImplementedError as why:
            print(f"  {name:13s} skipped: {why}")
        except Exception as error:  # a peer's failure is a result
            line = str(error).strip().partition("\n")[0]
            print(f"  {name:13s} failed: {type(error).__name__}: {line[:120]}")
        else:
            seconds = time.perf_counter() - start
            print(f"  {name:13s} {db:6.1f} dB  {same:5.1f} %  {seconds:6.0f} s", flush=True)


if __name__ == "__main__":
    main()
