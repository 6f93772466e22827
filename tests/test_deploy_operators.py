"""Every operator on integers: what it moves, looks up, fills in or leaves to floats, and says so.

The oracle is torch's own kernel in double precision, in ``simulation``: the integers must be the
levels of what it computes, at every quantizer.
"""

import warnings
from collections.abc import Callable

import pytest
import torch
from integers import assert_same, quantized
from networks import MOVES, Lambda, noise
from torch import nn
from torch.nn import functional as F

warnings.filterwarnings("ignore", message=".*is not among the operators that are quantized")


class Branch(nn.Module):
    """A layer before and behind a function."""

    def __init__(self, function: Callable, x: torch.Tensor, layer: Callable) -> None:
        super().__init__()
        self.function, self.a = function, layer(x)
        self.b = layer(function(self.a(x)))

    def forward(self, x):
        return self.b(self.function(self.a(x)))


class Branches(nn.Module):
    """Every function on its own, of one input."""

    def __init__(self, functions: dict[str, Callable], x: torch.Tensor, layer: Callable) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({k: Branch(f, x, layer) for k, f in functions.items()})

    def forward(self, x):
        return {name: branch(x) for name, branch in self.branches.items()}


def _linear(x):
    return nn.Linear(x.shape[-1], 6)


def _conv(x):
    return nn.Conv2d(x.shape[1], 4, 1)


FUNCTIONS = {
    "pow": lambda y: y**3,
    "pow of": lambda y: 2.0**y,
    "square": lambda y: y.square(),
    "abs": lambda y: y.abs(),
    "sign": lambda y: y.sign(),
    "floor": lambda y: (3 * y).floor(),
    "exp": lambda y: y.exp(),
    "sin and cos": lambda y: torch.cat([y.sin(), y.cos()], -1),
    "sqrt": lambda y: y.relu().sqrt(),
    "erf": lambda y: y.erf(),
    "selu": F.selu,
    "celu": F.celu,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "log_sigmoid": F.logsigmoid,
    "threshold": lambda y: F.threshold(y, 0.1, -0.3),
    "clamp_max": lambda y: y.clamp(max=0.2),
    "clamp_min": lambda y: y.clamp(min=-0.1),
    "remainder": lambda y: y.remainder(0.7),
    "several in a row": lambda y: y.sigmoid().mul(2).sub(1).abs(),
    "a function of a number less it": lambda y: 1 - y.sigmoid(),
    "square relu": lambda y: y.relu().square(),
}

MOVING = {
    "amax": lambda y: y.amax(1, keepdim=True).expand(-1, 2, -1),
    "amin": lambda y: y.amin(1),
    "max": lambda y: y.max(1)[0],
    "min": lambda y: y.min(1).values,
    "maximum": lambda y: torch.maximum(y[:, :2], y[:, 2:]),
    "minimum of layers": lambda y: torch.minimum(y.relu(), 1 - y),
    "max of two": lambda y: torch.max(y, y.flip(1)),
    "topk": lambda y: y.topk(3, -1)[0],
    "sort": lambda y: y.sort(-1, descending=True)[0],
    "max of a turned grid": lambda y: (y * -2).amax(1),
    "pooled upside down": lambda y: F.max_pool1d(-2 * y, 2),
    "argmax as index": lambda y: y.gather(1, y.argmax(1, keepdim=True)),
    "reshape_as": lambda y: y.reshape_as(y.transpose(1, 2)).transpose(1, 2),
    "view_as": lambda y: y.flatten(1).view_as(y),
    **MOVES,
    "repeat_interleave unevenly": lambda y: y.repeat_interleave(torch.tensor([1, 2, 0, 1]), 1),
    "unfold": lambda y: y.unfold(1, 2, 1).flatten(2),
    "tril": lambda y: y.tril(),
    "triu": lambda y: (y + 1).triu(1),
    "index by two": lambda y: y[:, [0, 2], [1, 3]],
    "take_along_dim": lambda y: y.take_along_dim(torch.tensor([[[0], [2]]]), 1),
}

