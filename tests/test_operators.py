"""Every entry of the table of operators, from a tiny network to integers, against torch in floats.

Each entry has an example below: a function of one layer's outputs. All examples of a group are the
branches of one network, which is captured, quantized and turned into integers once. A new entry of
``minq/graph/ops.py`` needs an example here, or a reason in ``UNREACHED``.
"""

import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
from networks import MOVES, noise
from torch import nn
from torch.nn import functional as F

import minq
from minq import graph
from minq.affine import sqnr
from minq.graph import OPERATORS
from minq.ptq import Nearest

aten = torch.ops.aten
MASK = torch.eye(4, 6).bool()


def where_first(y):
    """The index of the largest of each column, shape (B, 1, 6)."""
    return y.argmax(1, keepdim=True)


def rows_written(y):
    out = y.clone()
    out[:, [0, 2]] = y[:, :2]
    return out


class WithItself(nn.Bilinear):
    def forward(self, y):
        return super().forward(y, y)


# y has the shape (B, 4, 6).
ROWS = {
    # layers and products
    "conv1d": nn.Conv1d(4, 3, 3),
    "conv_transpose1d": nn.ConvTranspose1d(4, 3, 3),
    "linear": nn.Linear(6, 3),
    "matmul": lambda y: y @ y.transpose(1, 2),
    "bmm": lambda y: torch.bmm(y, y.transpose(1, 2)),
    "mm": lambda y: torch.mm(y.flatten(0, 1), y[0].t()).unflatten(0, (-1, 4)),
    # activation functions
    "relu": lambda y: y.relu(),
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda y: y.clamp(-0.5, 0.7),
    "clamp_min": lambda y: aten.clamp_min(y, -0.1),
    "clamp_max": lambda y: aten.clamp_max(y, 0.2),
    "leaky_relu": F.leaky_relu,
    "prelu": nn.PReLU(),
    # functions of one number
    **{
        name: getattr(torch, name)
        for name in """sigmoid tanh abs exp exp2 expm1 square sign sin cos tan atan sinh cosh asinh
        erf erfc floor ceil round trunc frac""".split()
    },
    **{
        name: getattr(F, name)
        for name in "hardsigmoid hardswish silu gelu elu mish softplus selu celu".split()
    },
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "log_sigmoid": F.logsigmoid,
    "threshold": lambda y: F.threshold(y, 0.1, -0.3),
    "log": lambda y: y.exp().log(),
    "log2": lambda y: y.exp().log2(),
    "log10": lambda y: y.exp().log10(),
    "log1p": lambda y: y.square().log1p(),
    "rsqrt": lambda y: y.exp().rsqrt(),
    "reciprocal": lambda y: 1 / y.exp(),
    "logit": lambda y: y.sigmoid().logit(),
    "pow": lambda y: y**3,
    "rrelu": F.rrelu,
    "sqrt": lambda y: y.exp().sqrt(),
    "asin": lambda y: (y.tanh() * 0.9).asin(),
    "acos": lambda y: (y.tanh() * 0.9).acos(),
    "remainder": lambda y: y.remainder(0.7),
    "fmod": lambda y: y.fmod(0.7),
    "floor_divide": lambda y: y // 0.7,
    # sums and products of elements
    "add": lambda y: y + y.flip(1),
    "sub": lambda y: y - y.flip(1),
    "rsub": lambda y: torch.rsub(y, 2.0),
    "mul": lambda y: y * y.flip(1),
    "div": lambda y: y / (y.flip(1).square() + 1),
    "neg": lambda y: -y,
    "rescale": lambda y: y * 0.5,
    # means and sums
    "mean": lambda y: y.mean(1),
    "sum": lambda y: y.sum(1),
    "cumsum": lambda y: y.cumsum(1),
    "adaptive_avg_pool1d": lambda y: F.adaptive_avg_pool1d(y, 4),
    "avg_pool1d": lambda y: F.avg_pool1d(y, 2),
    "upsample_linear1d": lambda y: F.interpolate(y, size=12, mode="linear"),
    # functions of rows
    "layer_norm": lambda y: F.layer_norm(y, (6,)),
    "rms_norm": lambda y: F.rms_norm(y, (6,), None, 1e-6),
    "softmax": lambda y: y.softmax(-1),
    "log_softmax": lambda y: y.log_softmax(-1),
    # moves
    "reshape": lambda y: y.reshape(-1, 24),
    "flatten": lambda y: y.flatten(1),
    "contiguous": lambda y: y.transpose(1, 2).contiguous(),
    "clone": lambda y: y.clone(),
    "detach": lambda y: y.detach(),
    "view_as": lambda y: y.flatten(1).view_as(y),
    "reshape_as": lambda y: y.transpose(1, 2).reshape_as(y),
    "expand_as": lambda y: y[:, :1].expand_as(y),
    "max_pool1d": lambda y: F.max_pool1d(y, 2),
    "adaptive_max_pool1d": lambda y: F.adaptive_max_pool1d(y, 2),
    "amax": lambda y: y.amax(1),
    "amin": lambda y: y.amin(1),
    "max": lambda y: y.max(1)[0],
    "min": lambda y: y.min(1)[0],
    "topk": lambda y: y.topk(3, -1)[0],
    "sort": lambda y: y.sort(-1)[0],
    "argmax": lambda y: y.gather(1, where_first(y)),
    "argmin": lambda y: y.gather(1, y.argmin(1, keepdim=True)),
    "argsort": lambda y: y.gather(1, y.argsort(1)),
    "upsample_nearest1d": lambda y: F.interpolate(y, size=9),
    "constant_pad_nd": lambda y: aten.constant_pad_nd(y, [1, 1], 0.5),
    "pad": lambda y: F.pad(y, (1, 1)),
    "masked_fill": lambda y: y.masked_fill(MASK, 0.0),
    "index_fill": lambda y: y.index_fill(1, torch.tensor([1]), 0.0),
    "tril": lambda y: y.tril(),
    "triu": lambda y: y.triu(1),
    "diag_embed": lambda y: y.diag_embed(),
    "to": lambda y: y.to(torch.float64).to(torch.float32),
    "_to_copy": lambda y: aten._to_copy(y, dtype=torch.float32),
    "type_as": lambda y: y.type_as(y),
    "convert_element_type": lambda y: torch.ops.prims.convert_element_type(y, torch.float32),
    "unflatten": lambda y: y.unflatten(1, (2, 2)),
    "permute": lambda y: y.permute(0, 2, 1),
    "transpose": lambda y: y.transpose(1, 2),
    "t": lambda y: y[:, 0].t().t(),
    "numpy_T": lambda y: y[:, 0].T.T,
    "mT": lambda y: y.mT,
    "movedim": lambda y: y.movedim(1, 2),
    "slice": lambda y: y[:, 1:3],
    "select": lambda y: y[:, 1],
    "narrow": lambda y: y.narrow(1, 1, 2),
    "getitem": lambda y: y.split([1, 3], 1)[1],
    "split": lambda y: y.split(2, 1)[0],
    "split_with_sizes": lambda y: aten.split_with_sizes(y, [1, 3], 1)[1],
    "tensor_split": lambda y: y.tensor_split(2, 1)[1],
    "chunk": lambda y: y.chunk(2, 1)[0],
    "unbind": lambda y: y.unbind(1)[2],
    "squeeze": lambda y: y[:, :1].squeeze(1),
    "unsqueeze": lambda y: y.unsqueeze(1),
    "expand": lambda y: y[:, :1].expand(-1, 5, -1),
    "reflection_pad1d": lambda y: aten.reflection_pad1d(y, [1, 2]),
    "replication_pad1d": lambda y: aten.replication_pad1d(y, [1, 2]),
    **MOVES,
    "unfold": lambda y: y.unfold(1, 2, 1),
    # joins
    "cat": lambda y: torch.cat([y, y.flip(1)], 1),
    "stack": lambda y: torch.stack([y, y.flip(1)], 1),
    "where": lambda y: torch.where(MASK, y, y.flip(1)),
    "maximum": lambda y: torch.maximum(y, y.flip(1)),
    "minimum": lambda y: torch.minimum(y, y.flip(1)),
    "slice_scatter": lambda y: y.slice_scatter(y[:, :2], 1, 1, 3),
    "select_scatter": lambda y: y.select_scatter(y[:, 0], 1, 2),
    "index_put": rows_written,
    "masked_scatter": lambda y: y.masked_scatter(MASK, y.flip(1)),
    "scatter": lambda y: y.scatter(1, where_first(y), y[:, :1]),
    # makers
    "zeros": lambda y: torch.cat([y, torch.zeros(y.size(0), 1, 6)], 1),
    "zeros_like": lambda y: torch.cat([y, torch.zeros_like(y)], 1),
    "new_zeros": lambda y: torch.cat([y, y.new_zeros(y.size(0), 1, 6)], 1),
    "zero": lambda y: torch.cat([y, y.clone().zero_()], 1),
    "ones": lambda y: torch.cat([y, torch.ones(y.size(0), 1, 6)], 1),
    "ones_like": lambda y: torch.cat([y, torch.ones_like(y)], 1),
    "new_ones": lambda y: torch.cat([y, y.new_ones(y.size(0), 1, 6)], 1),
    "full": lambda y: torch.cat([y, torch.full((y.size(0), 1, 6), 0.3)], 1),
    "full_like": lambda y: torch.cat([y, torch.full_like(y, 0.3)], 1),
    "new_full": lambda y: torch.cat([y, y.new_full((y.size(0), 1, 6), 0.3)], 1),
    "fill": lambda y: torch.cat([y, aten.fill(y, 0.5)], 1),
    "empty": lambda y: torch.cat([y, torch.empty(y.size(0), 1, 6).fill_(0.5)], 1),
    "empty_like": lambda y: torch.cat([y, torch.empty_like(y).fill_(0.5)], 1),
    "new_empty": lambda y: torch.cat([y, y.new_empty(y.size(0), 1, 6).fill_(0.5)], 1),
    "arange": lambda y: y + (torch.arange(y.size(0)) / 6).reshape(-1, 1, 1),
    "eye": lambda y: y + torch.eye(y.size(0), 6).unsqueeze(1),
    # what stays in float
    "_safe_softmax": lambda y: aten._safe_softmax(y, -1),
    "nan_to_num": lambda y: y.nan_to_num(),
    "dot": lambda y: y[:, 0] * torch.dot(y[0, 0], y[0, 1]),
    "bilinear": WithItself(6, 6, 3),
}

