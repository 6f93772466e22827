"""A language model in fewer bits: what SmolLM2 loses, by method, by layer, by tensor, by bytes.

The reference is the file's own network: its matrices lie on grids of 4 bits in groups of 32, the
table of its words in 8 bits. The table is left as it is in all rows.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import minq
from minq import floats
from minq.cache import Cache
from minq.measures import kl_divergence
from minq.ptq import AWQ, GPTQ, Nearest, ptq
from minqbook import zoo

LENGTH = 256  # tokens of a row
ROWS = 8  # to judge on: 2,048 tokens
COMPARED = 4  # of these also with the exact answers, word by word
CALIBRATION = 32  # rows to calibrate with
GROUPS = (0, 128, 64, 32, 16)
"""Weights that share a scale; 0 for all of an output channel."""

GIANT = 11
"""The layer behind which the first token holds a giant value."""

WORDS = ("words", "head")
"""Layers that keep the 8 bits of the file."""

PROMPT = "Once upon a time there was a little robot who"
QUESTION = "What is the capital of France?"


# --- The model and the text -----------------------------------------------------------------------


@functools.cache
def _tokens(split: str, rows: int) -> Tensor:
    return zoo.token_rows(zoo.smollm2_tokenizer(), zoo.prose(split), LENGTH, rows)


@functools.cache
def _answers() -> list[Tensor]:
    """The exact logits of the first rows."""
    model = zoo.smollm2()
    with torch.no_grad():
        return [model(row[None])[0] for row in _tokens("test", ROWS)[:COMPARED]]


@torch.no_grad()
def score(model: nn.Module, rows: int = ROWS) -> dict[str, float]:
    """Perplexity on ``rows`` of the test text, and the mean divergence from the exact answers on
    the first four, in nats."""
    losses, divergences = [], []
    for k, row in enumerate(_tokens("test", ROWS)[:rows]):
        logits = model(row[None])[0]
        losses.append(cross_entropy(logits[:-1], row[1:], reduction="none"))
        if k < COMPARED:
            divergences.append(kl_divergence(_answers()[k], logits))
    return {
        "perplexity": round(torch.cat(losses).double().mean().exp().item(), 3),
        "kl": round(torch.cat(divergences).mean().item(), 5),
    }


def bits_per_weight(bits: int, group: int, zero_point: str | None, inputs: int = 576) -> float:
    """The bits of a weight with its share of a 16-bit scale, and of a minimum where it has one.

    >>> bits_per_weight(4, 32, "real"), bits_per_weight(4, 32, None)
    (5.0, 4.5)
    """
    return bits + (16 if zero_point is None else 32) / (group or inputs)


# --- Weights --------------------------------------------------------------------------------------


def scheme(
    bits: int | minq.Grid, group: int, zero_point: str | None = None, weight_range: str = "mse"
) -> minq.Scheme:
    """Weights in groups of an output channel, activations in float, the words left alone."""
    return minq.Scheme(
        weights=bits,
        weight_range=weight_range,
        activations=None,
        per_channel=True,
        group_size=group or None,
        weight_zero_point=zero_point,
        skip="head",
    )


def round_weights(model: nn.Module, how: minq.Scheme, only: str = "") -> nn.Module:
    """The model with the matrices of its layers rounded to nearest, in place.

    ``only``: those whose name holds this, e.g. "layers.3." or ".query".
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and name.partition(".")[0] not in WORDS and only in name:
            quantizer = how.weight_quantizer(0)
            quantizer.observe()(weight.detach())
            weight.data = quantizer.freeze()(weight.detach())
    return model


NEAREST: dict[str, tuple[str | None, str]] = {
    "nearest": (None, "mse"),
    "minimum": ("real", "mse"),
    "min-max": (None, "min_max"),
}
"""Ways to round to nearest: the zero-point, and the rule for the range."""


BY_DATA: dict[str, dict[str, Any]] = {
    "gptq": {"rounding": GPTQ(), "equalize": False},
    "gptq, ranges": {"rounding": GPTQ(clip=True), "equalize": False},
    "awq": {"rounding": Nearest(), "equalize": AWQ(clip=True)},
    "awq, gptq": {"rounding": GPTQ(clip=True), "equalize": AWQ()},
    "awq, gptq, nf4": {"rounding": GPTQ(clip=True), "equalize": AWQ()},
}
"""Ways that look at data; the last one on the levels of NF4. GPTQ starts from MSE ranges, or
chooses them on its way."""


