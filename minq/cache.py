"""The cache of a decoder: keys and values of earlier tokens, kept in few bits.

A decoder that writes one token after the other keeps the keys and values of all tokens so far, for
each layer: 2 layers heads size numbers a token, more than its weights when the text is long. They
are written once and read for every later token, so that they pay for few bits like weights, though
nobody knows them before. Two ways to share a scale:

    per token      s, z from the values of the token, one head (or a group of them), when it comes
    per channel    s, z of each channel of each head, from calibration data

Keys have channels that are large for every token, values have not: so KIVI (Liu et al. 2024)
quantizes keys per channel and values per token.

All here take (..., heads, tokens, size), as attention computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minq import ranges
from minq._checks import as_float, check_count, compute_dtype, saturating_cast
from minq.affine import sqnr
from minq.granularity import Granularity
from minq.grid import Grid, integer_grid
from minq.quantizer import Quantizer
from minq.straight_through import fake_quantize_trained

PER = ("token", "channel")

_FLOAT = 16  # bits of a number that is not quantized, and of a scale


@dataclass(frozen=True)
class Cache:
    """How keys and values are stored.

    Args:
        bits: of both, 1 to 16, or a ``Grid``.
        keys, values: "channel" or "token", which share a scale.
        group: so many values of a token share a scale; by default all of one head.

    Raises:
        TypeError, ValueError: bits or a count out of range, or another kind of sharing.

    >>> Cache(4).values
    'token'
    """

    bits: int | Grid = 4
    keys: str = "channel"
    values: str = "token"
    group: int | None = None

    def __post_init__(self) -> None:
        integer_grid(self.bits)
        for name in ("keys", "values"):
            if (per := getattr(self, name)) not in PER:
                raise ValueError(f"{name} must be one of {', '.join(PER)}, not {per!r}")
        if self.group is not None:
            check_count(self.group, "group")

    @classmethod
    def made(cls, value: int | Grid | Cache | None) -> Cache | None:
        """The cache that a number of bits, or a grid, stands for; None is none.

        >>> Cache.made(8)
        Cache(bits=8, keys='channel', values='token', group=None)
        """
        return value if isinstance(value, Cache | None) else cls(value)

    def quantizer(self, kind: str, turned: bool = False) -> CacheQuantizer:
        """A quantizer for "keys" or "values"; turned: of (..., heads, size, tokens)."""
        per_channel = getattr(self, kind) == "channel"
        return CacheQuantizer(
            self.bits, per_channel=per_channel, group=self.group, turned=turned
        )


class CacheQuantizer(Quantizer):
    """A quantizer of keys or values, (..., heads, tokens, size).

    Per channel it keeps ranges like any other. Per token it finds a range in the values themselves
    whenever it is used, and what it has observed is not asked.

    >>> q = CacheQuantizer(4, per_channel=False)
    >>> _ = q(x := torch.tensor([[[[0.0, 1.5], [150.0, 0.0]]]]))
    >>> torch.equal(q.freeze()(x), x)  # each token has its own scale
    True
    """

    def __init__(
        self,
        bits: int | Grid = 4,
        *,
        per_channel: bool,
        group: int | None = None,
        turned: bool = False,
    ) -> None:
        estimator = "mse" if per_channel else "min_max"
        super().__init__(bits, axis=-1 if per_channel else None, estimator=estimator)
        self.tokens = None if per_channel else Granularity(0, group)
        """Which of the rows (tokens, size) share a scale; None for channels."""
        self.turned = turned

    @property
    def dynamic(self) -> bool:
        return self.tokens is not None

    def arranged(self, x: Tensor) -> Tensor:
        """Each channel of each head as a channel of its own: (..., tokens, heads size)."""
        if x.ndim < 3:
            return x
        x = x.mT if self.turned else x
        return x if x.ndim < 4 else x.transpose(-3, -2).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        if self.stage == "observe":
            self._observe(self.arranged(x))
        if self.stage in ("off", "observe"):
            return x
        y = x.mT if self.turned else x
        if self.tokens is not None:
            y = self._by_token(y)
        elif y.ndim < 4:
            y = super().forward(y)
        else:
            size = y.shape[-3], y.shape[-1]
            y = super().forward(self.arranged(x)).unflatten(-1, size).transpose(-3, -2)
        return y.mT if self.turned else y

    def _by_token(self, x: Tensor) -> Tensor:
        rows, granularity = x.reshape(-1, x.shape[-1]), self.tokens or Granularity(0)
        rows = rows.to(compute_dtype(rows))
        low, high = ranges.min_max(rows.detach(), axis=0, group=granularity.group)
        scale, zero_point = (
            granularity.align(v.to(rows), rows.shape) for v in self.grid.cover(low, high)
        )
        rows = fake_quantize_trained(rows, scale, zero_point, self.grid)
        return saturating_cast(rows.reshape(x.shape), x.dtype)

    def extra_repr(self) -> str:
        if self.tokens is None:
            return super().extra_repr()
        group = "" if self.tokens.group is None else f", group={self.tokens.group}"
        return f"bits={self.bits}, per token{group}, {self.stage}"


# --- Pure functions -------------------------------------------------------------------------------


@torch.no_grad()
def quantize_cache(keys: Tensor, values: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
    """Keys and values as they come out of the cache; ranges of channels are those of these data.

    Args:
        keys, values: (..., heads, tokens, size).
        cache: how they are stored.

    Returns:
        Both, in their shapes.

    Raises:
        TypeError, ValueError: for NaN, infinite, empty or integer tensors.

    >>> k, v = torch.rand(2, 1, 2, 8, 4)
    >>> [bool((a - b).abs().max() < 1 / 255) for a, b in
    ...  zip(quantize_cache(k, v, Cache(8)), (k, v), strict=True)]
    [True, True]
    """
    found = []
    for kind, x in (("keys", keys), ("values", values)):
        quantizer = cache.quantizer(kind)
        quantizer(as_float(x, kind))
        found.append(quantizer.freeze()(x))
    return found[0], found[1]


def attention_sqnr(
    queries: Tensor, keys: Tensor, values: Tensor, cache: Cache, *, causal: bool = True
) -> float:
    """The SQNR in dB behind softmax(q k^T / sqrt(size)) v, with keys and values from the cache.

    Args:
        queries, keys, values: (..., heads, tokens, size).
        cache: how keys and values are stored.
        causal: whether a token only sees those before it, and itself.

    Returns:
        Decibels.
    """
    attend = torch.nn.functional.scaled_dot_product_attention
    stored = quantize_cache(keys, values, cache)
    exact = attend(queries, keys, values, is_causal=causal)
    return sqnr(exact, attend(queries, *stored, is_causal=causal))


def cache_bytes(
    tokens: int, layers: int, heads: int, size: int, cache: Cache | int | None = None
) -> float:
    """Bytes that keys and values of so many tokens take, with their scales.

    A scale takes 16 bits and a zero-point as many as a value. Those of channels are stored once,
    those of tokens with each of them.

    Args:
        tokens: how many are kept.
        layers: of the network.
        heads: of keys and values in a layer; queries may have more.
        size: of a head.
        cache: how they are stored; None for floats of 16 bits.

    Returns:
        Bytes.

    >>> cache_bytes(1000, 30, 3, 64), cache_bytes(1000, 30, 3, 64, Cache(4, keys="token"))
    (23040000.0, 6210000.0)
    """
    counts: dict[str, Any] = {"tokens": tokens, "layers": layers, "heads": heads, "size": size}
    for name, count in counts.items():
        check_count(count, name)
    if (stored := Cache.made(cache)) is None:
        return 2 * tokens * layers * heads * size * _FLOAT / 8
    bits, total = integer_grid(stored.bits).bits, 0
    for per in (stored.keys, stored.values):
        scales = size if per == "channel" else tokens * -(-size // (stored.group or size))
        total += layers * heads * (tokens * size * bits + scales * (_FLOAT + bits))
    return total / 8
