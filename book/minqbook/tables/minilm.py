"""What helps a transformer at 8 bits: MiniLM's sentence vectors, and the small text encoder."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from minq.affine import sqnr
from minq.deploy.integer import to_integer
from minq.export import capture
from minq.ptq.pipeline import ptq
from minq.ptq.smooth import smooth
from minqbook import zoo
from minqbook.tables.settings import NAIVE

LENGTH = 20  # tokens of a calibration row; the longest test sentence has as many

SUMS = {
    "minilm": ("*.add", "*.mlp.2"),
    "text_encoder": ("layers.*.add", "*.mlp.2"),
}
"""Patterns of ``insert_quantizers``: the sums of the residual stream, and what MLPs add to them."""

ALONE: dict[str, dict[str, Any]] = {
    "naive": {},
    "MSE ranges": {"ranges": "mse"},
    "weights per channel": {"per_channel": True},
    "smoothing": {"alpha": 0.5},
    "sums in 16 bits": {"sums": {"activations": 16}},
    "sums in 2 groups": {"sums": {"groups": 2}},
    "sums in 8 groups": {"sums": {"groups": 8}},
    "sums, all channels": {"sums": {"groups": -1}},
}
"""Each on top of min-max ranges, one for a tensor, and rounding to nearest."""

_CHANNELS = {"sums": {"groups": 2}, "per_channel": True}
_SIXTEEN = {"sums": {"activations": 16}, "per_channel": True, "alpha": 0.5, "ranges": "mse"}
TOGETHER: dict[str, dict[str, Any]] = {
    "2 groups, per channel": _CHANNELS,
    "2 groups, per channel, smoothing": _CHANNELS | {"alpha": 0.5},
    "2 groups, per channel, smoothing, MSE": _CHANNELS | {"alpha": 0.5, "ranges": "mse"},
    "the same, biases corrected": _CHANNELS
    | {"alpha": 0.5, "ranges": "mse", "rounding": "nearest"},
    "the same, AdaRound": _CHANNELS | {"alpha": 0.5, "ranges": "mse", "rounding": "adaround"},
    "16 bits, per channel, smoothing, MSE": _SIXTEEN,
    "that one as integers": _SIXTEEN | {"integers": True},
}
"""One after the other. "The same" is the row with MSE."""

WAYS = ALONE | TOGETHER


def cells() -> Iterator[dict[str, Any]]:
    for network in SUMS:
        for way in WAYS:
            yield {"network": network, "way": way}


@functools.cache
def _data(network: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The network, calibration inputs, test inputs, and what full precision answers to them."""
    if network == "minilm":
        model = zoo.minilm()
        calibration = zoo.windows(zoo.sentences("calibration"), LENGTH)
        test = zoo.tokenize(zoo.sentences())
    else:
        model = zoo.load(network)
        calibration, test = zoo.calibration_set(network, 128), zoo.test_set(network)[0]
    return model, calibration, test, _answers(network, model, test)


def _answers(network: str, model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.cat([model(part) for part in x.split(250)])
    return normalize(y) if network == "minilm" else y


def quantized(network: str, way: str) -> nn.Module:
    """The network as that row of the table has it."""
    options = WAYS[way]
    model, calibration, *_ = _data(network)
    gm = capture(model, calibration)
    if "alpha" in options:
        smooth(gm, calibration, alpha=options["alpha"])
    per_channel, ranges = options.get("per_channel", False), options.get("ranges", "min_max")
    sums = options.get("sums", {})
    if sums.get("groups") == -1:
        sums = {
            "groups": next(m for m in model.modules() if isinstance(m, nn.LayerNorm)).weight.numel()
        }
    layers = {pattern: sums | {"per_channel": per_channel} for pattern in SUMS[network]}
    settings: dict[str, Any] = NAIVE | {"weight_range": ranges, "activation_range": ranges}
    settings |= {"rounding": options.get("rounding", NAIVE["rounding"])}
    settings |= {"per_channel": per_channel}
    q = ptq(gm, calibration, layers=layers if sums else None, progress=False, **settings)
    return to_integer(q) if "integers" in options else q


def nearest(vectors: Tensor) -> Tensor:
    """For each unit vector the place of that with the largest cosine, other than itself."""
    similarity = vectors @ vectors.T
    return similarity.fill_diagonal_(-torch.inf).argmax(1)


def scores(network: str, q: nn.Module) -> dict[str, float]:
    """SQNR of the answers in dB; and in percent how many are the same, and how many are right.

    MiniLM's answer to a sentence is the nearest other sentence, right if it says the same. offset:
    the part of the error's energy that all answers have in common.
    """
    _, _, x, exact = _data(network)
    y = _answers(network, q, x)
    if network == "minilm":
        before, after = nearest(exact), nearest(y)
        right = (torch.arange(len(x)) + len(x) // 2) % len(x)
    else:
        before, after, right = exact.argmax(1), y.argmax(1), zoo.test_set(network)[1]
    same, found = ((after == other).float().mean().item() for other in (before, right))
    error = y - exact
    offset = error.mean(0).square().sum() / error.square().sum(1).mean()
    shares = {"same": same, "right": found, "offset": offset.item()}
    return {"sqnr": round(sqnr(exact, y), 2)} | {k: round(100 * v, 2) for k, v in shares.items()}


def cell(chosen: dict[str, Any]) -> dict[str, float]:
    return scores(chosen["network"], quantized(chosen["network"], chosen["way"]))