def _quantized(cell: dict[str, Any]) -> nn.Module:
    """The decoder of a row of weights."""
    method, bits, group = cell["method"], cell["bits"], cell["group"]
    if method in NEAREST:
        return round_weights(zoo.smollm2(), scheme(bits, group, *NEAREST[method]))
    model = zoo.smollm2()
    q = ptq(
        model,
        _tokens("calibration", CALIBRATION),
        scheme=scheme(floats.NF4 if method.endswith("nf4") else bits, group),
        progress=False,
        **BY_DATA[method],
    )
    return zoo.rebuilt(q, model)


def _weights(cell: dict[str, Any]) -> dict[str, Any]:
    zero_point = "real" if cell["method"] == "minimum" else None
    stored = {"stored": round(bits_per_weight(cell["bits"], cell["group"], zero_point), 3)}
    return stored | score(_quantized(cell))


def _one_part(cell: dict[str, Any]) -> dict[str, Any]:
    """One layer, or one kind of matrix in all layers, at few bits, all others as they were."""
    how = scheme(cell["bits"], cell["group"])
    return score(round_weights(zoo.smollm2(), how, only=cell["method"]), 2)


@torch.no_grad()
def _biases(cell: dict[str, Any]) -> dict[str, Any]:
    """What biases do to a model that has none: behind each matrix, rounded to nearest, eq. (27).

    The exact outputs are those of the exact network, so that a layer's bias also sees the errors of
    the layers before it.

    Returns:
        With the scores, numbers of matrices: all; lowered, whose squared error falls; behind, those
        that follow the giant; tripled, those of them with more than three times the error at the
        first token. worse: the most that this error is multiplied by.
    """
    rows = _tokens("calibration", CALIBRATION // 4)
    exact, q = zoo.smollm2(), round_weights(zoo.smollm2(), scheme(cell["bits"], cell["group"]))
    outputs, biases, of_first, of_all = {}, {}, {}, {}

    def keep(name: str, y: Tensor) -> None:
        outputs[name] = y

    def correct(name: str, y_hat: Tensor) -> Tensor:
        if name not in biases:
            error = y_hat - outputs[name]
            biases[name] = error.mean((0, 1))  # eq. (27)
            before, after = (e.square().sum((0, 2)) for e in (error, error - biases[name]))
            of_first[name], of_all[name] = (
                float(part(after) / part(before)) for part in (lambda v: v[0], torch.sum)
            )
        return y_hat - biases[name]

    for model, look in ((exact, keep), (q, correct)):
        for name, layer in model.layers.named_modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda _, inputs, y, n=name, f=look: f(n, y))
        model(rows)
    behind = [worse for n, worse in of_first.items() if int(n.partition(".")[0]) > GIANT]
    return score(q) | {
        "matrices": len(of_all),
        "lowered": sum(v < 1 for v in of_all.values()),
        "behind": len(behind),
        "tripled": sum(v > 3 for v in behind),
        "worse": round(max(of_first.values()), 1),
    }


def _text(cell: dict[str, Any]) -> dict[str, Any]:
    """What the model writes."""
    model, tokenizer = zoo.smollm2(), zoo.smollm2_tokenizer()
    if cell["bits"] < 16:
        model = round_weights(model, scheme(cell["bits"], cell["group"]))
    return {
        "goes on": zoo.generate(model, tokenizer, PROMPT, 24),
        "answers": zoo.generate(model, tokenizer, zoo.chat(QUESTION), 24),
    }


# --- Activations and the cache --------------------------------------------------------------------


SUMS = {pattern: {"activations": 16} for pattern in ("*.add*", "*.down")}
"""The residual stream, and what the MLPs add to it, in 16 bits."""