CONSTANTS = {
    "masked_fill": lambda y: y.masked_fill(torch.eye(4, 6).bool(), 0.0),
    "masked_fill off the grid": lambda y: y.masked_fill(torch.eye(4, 6).bool(), 0.123),
    "index_fill": lambda y: y.index_fill(1, torch.tensor([1]), 0.0),
    "padded": lambda y: F.pad(y, (1, 1, 0, 2)),
    "padded with one": lambda y: F.pad(y, (1, 1), value=1.0),
    "padded less": lambda y: F.pad(y, (-1, 1)),
    "zeros_like": lambda y: torch.cat([y, torch.zeros_like(y)], 1),
    "ones_like": lambda y: torch.cat([y, torch.ones_like(y)], 1),
    "ones_like added": lambda y: y + torch.ones_like(y),
    "full_like": lambda y: torch.cat([torch.full_like(y, 0.3), y], 1),
    "new_zeros": lambda y: torch.cat([y.new_zeros(y.size(0), 1, 6), y], 1),
    "new_full": lambda y: torch.cat([y.new_full((y.size(0), 1, 6), -0.7), y], 1),
    "new_ones": lambda y: torch.cat([y.new_ones(y.size(0), 1, 6), y], 1),
    "zeros": lambda y: torch.cat([y, torch.zeros(y.size(0), 1, 6)], 1),
    "full": lambda y: torch.stack([y, torch.full((4, 6), 2.5).expand_as(y)], 1),
    "only zeros": lambda y: torch.zeros_like(y),
    "zeros without a layer": lambda y: torch.zeros(4, 6).expand_as(y) + y,
    "fill": lambda y: torch.cat([y, torch.empty_like(y).fill_(0.5)], 1),
    "roll into zeros": lambda y: torch.cat([y[:, 1:], torch.zeros_like(y[:, :1])], 1),
    "where zeros": lambda y: torch.where(torch.eye(4, 6).bool(), y, torch.zeros_like(y)),
    "where a number": lambda y: torch.where(torch.eye(4, 6).bool(), y, 0.25),
    "where the other": lambda y: torch.where(torch.eye(4, 6).bool(), 0.0, y),
    "where two": lambda y: torch.where(torch.eye(4, 6).bool(), y, y.flip(1)),
    "where of layers": lambda y: torch.where(torch.eye(4, 6).bool(), y.relu(), y * 2),
}

ROWS = {
    "layer_norm": lambda y: F.layer_norm(y, (6,)),
    "rms_norm": lambda y: F.rms_norm(y, (6,), torch.linspace(0.5, 2, 6), 1e-6),
    "rms_norm of two": lambda y: F.rms_norm(y, (4, 6), None, 1e-5),
    "group_norm": lambda y: F.group_norm(y, 2, torch.linspace(-1, 2, 4), torch.ones(4)),
    "instance_norm": lambda y: F.instance_norm(y),
    "softmax": lambda y: y.softmax(-1),
    "log_softmax": lambda y: y.log_softmax(-1),
    "log_softmax over rows": lambda y: (5 * y).log_softmax(1),
    "cumsum": lambda y: y.cumsum(1),
    "rsub": lambda y: torch.rsub(y, 2.0),
    "alpha": lambda y: torch.add(y, y.flip(1), alpha=3),
    "a constant added": lambda y: y + torch.linspace(-1, 1, 6),
    "mean": lambda y: y.mean(1),
    "positions": lambda y: y + torch.arange(6) / 6,
    "linspace": lambda y: y * torch.linspace(0, 1, 6),
    "softmax in float32": lambda y: y.softmax(-1, dtype=torch.float32),
    "zeros in float32": lambda y: torch.cat(
        [y, torch.zeros(y.size(0), 1, 6, dtype=torch.float32)], 1
    ),
    "to float32 and half": lambda y: (y.to(torch.float32) * 2).half().float(),
    "sum in float32": lambda y: y.sum(1, dtype=torch.float32),
    "scalar_tensor": lambda y: y * torch.tensor(0.3) + torch.tensor(1),
}

