"""Size and latency of the ONNX files that minq writes, as a multiple of FP32 in the same engine.

    python tests/bench/bench_deploy.py [--networks resnet18 ...] [--batches 1 32] [--threads 1 2]

ONNX Runtime computes all files: the unquantized network, minq's INT8 per tensor and per channel,
and what ONNX Runtime's own quantize_static makes of the unquantized file (QDQ, UINT8 activations,
INT8 weights, min-max ranges). PyTorch computes the unquantized network beside them. All contenders
take turns, one call each, so a busy machine slows all of them; medians are shown. Weights of
resnet18 and mobilenet_v2 are random, which changes no time; the others are trained.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import minq
from minq.deploy.onnx import fused, load, to_onnx
from minq.ptq.pipeline import ptq
from minqbook import zoo

INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger")


def torchvision_network(name: str) -> tuple[nn.Module, Tensor]:
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().train()
    x = torch.randn(32, 3, 224, 224)
    with torch.no_grad():
        model(x)  # batch norms that know their inputs
    return model.eval(), x


def efficientnet_lite0() -> tuple[nn.Module, Tensor]:
    return zoo.efficientnet_lite0_model(), zoo.photo_crops(32)


def small(name: str) -> tuple[nn.Module, Tensor]:
    return zoo.load(name), zoo.calibration_set(name, 32)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet18": lambda: torchvision_network("resnet18"),
    "mobilenet_v2": lambda: torchvision_network("mobilenet_v2"),
    "efficientnet_lite0": efficientnet_lite0,
    "small resnet_basic": lambda: small("resnet_basic"),
}


def quantize_static(path: Path, x: Tensor, out: Path, per_channel: bool) -> Path:
    """The peer: ONNX Runtime's own tool, on the unquantized file."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": x[:8].numpy()}, {"x": x[8:16].numpy()}])

        def get_next(self):
            return next(self.batches, None)

    ort.quantize_static(
        path, out, Reader(), per_channel=per_channel, quant_format=ort.QuantFormat.QDQ,
        activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
    )  # fmt: skip
    return out


def files(model: nn.Module, x: Tensor, folder: Path) -> dict[str, Path]:
    """The contenders' files."""
    made = {"FP32": to_onnx(model, folder / "float.onnx", x[:2])}
    for label, per_channel in (("per tensor", False), ("per channel", True)):
        q = ptq(model, x[:16], rounding="nearest", per_channel=per_channel, progress=False)
        made[f"INT8 {label}"] = to_onnx(q, folder / f"{per_channel}.onnx")
        out = folder / f"static_{per_channel}.onnx"
        try:
            made[f"quantize_static {label}"] = quantize_static(made["FP32"], x, out, per_channel)
        except Exception as error:  # a peer's failure is its own result
            print(f"  quantize_static fails: {type(error).__name__}: {str(error)[:80]}")
    return made


def contenders(
    model: nn.Module, made: dict[str, Path], threads: int
) -> dict[str, Callable[[Tensor], object]]:
    """How each is called. NumPy in, NumPy out: what there is around the engine is not timed."""
    calls: dict[str, Callable[[Tensor], object]] = {"FP32 in PyTorch": model}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    for label, path in made.items():
        if label.startswith("quantize_static"):
            session = onnxruntime.InferenceSession(str(path), options)
        else:
            session = load(path, threads=threads).session
        calls[label] = lambda x, session=session: session.run(None, {"x": x.numpy()})
    return calls


def seconds(calls: dict[str, Callable], x: Tensor, budget: float) -> dict[str, float]:
    """The median time of each, in turns, until the budget in seconds is spent."""
    times: dict[str, list[float]] = {label: [] for label in calls}
    end = time.perf_counter() + budget
    with torch.inference_mode():
        for call in calls.values():
            call(x)
        while time.perf_counter() < end or len(times["FP32"]) < 3:
            for label, call in calls.items():
                start = time.perf_counter()
                call(x)
                times[label].append(time.perf_counter() - start)
    return {label: statistics.median(t) for label, t in times.items()}


def compare(name: str, batches: list[int], threads: list[int], budget: float) -> None:
    model, x = NETWORKS[name]()
    with tempfile.TemporaryDirectory() as folder:
        made = files(model, x, Path(folder))
        exact = model(x[:16]).detach()
        size = {label: path.stat().st_size for label, path in made.items()}
        print(name)
        for label, path in made.items():
            row = f"  {label:28s} {size[label] / 1e6:7.2f} MB  {size['FP32'] / size[label]:5.2f} x"
            if label != "FP32":
                answers = contenders(model, {label: path}, 1)[label](x[:16])
                row += f" smaller  {minq.sqnr(exact, torch.from_numpy(answers[0])):5.1f} dB"
            print(row)
            if label.startswith("INT8"):
                print(f"      {_kernels(path)}")
        for t in threads:
            torch.set_num_threads(t)
            calls = contenders(model, made, t)
            for batch in batches:
                middle = seconds(calls, x[:batch], budget)
                print(f"  batch {batch}, threads {t}")
                for label, s in middle.items():
                    ratio = middle["FP32"] / s
                    print(f"    {label:28s} {1000 * s:8.2f} ms  {ratio:5.2f} x faster", flush=True)


def _kernels(path: Path) -> str:
    """Which operators are integer kernels, and which compute in float."""
    counts = fused(path)
    integer = {op: n for op, n in counts.items() if op.startswith(INTEGER)}
    rest = {op: n for op, n in counts.items() if op not in integer}
    return ", ".join(f"{n} {op}" for op, n in (*integer.items(), *rest.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row of the table")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for name in options.networks:
        compare(name, options.batches, options.threads, options.seconds)


if __name__ == "__main__":
    main()