# y has the shape (B, 4, 6, 6).
IMAGES = {
    "conv2d": nn.Conv2d(4, 3, 3),
    "conv_transpose2d": nn.ConvTranspose2d(4, 3, 3),
    "batch_norm": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
    "adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, 2),
    "avg_pool2d": lambda y: F.avg_pool2d(y, 2),
    "upsample_bilinear2d": lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),
    "upsample_bicubic2d": lambda y: F.interpolate(y, scale_factor=2.0, mode="bicubic"),
    "group_norm": lambda y: F.group_norm(y, 2),
    "instance_norm": lambda y: F.instance_norm(y),
    "max_pool2d": lambda y: F.max_pool2d(y, 2),
    "adaptive_max_pool2d": lambda y: F.adaptive_max_pool2d(y, 2),
    "max_pool2d_with_indices": lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
    "upsample_nearest2d": lambda y: F.interpolate(y, size=(7, 5)),
    "im2col": lambda y: F.unfold(y, 2),
    "max_unpool2d": lambda y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2),
    "reflection_pad2d": lambda y: aten.reflection_pad2d(y, [1, 1, 1, 1]),
    "replication_pad2d": lambda y: aten.replication_pad2d(y, [1, 2, 0, 1]),
    "pixel_shuffle": lambda y: F.pixel_shuffle(y, 2),
    "pixel_unshuffle": lambda y: F.pixel_unshuffle(y, 2),
    "channel_shuffle": lambda y: F.channel_shuffle(y, 2),
}

