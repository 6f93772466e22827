"""Small networks that together use every operator the library knows, for the tests of the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import minq
from minqbook import zoo


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, its batch norms as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for v, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                if v is not None:
                    v.data.copy_(torch.rand(v.shape, generator=generator) * (high - low) + low)
    return model.eval()


class Lambda(nn.Module):
    """Some layers by name, and a function of them and the inputs."""

    def __init__(self, function, **layers) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)

    def forward(self, *args):
        return self.function(self, *args)


class Residual(nn.Module):
    """A block whose addition and ReLU both work in place, as torchvision's."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Keywords(nn.Module):
    """Two inputs and an option; several results, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, u: Tensor, v: Tensor, double: bool = False) -> dict[str, Tensor]:
        s = self.a(u) + self.b(v)
        return {"sum": 2 * s if double else s, "first": self.a(u).relu()}


class Attention(nn.Module):
    """Words in, classes out: embedding, learned positions, masked attention."""

    def __init__(self, words: int = 11, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Parameter(0.1 * torch.randn(6, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2)
        )
        mask = (tokens != 0)[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm(x + self.out(y.transpose(1, 2).flatten(2)))
        return self.head(x.mean(1))


def mobile(activation=nn.ReLU6, width: int = 6) -> nn.Sequential:
    """A depthwise triple between two ordinary layers, global pooling and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width),
        activation(),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width),
        activation(),
        nn.Conv2d(width, 8, 1, bias=False), nn.BatchNorm2d(8), activation(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def _sequence(*layers):
    return lambda: nn.Sequential(*(layer() for layer in layers))


def _l(cls, *args, **kwargs):
    return lambda: cls(*args, **kwargs)


def _two_norms(m, x):
    return m.norm1(m.conv(x)).relu() + m.norm2(m.conv(x.flip(3))).relu()


def _floor(m, x):
    y = m.conv(x).relu_()
    z = y[:, :2]
    z.mul_(2)
    y.add_(1)
    return y + F.dropout(z, 0.5, m.training).sum(1, keepdim=True)


def _overwritten_under_a_view(m, x):
    y = m.linear(x)
    z = y.view(-1, 2, 2)
    y.relu_()
    return z.sum(2) + y[:, :2]


def _tied(m, tokens):
    return m.head(m.words(tokens).relu())


def tied():
    m = Lambda(_tied, words=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False))
    m.head.weight = m.words.weight
    return m


image, vectors = (3, 8, 8), (6,)