def _activations(cell: dict[str, Any]) -> dict[str, Any]:
    """Weights as they are, activations on integers, one range for a tensor."""
    sums = cell["method"] == "sums in 16 bits"
    q = ptq(
        zoo.smollm2(),
        _tokens("calibration", CALIBRATION // 4),
        weights=None,
        activations=cell["bits"],
        activation_range="output" if sums else cell["method"],
        layers=SUMS if sums else None,
        skip="head",
        rounding=Nearest(correct_bias=False),
        equalize=False,
        progress=False,
    )
    return score(q)


def _cache(cell: dict[str, Any]) -> dict[str, Any]:
    """Weights and activations as they are; keys and values in few bits."""
    q = ptq(
        zoo.smollm2(),
        _tokens("calibration", CALIBRATION // 4),
        weights=None,
        activations=None,
        cache=Cache(cell["bits"], keys=cell["method"]),
        rounding=Nearest(correct_bias=False),
        equalize=False,
        progress=False,
    )
    return score(q)


# --- What a token costs ---------------------------------------------------------------------------


def _fastest(run: Any, times: int = 30) -> float:
    """Seconds of the fastest of several runs: what others do on the machine only adds."""
    run()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _products(kind: str, shapes: list[tuple[int, int]]) -> tuple[Any, int]:
    """A function that multiplies one token with matrices of these shapes, and the bytes it reads.

    PyTorch's own kernels for processors; what the numbers are does not matter for time.
    """
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    inputs = {k: torch.ones(1, k, dtype=dtype) for _, k in shapes}
    if kind in ("float32", "bfloat16"):
        matrices = [torch.ones(n, k, dtype=dtype) for n, k in shapes]
        return lambda: [inputs[m.shape[1]] @ m.T for m in matrices], sum(
            m.nbytes for m in matrices
        )
    if kind == "int8":
        scales = {n: torch.ones(n, dtype=dtype) for n, _ in shapes}
        matrices = [torch.ones(n, k, dtype=torch.int8) for n, k in shapes]
        return lambda: [
            torch._weight_int8pack_mm(inputs[m.shape[1]], m, scales[len(m)]) for m in matrices
        ], sum(m.nbytes + 2 * len(m) for m in matrices)
    pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    packed = [(pack(torch.ones(n, k, dtype=torch.int32), 1), k) for n, k in shapes]
    ends = {(n, k): torch.ones(k // 32, n, 2, dtype=dtype) for n, k in shapes}
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda: [product(inputs[k], m, 32, ends[len(m), k]) for m, k in packed], sum(
        m.nbytes + ends[len(m), k].nbytes for m, k in packed
    )


def _decode(cell: dict[str, Any]) -> dict[str, Any]:
    """All matrices of all layers times one token; or just reading memory."""
    if cell["method"] == "reading":
        memory = torch.ones(100_000_000)
        return {"bytes": memory.nbytes, "ms": round(1e3 * _fastest(memory.sum), 2)}
    with torch.device("meta"):
        model = zoo.Decoder()
    shapes = [tuple(w.shape) for n, w in model.layers.named_parameters() if w.ndim == 2]
    run, read = _products(cell["method"], shapes)
    return {"bytes": read, "ms": round(1e3 * _fastest(run), 2)}


# --- All of it ------------------------------------------------------------------------------------

_MEASURE = {
    "weights": _weights,
    "part": _one_part,
    "biases": _biases,
    "text": _text,
    "activations": _activations,
    "cache": _cache,
    "decode": _decode,
}
PARTS = (
    *(f"layers.{k}." for k in range(30)),
    *(f".{m}." for m in ("query", "key", "value", "output", "gate", "up", "down")),
)


def cells() -> Iterator[dict[str, Any]]:
    """The cheap ones first, then what matters most."""

    def cell(experiment: str, method: str, bits: int, group: int) -> dict[str, Any]:
        return {"experiment": experiment, "method": method, "bits": bits, "group": group}

    for kind, bits in (("reading", 0), ("float32", 32), ("bfloat16", 16), ("int8", 8), ("int4", 4)):
        yield cell("decode", kind, bits, 32 if bits == 4 else 0)
    for bits in (16, 8, 4, 3, 2):
        yield cell("text", "nearest", bits, 32)
    for bits in (8, 4, 3, 2):
        for group in GROUPS:
            yield cell("weights", "nearest", bits, group)
    for bits in (4, 3, 2):
        for group in GROUPS[1:]:
            yield cell("weights", "minimum", bits, group)
    for bits in (4, 3):
        for group in (0, 128, 32):
            yield cell("weights", "min-max", bits, group)
    for rule in ("min_max", "output", "sums in 16 bits"):
        yield cell("activations", rule, 8, 0)
    for bits in (8, 4, 2):
        for keys in ("token", "channel"):
            yield cell("cache", keys, bits, 0)
    for part in PARTS:
        yield cell("part", part, 3, 32)
    yield cell("biases", "mean error", 4, 32)
    for method in ("gptq", "gptq, ranges", "awq", "awq, gptq"):
        for group in (32, 128) if method.startswith("awq") else (32, 128, 0):
            for bits in (4, 3):
                yield cell("weights", method, bits, group)
    for group in (32, 128):
        yield cell("weights", "awq, gptq, nf4", 4, group)
    yield cell("weights", "gptq", 2, 32)


def cell(chosen: dict[str, Any]) -> dict[str, Any]:
    return _MEASURE[chosen["experiment"]](chosen)