IMAGES = {
    "max_pool padded": lambda y: F.max_pool2d(y, 3, 2, padding=1),
    "max_pool with indices": lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
    "max_pool dilated": lambda y: F.max_pool2d(y, 2, 1, dilation=2, ceil_mode=True),
    "adaptive_max_pool": lambda y: F.adaptive_max_pool2d(y, 2, return_indices=True)[0],
    "unpooled": lambda y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2),
    "max_pool upside down": lambda y: F.max_pool2d(y * -1.5, 2),
    "avg_pool not counting": lambda y: F.avg_pool2d(y, 3, 1, padding=1, count_include_pad=False),
    "nearest": lambda y: F.interpolate(y, size=(7, 5)),
    "bilinear": lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),
    "pixel_shuffle": lambda y: F.pixel_shuffle(y, 2),
    "pixel_unshuffle": lambda y: F.pixel_unshuffle(y, 2),
    "channel_shuffle": lambda y: F.channel_shuffle(y, 2),
    "im2col": lambda y: F.unfold(y + 1, 2, padding=1).unsqueeze(-1),
    "reflected": lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "replicated": lambda y: F.pad(y, (1, 2, 0, 1), mode="replicate"),
    "circular": lambda y: F.pad(y, (1, 1, 1, 1), mode="circular"),
    "padded with a number": lambda y: F.pad(y, (1, 1, 1, 1), value=0.3),
    "padded for a maximum": lambda y: F.max_pool2d(F.pad(y, (1, 1), value=float("-inf")), 3),
    "temporal shift": lambda y: torch.cat(
        [torch.cat([y[1:, :1], torch.zeros_like(y[:1, :1])]), y[:, 1:]], 1
    ),
    "group_norm": lambda y: F.group_norm(y, 2),
    "instance_norm": lambda y: F.instance_norm(y),
    "layer_norm of channels": lambda y: F.layer_norm(y.movedim(1, 3), (4,)).movedim(3, 1),
    "relu variants": lambda y: F.rrelu(F.relu6(F.hardtanh(y, -0.5, 2.0))),
    "glu": lambda y: F.glu(y, 1),
    "scaled by its mean": lambda y: y * y.mean((2, 3), keepdim=True).sigmoid(),
    "flatten": lambda y: y.flatten(2).unsqueeze(-1),
}


class Sliced(nn.Module):
    """Slices written into zeros, in every way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(6, 6), nn.Linear(6, 3), how

    def forward(self, x):
        y = self.a(x)
        out = torch.zeros_like(y) if self.how != "ones" else torch.ones(x.size(0), 4, 6)
        if self.how == "select":
            out[:, 1] = y[:, 0]
        elif self.how == "index":
            out[:, [0, 2]] = y[:, :2]
        elif self.how == "number":
            out = y.clone()
            out[:, 1:2] = 0.5
        else:
            out[:, 1:3] = y[:, :2]
        return self.b(out)


class Cell(nn.Module):
    """A recurrent cell of one's own; its state starts as zeros of the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.h, self.o = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.zeros(x.shape[0], 8)
        for k in range(3):
            h = torch.tanh(self.i(x[:, k]) + self.h(h))
        return self.o(h)


class Rms(nn.Module):
    """RMS norm spelled out, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 6))

    def forward(self, x):
        y = self.a(x).to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.b(self.weight * y.to(x.dtype))


class Bags(nn.Module):
    """Words without their order."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.words, self.b = nn.EmbeddingBag(11, 6, mode=mode), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.b(self.words(tokens))


class Rotary(nn.Module):
    """Queries and keys turned by angles that positions alone decide."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.register_buffer("freqs", 1.0 / 100 ** (torch.arange(3) / 3))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        t = torch.arange(x.shape[1], device=x.device).float()
        angles = torch.outer(t, self.freqs).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()

        def turn(y):
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat([-b, a], -1) * sin

        return (turn(q) @ turn(k).transpose(1, 2) / 6**0.5).softmax(-1) @ v


class Words(nn.Module):
    """Words and positions, a norm, a layer; per_channel gives each row a scale."""

    def __init__(self, positions: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.norm, self.b, self.positions = nn.LayerNorm(6), nn.Linear(6, 3), positions

    def forward(self, tokens):
        x = self.words(tokens)
        if self.positions:
            x = self.norm(x + self.places(torch.arange(tokens.shape[1])))
        return self.b(x)


class Masked(nn.Module):
    """Attention whose mask is applied in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(6, 18), nn.Linear(6, 3)
        hidden = torch.ones(4, 4).triu(1)
        self.register_buffer("causal", hidden.masked_fill(hidden.bool(), float("-inf")))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        s = q @ k.transpose(1, 2) / 6**0.5
        hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)
        if self.how == "added":
            s = s + self.causal
        elif self.how == "minimum":
            s = s.masked_fill(hidden, torch.finfo(s.dtype).min)
        elif self.how == "1e4":
            s = s.masked_fill(hidden, -1e4)
        elif self.how == "where":
            s = torch.where(hidden, float("-inf"), s)
        elif self.how == "reshaped":
            s = s.masked_fill(hidden, float("-inf")).unsqueeze(1).squeeze(1)
        return self.out(s.softmax(-1) @ v)


