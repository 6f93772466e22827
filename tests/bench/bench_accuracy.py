"""EfficientNet-Lite0 quantized by minq and by its peers: how far the answers are from FP32's.

    python tests/bench/bench_accuracy.py [minq "ONNX Runtime" ...] [--bits W8A8] [--per-tensor]
                                         [--crops 128] [--test 500] [--iterations 300]

Every peer gets the recipe of its own documentation and the same crops; 500 others judge: SQNR of
the logits in dB, and for how many the largest logit is the same. At W4A8 each tool has its own way
of rounding: AdaRound (AIMET's with ``--iterations`` steps a layer), sequential MSE, GPTQ, GPFQ. A
peer that is not installed is skipped by name, one that fails says how. The peers are in
requirements-bench.txt; they ask for different versions of the same packages, so some need an
environment of their own.

Integer kernels for processors without VNNI may saturate sums of 8-bit products, so the same file
can score lower on one machine than on another.

What bounds minq here, measured with 32 or 64 crops to calibrate and 100 or 200 others to judge:

- Activations of 8 bits alone, with exact weights, leave 26.3 dB. Their ranges are not the reason:
  the best of seven widths (0.6 to 1.7 times the MSE range) for each of the 61 tensors, by what it
  does to the logits to first order, leaves 26.3 dB too.
- AdaRound fits the crops it sees: W8A8 per tensor has 33.8 dB on them and 22.8 dB on others. It
  also makes good what earlier layers did. Without that (the target W x_hat in place of W x) it has
  22.5 dB on them and 20.7 dB on others, so this part pays on other crops too.
- ``Balance`` helps the weights and costs the activations: these alone have 22.1 dB behind it, 24.3
  behind ``Equalize``. AdaRound makes part of that good. Noise that is weighed by gradients of the
  logits, in place of each layer's energy, does not help: W8A8 per tensor has 22.5 dB then.
- At W4A8 per channel better early layers hardly help. Biases that are free while a weight is
  rounded gain up to 4 dB behind the first depthwise layer, on rows held out, and the network 0.2 dB
  (10.3 to 10.5 dB, 32 crops to calibrate). Weights that least squares corrects before they are
  rounded gain 0.2 dB at most on rows held out, in 5 of the first 25 layers. Whole blocks were not
  reconstructed.
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
from functools import partial
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
    held_out = weights < 8 or not per_channel
    rounding = minq.ptq.AdaRound(sweeps=30, rows=8192, held_out=held_out)
    equalize = False if per_channel else minq.ptq.Balance()
    return minq.ptq(
        model, x, weights=weights, per_channel=per_channel, equalize=equalize,
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


def brevitas(model, x, weights, per_channel, _, *, solver: str = "") -> Answer:
    """The steps of the ImageNet example that comes in its package, with that example's defaults."""
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq import ptq_common

    _only(weights == 8 or bool(solver), "at 4 bits its GPTQ and GPFQ are asked for")
    loader = [(t, 0) for t in x]
    q = ptq_common.quantize_model(
        preprocess_for_quantize(model, equalize_iters=20, equalize_merge_bias=True),
        backend="fx", weight_bit_width=weights, act_bit_width=8, bias_bit_width=32,
        weight_quant_granularity="per_channel" if per_channel else "per_tensor",
        act_quant_percentile=99.999, act_quant_type="sym", scale_factor_type="float_scale",
        quant_format="int", weight_param_method="mse" if weights < 8 else "stats",
    )  # fmt: skip
    q(x[0])
    ptq_common.calibrate(loader, q)
    if solver:
        getattr(ptq_common, f"apply_{solver}")(loader, q, act_order=True)
    ptq_common.apply_bias_correction(loader, q)
    return q


def mct(model, x, weights, per_channel, _) -> Answer:
    import model_compression_toolkit as mct

    _only(weights == 8 and per_channel, "its default platform has W8A8 per channel")
    q, _ = mct.ptq.pytorch_post_training_quantization(model, lambda: ([t] for t in x))
    return q


def aimet(model, x, weights, per_channel, _) -> Answer:
    """Batch norms folded; at 4 bits, scales that its sequential MSE chose."""
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.quantsim_config import utils
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel
    from aimet_torch.seq_mse import apply_seq_mse

    example, prepared = x[0][:1], prepare_model(model)
    fold_all_batch_norms(prepared, input_shapes=tuple(example.shape), dummy_input=example)
    kind = "per_channel" if per_channel else "per_tensor"
    sim = QuantizationSimModel(
        prepared, example, default_output_bw=8, default_param_bw=weights,
        config_file=getattr(utils, f"get_path_for_{kind}_config")(),
    )  # fmt: skip
    if weights < 8:
        apply_seq_mse(sim, list(x))
    sim.compute_encodings(lambda m, *_: [m(t) for t in x], None)
    return sim.model


def aimet_adaround(model, x, weights, per_channel, iterations) -> Answer:
    _only(weights == 4 and per_channel, "it is asked for W4A8 per channel")
    with torch.enable_grad():
        return aimet_ptq(model, torch.cat(list(x)), iterations)


PEERS = {
    "minq": ("minq", minq_),
    "ONNX Runtime": ("onnxruntime", onnx_runtime),
    "torchao": ("torchao", torchao),
    "NNCF": ("nncf", nncf),
    "Brevitas": ("brevitas", brevitas),
    "Brevitas GPTQ": ("brevitas", partial(brevitas, solver="gptq")),
    "Brevitas GPFQ": ("brevitas", partial(brevitas, solver="gpfq")),
    "MCT": ("model_compression_toolkit", mct),
    "AIMET": ("aimet_torch", aimet),
    "AIMET AdaRound": ("aimet_torch", aimet_adaround),
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
            print(f"  {name:14s} not installed: pip install -r requirements-bench.txt; skipped")
            continue
        start = time.perf_counter()
        settings = int(given.bits[1]), not given.per_tensor, given.iterations
        try:
            with torch.no_grad():
                answer = quantize(copy.deepcopy(model), crops, *settings)
            db, same = judge(answer, x, exact)
        except NotImplementedError as why:
            print(f"  {name:14s} skipped: {why}")
        except Exception as error:  # a peer's failure is a result
            line = str(error).strip().partition("\n")[0]
            print(f"  {name:14s} failed: {type(error).__name__}: {line[:120]}")
        else:
            seconds = time.perf_counter() - start
            print(f"  {name:14s} {db:6.1f} dB  {same:5.1f} %  {seconds:6.0f} s", flush=True)


if __name__ == "__main__":
    main()
