"""The eight networks at full size, with random weights: what they are, and what minq does to them.

    network      parameters, MACs, operators, pairs that are equalized, cost before and after
    ptq          seconds and memory of W8A8 with 64 samples, as the pipeline is, and to the nearest
    agreement    the signal-to-noise ratio of the answers, W8A8 and W4A8, per tensor and channel
    deploy       the network on integers against its simulation, and its ONNX file

Weights are random (see ``rows``), so nothing here says what a quantized network is worth; all of it
says that every network passes, how long it takes, and what is left in float. Each measure runs in a
process of its own, so that memory is that of one.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minq import graph
from minq.affine import sqnr
from minq.deploy import cost, integer
from minq.export import capture
from minq.fold import fold
from minq.graph.batches import flatten_outputs
from minq.ptq import channels
from minq.ptq.pipeline import ptq
from minq.simulate import activation_quantizers, insert_quantizers, quantizers
from minqbook.tables.rows import ROWS, Row

SAMPLES, FEW = 64, 8
NEAREST: dict[str, Any] = {"rounding": "nearest"}


def batches(x: Any, row: Row) -> list[Any]:
    """Samples one by one where pictures are large, else by fours: small tensors stay in caches."""
    size = 1 if row.size > 300 else 4
    if isinstance(x, Mapping):
        parts = zip(*(v.split(size) for v in x.values()), strict=True)
        return [dict(zip(x, part, strict=True)) for part in parts]
    return list(x.split(size))


def answers(model: nn.Module, x: Any) -> Tensor:
    """All numbers that a network answers."""
    with torch.no_grad():
        y = model(**x) if isinstance(x, Mapping) else model(x)
    return flatten_outputs(dict(y) if isinstance(y, Mapping) else y)


# --- The measures ---------------------------------------------------------------------------------


def network(row: Row) -> dict[str, Any]:
    """What the network is, and what it costs on the accelerator of chapter 2, for one sample."""
    model = row.build()
    gm = capture(model, row.example())
    nodes = len(gm.graph.nodes)
    sets = channels.shared_channels(fold(gm))
    costs = cost.layer_costs(insert_quantizers(gm))
    floats = cost.layer_costs(gm, floating=True)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "nodes": nodes,
        "layers": len(graph.layers(gm)),
        "quantizers": len(quantizers(gm)),
        "equalized": len(sets),
        "pairs": sum(c.pair for c in sets),
        "macs": sum(c.macs for c in costs.values()),
        **_cost("fp32", floats),
        **_cost("int8", costs),
    }


def _cost(name: str, costs: Mapping[str, cost.OperatorCost]) -> dict[str, Any]:
    return {
        f"{name}_cycles": cost.latency(costs),
        f"{name}_millijoules": round(1e3 * sum(c.total_energy for c in costs.values()), 4),
        f"{name}_dram_bytes": sum(c.dram_bytes for c in costs.values()),
    }


def time_and_memory(row: Row, **settings: Any) -> dict[str, Any]:
    """W8A8 with 64 samples: seconds on the clock and of the processor, and the peak of memory."""
    model, data = row.build(), batches(row.example(SAMPLES), row)
    clock, processor = time.perf_counter(), time.process_time()
    ptq(model, data, progress=False, **{**row.settings, **settings})
    return {
        "seconds": round(time.perf_counter() - clock, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def agreement(row: Row) -> dict[str, float]:
    """SQNR in dB of all answers to new samples, rounding to nearest, calibrated on a few."""
    gm = capture(row.build(), row.example())
    data, test = batches(row.example(FEW), row), batches(row.example(4, seed=1), row)[0]
    exact, found = answers(gm, test), {}
    for bits, per_channel in product((8, 4), (False, True)):
        settings = NEAREST | {"weights": bits, "per_channel": per_channel, "progress": False}
        name = f"W{bits}A8 per {'channel' if per_channel else 'tensor'}"
        found[name] = round(sqnr(exact, answers(ptq(gm, data, **settings), test)), 2)
    return found


def deploy(row: Row) -> dict[str, Any]:
    """W8A8 on integers, number by number, and as a file, for one sample."""
    from minq.deploy import onnx  # needs packages that no other table does

    gm = capture(row.build(), row.example())
    q = ptq(gm, batches(row.example(FEW), row), progress=False, **NEAREST)
    x = row.example(1, seed=1)
    net = integer.to_integer(q, multipliers="float")
    compared, differ = compare(net, q, x)
    result: dict[str, Any] = {"integers": compared, "differ": differ, "islands": len(net.islands)}
    result["islands_of"] = dict(Counter(text.split(":")[0] for text in net.islands.values()))
    y = answers(q, x)
    del net
    with tempfile.TemporaryDirectory() as folder:
        whole = onnx.to_onnx(fold(gm), Path(folder) / "float.onnx").stat().st_size
        path = onnx.to_onnx(q, Path(folder) / "quantized.onnx")
        result |= {
            "onnx_bytes": path.stat().st_size,
            "onnx_ratio": round(whole / path.stat().st_size, 3),
            "onnx_sqnr": round(sqnr(y, answers(onnx.load(path, threads=1), x)), 2),
            "onnx_operators": dict(onnx.fused(path).most_common()),
        }
    return result


def compare(net: integer.IntegerNetwork, q: nn.Module, x: Any) -> tuple[int, int]:
    """How many integers the network on integers gives, and how many the simulation has other."""
    found, differ, gm = net.trace(x), {}, integer.simulation(q)
    for name, quantizer in activation_quantizers(gm).items():

        def look(module, _, y, name=name):
            if name in found:
                scale, zero_point = module.scale_zero_point()
                differ[name] = int((torch.round(y / scale) + zero_point != found[name]).sum())

        quantizer.register_forward_hook(look)
    answers(gm, x.double() if isinstance(x, Tensor) else x)
    return sum(v.numel() for v in found.values()), sum(differ[name] for name in found)


MEASURES: dict[str, Callable[[Row], dict[str, Any]]] = {
    "network": network,
    "deploy": deploy,
    "ptq nearest": lambda row: time_and_memory(row, **NEAREST),
    "ptq": time_and_memory,
    "agreement": agreement,
}


def cells() -> Iterator[dict[str, Any]]:
    """Every measure of every row."""
    for measure, row in product(MEASURES, ROWS):
        yield {"row": row, "measure": measure}


def cell(given: dict[str, Any]) -> dict[str, Any]:
    """One measure of one row, in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (given["row"], given["measure"]))


def _measure(row: str, measure: str) -> dict[str, Any]:
    return MEASURES[measure](ROWS[row]) | {"threads": torch.get_num_threads()}
