"""A decoder: the language model that reads tokens and says, after each, what may come next.

In the manner of Llama: h = x + attention(norm(x)), y = h + mlp(norm(h)), in every layer. Keys and
values are shared by several heads (grouped queries); places are told by turning pairs of channels
(RoPE); the last step compares with the same table that the first step looked words up in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minq

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, T, size) of the tokens so far, of each layer."""


@dataclass(frozen=True)
class Sizes:
    """Of SmolLM2-135M, where nothing else is said."""

    vocabulary: int = 49152
    width: int = 576
    hidden: int = 1536
    layers: int = 30
    heads: int = 9
    shared: int = 3  # heads of keys and values
    longest: int = 8192
    base: float = 100000.0
    epsilon: float = 1e-5


class Turns(NamedTuple):
    """Cosines and sines of RoPE, (T, size of a head) each."""

    cos: Tensor
    sin: Tensor


def turns(length: int, size: int, base: float) -> Turns:
    """The angle of place t and pair i is t base^(-2i / size).

    >>> turns(4, 2, 10000.0).cos[:, 0]
    tensor([ 1.0000,  0.5403, -0.4161, -0.9900])
    """
    frequency = base ** (-torch.arange(0, size, 2).double() / size)
    angle = torch.outer(torch.arange(length).double(), frequency).repeat(1, 2)
    return Turns(angle.cos().float(), angle.sin().float())


def rotate(x: Tensor, by: Turns) -> Tensor:
    """RoPE: channels i and i + size/2 of (..., T, size) are a pair, turned by its angle.

    >>> rotate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), turns(2, 2, 10000.0))
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    first, second = x.chunk(2, -1)
    return x * by.cos + torch.cat([-second, first], -1) * by.sin


class Attention(nn.Module):
    """Each token asks (query) all before it (key), and takes what they offer (value)."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.size = s.width // s.heads
        self.query = nn.Linear(s.width, s.width, bias=False)
        self.key = nn.Linear(s.width, s.shared * self.size, bias=False)
        self.value = nn.Linear(s.width, s.shared * self.size, bias=False)
        self.output = nn.Linear(s.width, s.width, bias=False)

    def forward(self, x: Tensor, by: Turns, past: Cache | None = None) -> Tensor:
        """``past`` is None, or has this layer's past first, which goes to its end, longer."""
        split = lambda y: y.unflatten(-1, (-1, self.size)).transpose(1, 2)  # noqa: E731
        query, key = rotate(split(self.query(x)), by), rotate(split(self.key(x)), by)
        value, causal = split(self.value(x)), True
        if past is not None:
            causal = past[0][0].shape[2] == 0
            key, value = (torch.cat(p, 2) for p in zip(past.pop(0), (key, value), strict=True))
            past.append((key, value))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
        return self.output(y.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.gate = nn.Linear(s.width, s.hidden, bias=False)
        self.up = nn.Linear(s.width, s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(s.width, s.epsilon) for _ in range(2))
        self.attention, self.mlp = Attention(s), GatedMLP(s)

    def forward(self, x: Tensor, by: Turns, past: Cache | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), by, past)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Tokens (B, T), int64, to logits (B, T, vocabulary): row t says what may follow token t."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: Sizes = Sizes()) -> None:  # noqa: B008
        super().__init__()
        self.sizes = s = sizes
        self.words = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(DecoderLayer(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.width, s.epsilon)
        self.head = nn.Linear(s.width, s.vocabulary, bias=False)
        self.head.weight = self.words.weight
        for name, table in turns(s.longest, s.width // s.heads, s.base)._asdict().items():
            self.register_buffer(name, table, persistent=False)

    def empty_cache(self, batch: int = 1) -> Cache:
        """What ``forward`` takes along, for the first tokens of ``batch`` texts."""
        s = self.sizes
        nothing = self.words.weight.new_zeros(batch, s.shared, 0, s.width // s.heads)
        return [(nothing, nothing)] * s.layers

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """With a cache, ``tokens`` are only the new ones; those before are in it, these come in."""
        start = 0 if cache is None else cache[0][0].shape[2]
        stop = start + tokens.shape[1]
        by = Turns(self.cos[start:stop], self.sin[start:stop])
        x = self.words(tokens)
        for layer in self.layers:
            x = layer(x, by, cache)
        return self.head(self.norm(x))


@torch.no_grad()
def continuation(model: nn.Module, tokens: list[int], count: int, stop: int = -1) -> list[int]:
    """What a model says next, the likeliest token each time, at most ``count`` or up to ``stop``.

    A ``Decoder`` computes each token once and keeps its keys and values. Any other module is given
    all tokens (1, T) anew for each next one; a captured one the last as many as it was captured
    with, filled up behind them, which no token sees.

    Args:
        model: in eval mode.
        tokens: the beginning, at least one.
        count: how many more.
        stop: a token that ends it, and is not part of the answer.
    """
    length = fixed_length(model)
    cache = model.empty_cache() if isinstance(model, Decoder) else None
    said: list[int] = []
    fresh = tokens
    for _ in range(count):
        if cache is not None:
            logits = model(torch.tensor([fresh]), cache)[0, -1]
        else:
            last = (tokens + said)[-(length or 0) :]
            padded = last + [0] * ((length or 0) - len(last))
            logits = model(torch.tensor([padded]))[0, len(last) - 1]
        fresh = [int(logits.argmax())]
        if fresh[0] == stop:
            break
        said += fresh
    return said


def fixed_length(model: nn.Module) -> int | None:
    """How many tokens a captured network takes, if it is one and takes no other number."""
    if not isinstance(model, torch.fx.GraphModule):
        return None
    value = next(n for n in model.graph.nodes if n.op == "placeholder").meta.get("val")
    length = None if value is None else value.shape[1]
    return length if isinstance(length, int) else None


@torch.no_grad()
def rebuilt(q: torch.fx.GraphModule, like: Decoder) -> Decoder:
    """A ``Decoder`` that computes what a quantized one does: each weight is on its grid.

    It keeps a cache and takes texts of any length, so it writes many times as fast.

    Args:
        q: of ``minq.ptq(like, ..., activations=None)``: only its weights are quantized.
        like: the decoder that q was made from; it stays as it is.

    Raises:
        ValueError: where q quantizes more than weights, or has other parameters.
    """
    if active := minq.simulate.activation_quantizers(q):
        raise ValueError(
            f"{next(iter(active))} quantizes an activation, which a Decoder does not; pass "
            "activations=None to minq.ptq"
        )
    with torch.device("meta"):
        model = Decoder(like.sizes)
    model.cos, model.sin = like.cos, like.sin
    parameters = dict(q.named_parameters())
    for name, norm in model.named_modules():
        if isinstance(norm, nn.RMSNorm):
            norm.weight = nn.Parameter(parameters[f"{name}.weight"].clone())
    # Both compute them in this order. By name, words and head may be one or two.
    ours = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.Linear)]
    nodes = filter(minq.graph.is_layer, q.graph.nodes)
    for layer, node in zip(ours, nodes, strict=True):
        layer.weight = nn.Parameter(minq.graph.rounded_weight_of(q, node))
        bias = minq.graph.bias_of(q, node)
        if bias is not None and bias.any():  # a correction
            layer.bias = nn.Parameter(bias.detach().clone())
    return model.eval()