NETWORKS = {
    "conv1d": (_l(nn.Conv1d, 3, 4, 3, padding=1), (3, 9)),
    "conv2d": (_l(nn.Conv2d, 3, 4, 3, stride=2, bias=False), image),
    "conv3d": (_sequence(_l(nn.Conv3d, 2, 3, 3), _l(nn.BatchNorm3d, 3), nn.ReLU), (2, 4, 5, 5)),
    "grouped": (_sequence(_l(nn.Conv2d, 4, 6, 3, groups=2), _l(nn.BatchNorm2d, 6)), (4, 6, 6)),
    "dilated": (
        _sequence(_l(nn.Conv2d, 3, 4, 3, dilation=2, padding="same"), nn.ReLU),
        image,
    ),
    "reflected": (_l(nn.Conv2d, 3, 4, 3, padding=1, padding_mode="reflect"), image),
    "transposed": (
        _sequence(
            _l(nn.ConvTranspose2d, 4, 6, 3, stride=2, groups=2, output_padding=1, padding=1),
            _l(nn.BatchNorm2d, 6), nn.ReLU, _l(nn.ConvTranspose2d, 6, 2, 2),
        ),
        (4, 4, 4),
    ),
    "transposed1d": (_sequence(_l(nn.ConvTranspose1d, 3, 4, 3), _l(nn.BatchNorm1d, 4)), (3, 5)),
    "linear2d": (
        _sequence(_l(nn.Linear, 6, 5), _l(nn.BatchNorm1d, 5), nn.Hardtanh, _l(nn.Linear, 5, 3)),
        vectors,
    ),
    "linear3d": (_sequence(_l(nn.Linear, 6, 7), nn.GELU, _l(nn.Linear, 7, 2)), (5, 6)),
    "a batch norm over time": (_sequence(_l(nn.Linear, 6, 5), _l(nn.BatchNorm1d, 5)), (5, 6)),
    "a batch norm of the batch": (
        _sequence(_l(nn.Conv2d, 3, 4, 3), _l(nn.BatchNorm2d, 4, track_running_stats=False)),
        image,
    ),
    "plain batch norm": (
        _sequence(_l(nn.Conv2d, 3, 4, 3), _l(nn.BatchNorm2d, 4, affine=False), nn.LeakyReLU),
        image,
    ),
    "activations": (
        _sequence(
            _l(nn.Conv2d, 3, 4, 3), _l(nn.Hardswish, inplace=True), _l(nn.Conv2d, 4, 4, 1),
            _l(nn.SiLU, inplace=True), _l(nn.PReLU, 4), _l(nn.Conv2d, 4, 4, 1), nn.GELU,
            nn.Hardsigmoid, _l(nn.Dropout, 0.5), nn.Tanh, nn.ELU, nn.Mish, nn.Softplus,
        ),
        image,
    ),
    "norms": (
        _sequence(
            _l(nn.Conv2d, 3, 4, 3), _l(nn.GroupNorm, 2, 4), _l(nn.InstanceNorm2d, 4), nn.ReLU6,
            _l(nn.LayerNorm, [4, 6, 6]), _l(nn.Softmax, dim=1),
        ),
        image,
    ),
    "pooling": (
        _sequence(
            _l(nn.MaxPool2d, 2), _l(nn.Conv2d, 3, 4, 3, padding=1), _l(nn.AvgPool2d, 2),
            _l(nn.Upsample, scale_factor=2, mode="bilinear"), _l(nn.Upsample, scale_factor=2),
            _l(nn.PixelShuffle, 2), _l(nn.AdaptiveMaxPool2d, 2), _l(nn.AdaptiveAvgPool2d, 1),
            nn.Flatten, _l(nn.Linear, 1, 2),
        ),
        image,
    ),
    "concatenation": (
        lambda: Lambda(
            lambda m, x: torch.cat([m.a(x).relu(), m.b(x), x], 1),
            a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 2, 3, padding=1),
        ),
        image,
    ),
    "split": (
        lambda: Lambda(
            lambda m, x: m.b(torch.cat([t * 2 for t in m.a(x).split([2, 4], 1)], 1)),
            a=nn.Linear(6, 6), b=nn.Linear(6, 3),
        ),
        vectors,
    ),
    "matmul": (
        lambda: Lambda(
            lambda m, x: torch.bmm(m.a(x) @ m.w, x.transpose(1, 2)).softmax(-1),
            a=nn.Linear(6, 4), w=nn.Parameter(torch.randn(4, 6)),
        ),
        (5, 6),
    ),
    "attention": (
        lambda: Lambda(
            lambda m, x: m.a(x, x, x, need_weights=False)[0],
            a=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        (5, 8),
    ),
    "attention with weights": (
        lambda: Lambda(lambda m, x: m.a(x, x, x), a=nn.MultiheadAttention(8, 2, batch_first=True)),
        (5, 8),
    ),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True),
        (5, 8),
    ),
    "residual": (_sequence(Residual, Residual), (4, 6, 6)),
    "mobile": (mobile, image),
    "shared convolution": (
        lambda: Lambda(
            _two_norms, conv=nn.Conv2d(3, 4, 3), norm1=nn.BatchNorm2d(4), norm2=nn.BatchNorm2d(4)
        ),
        image,
    ),
    "overwriting": (lambda: Lambda(_floor, conv=nn.Conv2d(3, 4, 3)), image),
    "a view overwritten": (
        lambda: Lambda(_overwritten_under_a_view, linear=nn.Linear(6, 4)),
        vectors,
    ),
    "two results": (
        lambda: Lambda(
            lambda m, x: (m.a(x), [m.b(x).relu(), x.mean(1)]), a=nn.Linear(6, 2), b=nn.Linear(6, 3)
        ),
        vectors,
    ),
    "buffer": (
        lambda: Lambda(lambda m, x: m.a(x) * m.k + m.k, a=nn.Linear(6, 4), k=torch.randn(4)),
        vectors,
    ),
}  # fmt: skip
"""Name: how to make it, and the shape of one input."""


def network(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """One of ``NETWORKS``, settled, and the shape of one sample."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settle(make(), seed), shape


@cache
def _captured(name: str) -> tuple[nn.Module, fx.GraphModule]:
    model, shape = network(name)
    return model, minq.capture(model, noise(1, *shape))


def captured(name: str) -> tuple[nn.Module, fx.GraphModule, tuple[int, ...]]:
    """One of ``NETWORKS``, a fresh copy of its graph, and the shape of one sample."""
    model, gm = _captured(name)
    return model, copy.deepcopy(gm), NETWORKS[name][1]


def made_once(make: Callable[..., fx.GraphModule]) -> Callable[..., fx.GraphModule]:
    """Fresh copies of a graph: to capture a network takes longer than most tests."""
    made = cache(make)
    return lambda *args: copy.deepcopy(made(*args))


@made_once
def zoo_graph(name: str) -> fx.GraphModule:
    """One of ``zoo.NAMES``."""
    return minq.capture(zoo.load(name), zoo.calibration_set(name, 2))


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers of their own generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# What moves the numbers of rows of shape (B, 4, 6) and computes nothing, by the operator's name.
MOVES = {
    "roll": lambda y: y.roll(1, 1),
    "flip": lambda y: y.flip(1),
    "rot90": lambda y: y.rot90(1, (1, 2)),
    "tile": lambda y: y.tile(1, 2, 1),
    "repeat": lambda y: y.repeat(1, 2, 1),
    "repeat_interleave": lambda y: y.repeat_interleave(2, 1),
    "index": lambda y: y[:, [0, 2]],
    "index_select": lambda y: y.index_select(1, torch.tensor([3, 1])),
    "gather": lambda y: y.gather(1, torch.zeros(y.size(0), 2, 6, dtype=torch.long)),
    "diagonal": lambda y: y.diagonal(0, 1, 2),
}