class Spectrum(nn.Module):
    """Frequencies weighted by complex numbers, which parameters hold as pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.w = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(noise(5, 2))

    def forward(self, x):
        z = torch.fft.rfft(self.a(x)) * torch.view_as_complex(self.w)
        return self.b(torch.fft.irfft(z, n=8))


class Pixels(nn.Module):
    def __init__(self, how: str = "whole") -> None:
        super().__init__()
        self.how, self.a = how, nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = x.float() / 255 if self.how == "whole" else (x.to(torch.float32) - 127.5) * 0.01
        return self.a(x)


TOKENS = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(0))
BYTES = torch.randint(0, 256, (3, 3, 6, 6), generator=torch.Generator().manual_seed(0)).byte()

MODELS = {
    "slices": (lambda: Sliced("slice"), noise(4, 4, 6)),
    "slices of ones": (lambda: Sliced("ones"), noise(4, 4, 6)),
    "a row written": (lambda: Sliced("select"), noise(4, 4, 6)),
    "rows written": (lambda: Sliced("index"), noise(4, 4, 6)),
    "a number written": (lambda: Sliced("number"), noise(4, 4, 6)),
    "a recurrent cell": (Cell, noise(8, 3, 6)),
    "rms norm spelled out": (Rms, noise(4, 4, 6)),
    "rotary": (Rotary, noise(4, 4, 6)),
    "words": (Words, TOKENS),
    "words without positions": (lambda: Words(False), TOKENS),
    **{f"bags of words, {m}": (lambda m=m: Bags(m), TOKENS) for m in ("sum", "mean", "max")},
    "pixels": (Pixels, BYTES),
    "pixels around 0": (lambda: Pixels("around"), BYTES),
    **{
        f"a mask, {how}": (lambda how=how: Masked(how), noise(4, 4, 6))
        for how in ("added", "minimum", "1e4", "where", "reshaped")
    },
}


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make().eval()


def check(make, x, **settings) -> set[str]:
    """What computes in floats: the integers are the simulation's, whatever is in between."""
    q = quantized(seeded(make), x, equalize=False, **settings)
    islands = assert_same(q, 1.1 * x if x.is_floating_point() else x).islands
    return {text.split(":")[0] for text in islands.values()}


@pytest.mark.parametrize("kind", ["functions", "moves", "constants", "rows"])
def test_an_operator_on_vectors_gives_the_integers_of_the_simulation(kind):
    groups = {
        "functions": FUNCTIONS, "moves": MOVING, "constants": CONSTANTS, "rows": ROWS,
    }  # fmt: skip
    assert check(lambda: Branches(groups[kind], noise(4, 4, 6), _linear), noise(4, 4, 6)) == set()


def test_an_operator_on_images_gives_the_integers_of_the_simulation():
    x = noise(3, 4, 6, 6)
    assert check(lambda: Branches(IMAGES, x, _conv), x) == set()


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_one_s_own_gives_the_integers_of_the_simulation(name):
    make, x = MODELS[name]
    assert check(make, x, per_channel="words" in name) == set()


def test_complex_constants_follow_into_double_precision():
    islands = check(Spectrum, noise(4, 4, 6))
    assert {"fft_rfft", "fft_irfft"} <= islands


def test_a_constant_that_is_computed_with_has_a_grid_of_its_own():
    """3 ones + y: nothing on a grid is multiplied, so the product is a float, and named."""
    model = Lambda(lambda m, x: torch.ones_like(y := m.a(x)) * 3 + y, a=nn.Linear(6, 4))
    net = assert_same(quantized(model, noise(16, 6)), noise(8, 6, seed=1))
    assert net.islands == {"rescale": "rescale: it computes with constants alone"}