# y has the shape (B, 2, 4, 6, 6).
VOLUMES = {
    "conv3d": nn.Conv3d(2, 3, 3),
    "conv_transpose3d": nn.ConvTranspose3d(2, 3, 3),
    "adaptive_avg_pool3d": lambda y: F.adaptive_avg_pool3d(y, 2),
    "avg_pool3d": lambda y: F.avg_pool3d(y, 2),
    "upsample_trilinear3d": lambda y: F.interpolate(y, scale_factor=2.0, mode="trilinear"),
    "max_pool3d": lambda y: F.max_pool3d(y, 2),
    "max_pool3d_with_indices": lambda y: F.max_pool3d(y, 2, return_indices=True)[0],
    "adaptive_max_pool3d": lambda y: F.adaptive_max_pool3d(y, 2),
    "upsample_nearest3d": lambda y: F.interpolate(y, size=(5, 5, 5)),
    "max_unpool3d": lambda y: F.max_unpool3d(*F.max_pool3d(y, 2, return_indices=True), 2),
}

TOKENS = {"embedding": nn.Embedding(11, 6)}

# Where indices are spread to the shape of the data, export fixes the batch size, for all branches.
FIXED = {"take_along_dim": lambda y: y.take_along_dim(where_first(y), 1)}

GROUPS = {
    "rows": (ROWS, lambda: nn.Linear(6, 6), noise(4, 4, 6)),
    "fixed": (FIXED, lambda: nn.Linear(6, 6), noise(4, 4, 6)),
    "images": (IMAGES, lambda: nn.Conv2d(4, 4, 1), noise(3, 4, 6, 6)),
    "volumes": (VOLUMES, lambda: nn.Conv3d(2, 2, 1), noise(3, 2, 4, 6, 6, seed=2)),
    "tokens": (TOKENS, nn.Identity, torch.arange(20).reshape(4, 5) % 11),
}

