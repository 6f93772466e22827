"""Masks are no data: whatever form they have, no grid reaches to the numbers that hide scores."""

import math
import warnings

import pytest
import torch
from networks import Lambda, noise
from torch import nn
from torch.nn import functional as F

import minq
from minq import graph
from minq.deploy.integer import simulation
from minq.simulate import activation_quantizers

LOW, SEEN = torch.finfo(torch.float32).min, torch.ones(9, 9).tril().bool()
NEAR = torch.ones(9, 9).triu(-1).bool()
FAR = torch.zeros(9, 9).masked_fill(~SEEN, -1e9)
VALID = torch.ones(16, 9)
VALID[::2, 6:] = 0


def attend(mask, **parts):
    """One head whose scores go through ``mask``; forward(x, *what the mask is made of)."""

    def forward(m, x, *given):
        q, k, v = m.qkv(x).chunk(3, -1)
        return m.out(mask(m, q @ k.transpose(1, 2) / 4, *given).softmax(-1) @ v)

    torch.manual_seed(0)
    return Lambda(forward, qkv=nn.Linear(16, 48), out=nn.Linear(16, 16), **parts).eval()


BY_CONSTANTS = {
    "masked_fill": lambda m, a: a.masked_fill(~SEEN, LOW),
    "a small one": lambda m, a: a.masked_fill(~SEEN, -60.0),
    "where": lambda m, a: torch.where(SEEN, a, LOW),
    "where turned": lambda m, a: torch.where(~SEEN, -math.inf, a),
    "where like": lambda m, a: torch.where(SEEN, a, torch.full_like(a, -1e9)),
    "where a product": lambda m, a: torch.where(SEEN, a, -9e15 * torch.ones_like(a)),
    "product": lambda m, a: a * SEEN - 1e10 * (1 - SEEN.float()),
    "buffer": lambda m, a: a + m.far,
    "-inf": lambda m, a: a + torch.full((9, 9), -math.inf).triu(1),
    "-100": lambda m, a: a + m.far.clamp(min=-100),
    "maximum": lambda m, a: torch.max(a + m.far, torch.tensor(LOW)),
    "clamp": lambda m, a: (a + m.far).clamp(min=-1e8),
    "cap": lambda m, a: (5 * torch.tanh(a / 5)).masked_fill(~SEEN, -math.inf),
    "positions first": lambda m, a: a + m.table + m.far,
    "positions last": lambda m, a: a + m.far + m.table,
    "logarithm": lambda m, a: F.log_softmax(a + m.far, -1),
}
BY_INPUTS = {
    "(1 - m) low": lambda m, a, v: a + (1 - v[:, None]) * LOW,
    "(m - 1) 1e4": lambda m, a, v: a + (v[:, None] - 1) * 1e4,
    "log": lambda m, a, v: a + v[:, None].log(),
    "equal": lambda m, a, v: a.masked_fill(v[:, None] == 0, -1e9),
    "whole": lambda m, a, v: a + (1 - v.long()[:, None].to(a.dtype)) * LOW,
    "filled": lambda m, a, v: a + torch.zeros_like(a).masked_fill(~v[:, None].bool(), -1e9),
    "product": lambda m, a, v: a * v[:, None] - 1e10 * (1 - v[:, None]),
    "data too": lambda m, a, v: a * v[:, :, None] + (1 - v[:, None]) * LOW,
    "in a table": lambda m, a, v: a + (m.table + (1 - v[:, None]) * LOW),
}


