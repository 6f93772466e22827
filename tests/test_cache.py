"""Keys and values in few bits: against NumPy's own rounding, in attention of several writings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Lambda
from torch import nn
from torch.nn import functional as F

import minq
from minq import Scheme, attention, sqnr
from minq.cache import Cache, CacheQuantizer, attention_sqnr, cache_bytes, quantize_cache

TOKEN = Cache(4, keys="token")


def rounded(x, low, high, bits):
    """Eq. (4) to (8) in NumPy, of the range widened to hold 0."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.where(high > low, (high - low) / (2**bits - 1), 1)
    z = np.round(-low / scale)
    return scale * (np.clip(np.round(x / scale) + z, 0, 2**bits - 1) - z)


def by_token(x, bits, group=None):
    x = np.asarray(x, np.float64)
    parts = np.split(x, range(group or x.shape[-1], x.shape[-1], group or x.shape[-1]), -1)
    ends = [(p.min(-1, keepdims=True), p.max(-1, keepdims=True)) for p in parts]
    return np.concatenate([rounded(p, *e, bits) for p, e in zip(parts, ends, strict=True)], -1)


# --- Pure functions -------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99), bits=st.integers(2, 8), group=st.sampled_from([None, 3, 4]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_a_token_has_a_scale_of_its_own(seed, bits, group):
    x = torch.tensor(np.random.default_rng(seed).normal(size=(2, 3, 5, 10)) ** 3)
    k, v = quantize_cache(x, x, Cache(bits, keys="token", group=group))
    np.testing.assert_allclose(v.numpy(), by_token(x, bits, group), atol=1e-9)
    assert torch.equal(k, v)
    for t in range(5):  # and nothing of the other tokens
        one, _ = quantize_cache(x[:, :, t : t + 1], x, Cache(bits, keys="token", group=group))
        assert torch.equal(one[:, :, 0], k[:, :, t])


def test_a_channel_of_a_head_has_a_range_of_its_own():
    x = torch.randn(2, 3, 50, 4) * torch.logspace(-2, 2, 12).reshape(3, 1, 4)
    k, _ = quantize_cache(x, x, Cache(8))
    for h in range(3):
        for c in range(4):
            assert sqnr(x[:, h, :, c], k[:, h, :, c]) > 40
    q = CacheQuantizer(8, per_channel=True)
    q(x)
    assert q.freeze().scale.shape == (12,)
    turned = CacheQuantizer(8, per_channel=True, turned=True)
    turned(x.mT)
    assert torch.equal(turned.freeze()(x.mT).mT, q(x))


def test_keys_with_large_channels_ask_for_channels():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 16, generator=g) for _ in range(3))
    k[..., 3] += 12
    k[..., 7] *= 6
    q[..., 7] /= 3
    per = {keys: attention_sqnr(q, k, v, Cache(4, keys=keys)) for keys in ("channel", "token")}
    assert per["channel"] > per["token"] + 3
    assert attention_sqnr(q, k, v, Cache(8)) > per["channel"] + 15
    w = torch.where(torch.ones(64, 64).tril() > 0, q @ k.mT / 4, -torch.inf).softmax(-1)
    ks, vs = quantize_cache(k, v, TOKEN)
    ws = torch.where(torch.ones(64, 64).tril() > 0, q @ ks.mT / 4, -torch.inf).softmax(-1)
    assert attention_sqnr(q, k, v, TOKEN) == pytest.approx(sqnr(w @ v, ws @ vs), abs=1e-3)


def test_bytes_are_counted_one_by_one():
    k = v = torch.zeros(3, 1000, 64)
    floats = 30 * (k.numel() + v.numel()) * 2
    assert cache_bytes(1000, 30, 3, 64) == floats
    rows = 3 * 1000 * 2  # of 64 values, in groups of 32 two for each token
    assert cache_bytes(1000, 30, 3, 64, Cache(4, keys="token", group=32)) == 30 * 2 * (
        k.numel() / 2 + rows * (2 + 0.5)
    )
    kivi = cache_bytes(10**6, 1, 1, 64, 4) / 10**6
    assert kivi == pytest.approx(32 + 32 + 2.5, rel=1e-4)


# --- In a network ---------------------------------------------------------------------------------

WIDTH, HEADS = 16, 4


def projections():
    torch.manual_seed(0)
    return {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "o")}