UNREACHED = {
    "softsign": "torch itself writes it with abs, add and div",
    "alias": "export leaves none",
    **dict.fromkeys(("linspace", "scalar_tensor"), "its sizes are numbers: capture computes it"),
    **dict.fromkeys(("dropout", "feature_dropout"), "they do nothing in evaluation, and vanish"),
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"),
        "minq.export writes it as layers and elements, see test_recurrent.py and test_masks.py",
    ),
    **dict.fromkeys(
        ("addmm", "baddbmm", "addmv", "mv", "inner", "tensordot", "einsum"),
        "minq.export writes it as matmul, see test_rewrite.py",
    ),
}


class Branch(nn.Module):
    """A layer, the example, and a layer that takes what comes out of it."""

    def __init__(self, layer: nn.Module, example: Callable, x: torch.Tensor) -> None:
        super().__init__()
        self.before, self.example = layer, example
        self.behind = nn.Linear(example(layer(x)).flatten(1).shape[1], 4)

    def forward(self, x):
        return self.behind(self.example(self.before(x)).flatten(1))


class Branches(nn.Module):
    """All examples of a group, each on its own; "to" is a name that modules have taken."""

    def __init__(self, group: str) -> None:
        super().__init__()
        examples, layer, x = GROUPS[group]
        self.branches = nn.ModuleDict({f"{k}_": Branch(layer(), f, x) for k, f in examples.items()})

    def forward(self, x):
        return {name[:-1]: branch(x) for name, branch in self.branches.items()}


@cache
def captured(group):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Branches(group).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if group == "fixed" else "error", message=".*batch size")
        return model, minq.capture(model, GROUPS[group][2])


@cache
def quantized(group):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is not among the operators")
        return minq.ptq(
            captured(group)[1], GROUPS[group][2], weights=10, activations=12, equalize=False,
            weight_range="min_max", activation_range="min_max", rounding=Nearest(),
        )  # fmt: skip


@torch.no_grad()
def check_close(found, group):
    expected = captured(group)[0](GROUPS[group][2])
    noise_of = {name: float(sqnr(y, found[name])) for name, y in expected.items()}
    assert not {name: db for name, db in noise_of.items() if not db > 35}


def test_every_entry_has_an_example_or_a_reason_why_not():
    examples = [name for group, *_ in GROUPS.values() for name in group]
    assert sorted([*examples, *UNREACHED]) == sorted(OPERATORS)


@pytest.mark.parametrize("group", GROUPS)
def test_each_example_is_captured_as_the_operator_that_it_stands_for(group):
    found = {name: set() for name in GROUPS[group][0]}
    for node in captured(group)[1].graph.nodes:
        path, _ = graph.module_of(node)
        if path.startswith("branches."):
            found[path.split(".")[1][:-1]].add(graph.op(node))
    assert not {name: kinds for name, kinds in found.items() if name not in kinds}


@pytest.mark.parametrize("group", GROUPS)
def test_simulated_it_is_close_to_torch(group):
    check_close(quantized(group)(GROUPS[group][2]), group)


@pytest.mark.parametrize("group", GROUPS)
def test_on_integers_too_unless_it_has_no_integer_form(group):
    net = minq.to_integer(quantized(group))
    check_close(net(GROUPS[group][2]), group)
    in_float = {text.split(":")[0] for text in net.islands.values()}
    of = OPERATORS
    assert in_float == {name for name in GROUPS[group][0] if not of[name].integer}