@pytest.mark.parametrize("name", [*BY_CONSTANTS, *BY_INPUTS])
def test_masked_scores_are_never_data(name):
    """As good as masked_fill, and no range from what hides."""
    mask = BY_CONSTANTS.get(name) if name in BY_CONSTANTS else BY_INPUTS[name]
    model = attend(mask, far=FAR.clone(), table=nn.Parameter(0.3 * noise(9, 9)))
    data = (noise(16, 9, 16),) if name in BY_CONSTANTS else (noise(16, 9, 16), VALID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = minq.ptq(model, [data], rounding="nearest")
    with torch.no_grad():
        assert minq.sqnr(model(*data), q(*data)) > 28
    assert min(float(one.low) for one in activation_quantizers(q).values()) > -20
    masks = {"args_0.quantizer", "args_1.quantizer"} & set(activation_quantizers(q))
    assert "args_1.quantizer" not in masks  # a 1 stays 1


def test_one_mask_of_a_part_serves_several_layers():
    def forward(m, x):
        for _ in range(2):
            q, k, v = m.qkv(x).chunk(3, -1)
            x = (q @ k.transpose(1, 2) / 4 + m.part.far).softmax(-1) @ v
        return x

    torch.manual_seed(0)
    part = Lambda(None, far=FAR)
    model, x = Lambda(forward, qkv=nn.Linear(16, 48), part=part).eval(), noise(8, 9, 16)
    torch.testing.assert_close(minq.capture(model, x)(x), model(x))


def test_distances_are_data():
    """ALiBi: small slopes times large distances, in front of a softmax too."""
    distance = -8.0 * (torch.arange(9)[:, None] - torch.arange(9)).abs()
    q = minq.ptq(attend(lambda m, a: a + m.d, d=distance), noise(16, 9, 16), rounding="nearest")
    assert float(minq.quantizers(q)["d_quantizer"].low) == pytest.approx(-64, rel=0.05)


def test_a_large_input_is_data_where_nothing_is_hidden():
    model = Lambda(lambda m, x: m.a(x * 65535.0), a=nn.Linear(4, 4)).eval()
    q = minq.ptq(model, noise(8, 4) / 65535, rounding="nearest")
    assert "args_0.quantizer" in minq.quantizers(q)


@pytest.mark.parametrize("how", ["causal", "grouped", "float", "bool", "scale"])
def test_attention_in_one_operator(how):
    def forward(m, x):
        q, k, v = m.qkv(x).split([16, 8, 8] if how == "grouped" else [16, 16, 16], -1)
        q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v))
        mask = {"float": FAR, "bool": SEEN}.get(how)
        y = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, enable_gqa=how == "grouped",
            scale=0.3 if how == "scale" else None,
        )  # fmt: skip
        return m.out(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    width = 32 if how == "grouped" else 48
    x = noise(16, 9, 16)
    model = Lambda(forward, qkv=nn.Linear(16, width), out=nn.Linear(16, 16)).eval()
    q = minq.ptq(model, x, rounding="nearest")
    kinds = [graph.op(node) for node in q.graph.nodes]
    assert kinds.count("matmul") == 2 and "scaled_dot_product_attention" not in kinds
    with torch.no_grad():
        assert minq.sqnr(model(x), minq.capture(model, x)(x)) > 120
        assert minq.sqnr(model(x), q(x)) > 28


def test_a_query_that_sees_no_key_gets_what_torch_gives_it():
    """A window over padding hides all keys of some queries: zeros, where a softmax has none."""

    def forward(m, x, valid):
        q, k, v = m.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        seen = SEEN & NEAR & valid.bool()[:, None, None]
        return m.out(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model = Lambda(forward, qkv=nn.Linear(16, 48), out=nn.Linear(16, 16)).eval()
    data = noise(16, 9, 16), VALID
    q = minq.ptq(model, [data], rounding="nearest")
    net = minq.to_integer(q, multipliers="float")
    with torch.no_grad():
        expected = model(*data)
        assert torch.equal(expected[0, -1], model.out.bias)  # nothing is seen there
        assert minq.sqnr(expected, minq.capture(model, data)(*data)) > 120
        assert minq.sqnr(expected, q(*data)) > 28
        assert minq.sqnr(simulation(q)(*(v.double() for v in data)), net(*data)) > 120
    assert not net.islands


@pytest.mark.parametrize("table", [False, True])
def test_scores_that_an_input_hides_are_integers(table):
    """A mask that is smaller than the scores, from a table or from zero."""

    def mask(m, a, v):
        hides = torch.where(v[:, None].bool(), m.table if table else torch.zeros(()), LOW)
        return a + hides.contiguous()

    data = noise(16, 9, 16), VALID
    q = minq.ptq(attend(mask, table=nn.Parameter(0.3 * noise(9, 9))), [data], rounding="nearest")
    net = minq.to_integer(q, multipliers="float")
    assert not net.islands
    with torch.no_grad():
        assert minq.sqnr(simulation(q)(*(v.double() for v in data)), net(*data)) > 120


@pytest.mark.parametrize("weights", [False, True])
def test_both_masks_of_multihead_attention(weights):
    model = nn.MultiheadAttention(16, 4, batch_first=True)
    net = Lambda(
        lambda m, x, v: m.a(x, x, x, key_padding_mask=v == 0, attn_mask=~SEEN,
                            need_weights=weights)[0],
        a=model,
    ).eval()  # fmt: skip
    x = noise(16, 9, 16)
    q = minq.ptq(net, [(x, VALID)], rounding="nearest")
    with torch.no_grad():
        assert minq.sqnr(net(x, VALID), q(x, VALID)) > 25