def heads(y):
    return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def plain(m, x, change=lambda k, v: (k, v)):
    q, (k, v) = heads(m.q(x)), change(heads(m.k(x)), heads(m.v(x)))
    y = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
    return m.o(y.transpose(1, 2).flatten(2))


def masked(m, x, change=lambda k, v: (k, v)):
    q, (k, v) = heads(m.q(x)), change(heads(m.k(x)), heads(m.v(x)))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return m.o(y.transpose(1, 2).flatten(2))


def turned(m, x, change=lambda k, v: (k, v)):
    q, v = heads(m.q(x)), heads(m.v(x))
    k = m.k(x).unflatten(-1, (HEADS, -1)).permute(0, 2, 3, 1)  # at once, as GPT-2 did
    k, v = change(k.mT, v)
    y = (torch.matmul(q, k.mT) / 2).softmax(-1)
    return m.o(torch.matmul(y, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("forward", [plain, masked, turned])
def test_the_network_attends_to_what_the_cache_gives_back(forward):
    model = Lambda(forward, **projections()).eval()
    x = torch.randn(8, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    given = {"weights": None, "activations": None, "rounding": "nearest", "equalize": False}

    def numpy_cache(k, v):
        return tuple(torch.tensor(by_token(t.detach(), 3)).float() for t in (k, v))

    q = minq.ptq(model, x, cache=Cache(3, keys="token"), progress=False, **given)
    assert list(minq.quantizers(q)) in (
        ["keys.quantizer", "values.quantizer"], ["values.quantizer", "keys.quantizer"]
    )  # fmt: skip
    with torch.no_grad():
        want = forward(model, x, numpy_cache)
        torch.testing.assert_close(q(x), want, rtol=1e-4, atol=1e-5)
        assert 3 < sqnr(model(x), want) < 40
        by_channel = minq.ptq(model, x, cache=8, progress=False, **given)
        assert minq.quantizers(by_channel)["keys.quantizer"].scale.shape == (WIDTH,)
        assert sqnr(model(x), by_channel(x)) > 30


def test_a_decoder_from_elsewhere(tmp_path):
    """Keys behind RoPE, before their copies for several heads; beside activations of 8 bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2)
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, use_cache=False, **sizes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    gm = minq.capture(model, ids)
    found = list(attention.stored(gm))
    assert [s.kind for s in found] == ["keys", "values"] * 2
    assert {tuple(s.node.meta["val"].shape[1:]) for s in found} == {(2, 12, 8)}
    assert not any(s.turned for s in found)
    q = minq.ptq(
        gm, ids, weights=None, cache=4, rounding="nearest", progress=False,
        layers={"model.layers.1*": {"cache": None, "activations": None}},
    )  # fmt: skip
    found = minq.quantizers(q)
    stored = {k: v for k, v in found.items() if isinstance(v, CacheQuantizer)}
    assert stored.keys() == {f"model.layers.0.self_attn.{k}.quantizer" for k in ("keys", "values")}
    assert {v.bits for v in stored.values()} == {4} and len(found) > 10
    assert stored["model.layers.0.self_attn.keys.quantizer"].scale.shape == (16,)
    torch.save(q, tmp_path / "q.pt")
    again = torch.load(tmp_path / "q.pt", weights_only=False)
    assert torch.equal(again(ids)[0], q(ids)[0])
    report = minq.debug(q, model, ids, each=False)
    assert report.exact > 60 and report.activations == report.quantized < 60
    for call in (lambda: minq.to_integer(q), lambda: minq.to_onnx(q, tmp_path / "q.onnx")):
        with pytest.raises(ValueError, match="quantizer finds its ranges while it runs"):
            call()


def test_gradients_pass_through_the_cache():
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    q = CacheQuantizer(4, per_channel=False)
    q(x)
    q.learn()(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x)) and "per token" in repr(q)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Cache(4, keys="head"), "keys must be one of token, channel"),
        (lambda: Cache(17), "bits must be from 1 to 16"),
        (lambda: Cache(group=0), "group must be at least 1"),
        (lambda: Scheme(cache=0), "bits must be from 1 to 16"),
        (lambda: cache_bytes(0, 1, 1, 1), "tokens must be at least 1"),
        (lambda: quantize_cache(torch.ones(2, 2) * torch.nan, torch.ones(2, 2), TOKEN), "keys has"),
        (lambda: minq.ptq(nn.Linear(2, 2), torch.ones(3, 2), cache=4), "leave cache=None"),
    ],
)
def test_it_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()
