"""Equalizer, BiasShift and AdaRoundPlay in Python: what they compute, send and refuse."""

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

from minqbook.widgets import AdaRoundPlay, BiasShift, Equalizer

RNG = np.random.default_rng(0)
W1, B1 = RNG.normal(size=(6, 1, 3, 3)).astype("f4"), RNG.normal(size=6).astype("f4")
W2 = RNG.normal(size=(4, 6, 1, 1)).astype("f4")
X = np.abs(RNG.normal(size=(5, 6, 9))).astype("f4")
DENSE = np.abs(RNG.normal(size=(5, 9))).astype("f4")


def test_equalizer_packs_and_scales():
    w = Equalizer(W1, W2, B1, X, bits=4)
    assert w.sizes == [6, 9, 4, 5] and w.depthwise and w.scales == [1.0] * 6
    parts = (W1, B1, W2, X)
    assert (
        np.frombuffer(w.data, "<f4").tolist() == np.concatenate([a.ravel() for a in parts]).tolist()
    )
    assert w.channel == np.abs(W1).reshape(6, -1).max(1).argmax()
    assert repr(w) == f"Equalizer(bits=4, channel={w.channel})"
    w.scales = (2.0 ** np.arange(6)).tolist()
    w1, b1, w2 = w.pair
    hidden = np.maximum(np.einsum("ck,nck->nc", W1.reshape(6, 9).astype(float), X) + B1, 0)
    mine = np.maximum(np.einsum("ck,nck->nc", w1, X.astype(float)) + b1, 0) @ w2.T
    np.testing.assert_allclose(mine, hidden @ W2[:, :, 0, 0].T.astype(float), rtol=1e-12)
    assert w.ranges[0] == pytest.approx(np.abs(W1).reshape(6, 9).max(1) / 2.0 ** np.arange(6))
    assert w.ranges[1] == pytest.approx(np.abs(W2).max((0, 2, 3)) * 2.0 ** np.arange(6))
    dense = Equalizer(W1, W2, inputs=DENSE)
    assert not dense.depthwise and dense.sizes[-1] == 5 and Equalizer(W1, W2).sizes[-1] == 0


def test_equalizer_scales_are_those_of_the_library():
    torch = pytest.importorskip("torch")
    from minq.ptq import equalize

    w1, b1, w2, s = equalize.equalize(*(torch.tensor(a).double() for a in (W1, B1, W2)))
    w = Equalizer(W1, W2, B1, scales=s)
    np.testing.assert_allclose(w.pair[0], w1.reshape(6, 9), rtol=1e-12)
    np.testing.assert_allclose(w.pair[1], b1, rtol=1e-12)
    np.testing.assert_allclose(w.pair[2], w2[:, :, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(*w.ranges, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((W1, W2[:, :5]), "do not fit"),
        ((B1, W2), "do not fit"),
        ((W1, 0 * W2), "all zero"),
        ((W1, W2, B1[:3]), "bias1 has shape"),
        ((W1, W2, None, X[:, :5]), "do not fit weight1"),
        ((W1 * np.nan, W2), "weight1"),
        ((np.ones((200, 9)), np.ones((2, 200))), "too many to draw"),
    ],
)
def test_equalizer_refuses(arguments, says):
    with pytest.raises(ValueError, match=says):
        Equalizer(*arguments)


@pytest.mark.parametrize(
    ("traits", "says"),
    [
        ({"scales": [1.0] * 5}, "one for each"),
        ({"scales": [0.0] + [1.0] * 5}, "positive"),
        ({"scales": [float("inf")] + [1.0] * 5}, "positive"),
        ({"channel": 6}, "from 0 to 5"),
        ({"bits": 1}, "from 2 to 8"),
    ],
)
def test_equalizer_refuses_settings(traits, says):
    with pytest.raises((ValueError, traitlets.TraitError), match=says):
        Equalizer(W1, W2, **traits)
    w = Equalizer(W1, W2)
    with pytest.raises((ValueError, traitlets.TraitError), match=says):
        w.set_trait(*next(iter(traits.items())))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("inputs", [X, DENSE], ids=["depthwise", "dense"])
def test_bias_shift_is_the_difference_of_the_means(inputs, per_channel):
    w = BiasShift(W1, inputs, B1, bits=3, channels=[4, 1], per_channel=per_channel)
    weight, x = W1.reshape(6, 9).astype(float), inputs.astype(float)
    how = "ck,nck->nc" if inputs.ndim == 3 else "ck,nk->nc"
    y, y_hat = np.einsum(how, weight, x), np.einsum(how, w.w_hat, x)
    shift = (y_hat.mean(0) - y.mean(0))[[4, 1]]
    np.testing.assert_allclose(w.shift, shift, atol=1e-12)
    np.testing.assert_allclose(w.relative, shift / y.std(0)[[4, 1]], atol=1e-12)
    for row, q in zip(
        weight, w.w_hat, strict=True
    ):  # the grid: its step, and no more than rounding
        step = np.abs(row if per_channel else weight).max() / 3
        assert np.abs(q - row).max() <= step / 2 * (1 + 1e-6)
        assert len(np.unique(q)) <= 8
    sent = inputs[:, [4, 1]] if inputs.ndim == 3 else inputs
    parts = [W1.ravel(), B1, sent.ravel()]
    assert np.frombuffer(w.data, "<f4").tolist() == np.concatenate(parts).tolist()
    assert w.channel in (4, 1) and w.sizes == [6, 9, 5]


def test_bias_shift_starts_at_a_channel_that_survives():
    weight = np.array([[8.0, 0.0], [0.1, 0.2], [3.1, 0.0]], "f4")  # the second rounds to 0
    w = BiasShift(weight, np.array([[9.0, 1.0], [8.0, 2.0]], "f4"), bits=4)
    assert not w.w_hat[1].any() and w.channel == 2
    assert BiasShift(weight[1:2] * 0 + 1, np.ones((3, 2))).relative.tolist() == [0.0]
    assert repr(w) == "BiasShift(bits=4, channel=2, per_channel=False, corrected=False)"


@pytest.mark.parametrize(
    ("arguments", "traits", "says"),
    [
        ((W1, X[:, :5]), {}, "do not fit"),
        ((W1, 1.0), {}, "do not fit"),
        ((B1, X), {}, "row for each channel"),
        ((0 * W1, X), {}, "all zero"),
        ((W1, X, B1[:2]), {}, "bias has shape"),
        ((W1, X), {"channels": []}, "1 to 128 different"),
        ((W1, X), {"channels": [1, 1]}, "different"),
        ((W1, X), {"channels": [6]}, "from 0 to 5"),
        ((W1, X), {"channels": [1], "channel": 2}, "one of"),
        ((np.ones((2, 200)), np.ones((3, 200))), {}, "too many"),
        ((W1, X), {"bits": 9}, "from 2 to 8"),
    ],
)
def test_bias_shift_refuses(arguments, traits, says):
    with pytest.raises((ValueError, traitlets.TraitError), match=says):
        BiasShift(*arguments, **traits)


def test_adaround_play_packs_weights_and_the_gram_matrix():
    x = RNG.normal(size=(40, 9)).astype("f4")
    w = AdaRoundPlay(W1, x, bits=3)
    weight, gram = np.split(np.frombuffer(w.data, "<f4"), [54])
    assert weight.tolist() == W1.ravel().tolist() and w.sizes == [6, 9]
    second = np.cov(x.T, bias=True) + np.outer(x.mean(0), x.mean(0))  # E[x x^T]
    np.testing.assert_allclose(gram.reshape(9, 9), second, rtol=1e-5, atol=1e-6)
    # min-max: the grid from -4 to 3 steps holds all weights and no coarser one is needed.
    assert w.scale == pytest.approx([max(W1.min() / -4, W1.max() / 3)], rel=1e-6)
    assert AdaRoundPlay(W1, gram=gram.reshape(9, 9), bits=3).data == w.data
    assert AdaRoundPlay(W1, x, scale=np.full(6, 0.5)).scale == [0.5] * 6
    assert (w.step, w.steps) == (500, 500) and AdaRoundPlay(W1, x, steps=50).step == 50
    assert repr(w) == "AdaRoundPlay(bits=3, penalty=10, step=500)"


@pytest.mark.parametrize(
    ("arguments", "traits", "error", "says"),
    [
        ((W1,), {}, TypeError, "not both"),
        ((W1, DENSE, np.eye(9)), {}, TypeError, "not both"),
        ((W1, DENSE[:, :4]), {}, ValueError, "do not fit"),
        ((W1, None, np.triu(np.ones((9, 9)))), {}, ValueError, "symmetric"),
        ((W1, None, np.eye(8)), {}, ValueError, "symmetric"),
        ((0 * W1, DENSE), {}, ValueError, "all zero"),
        ((W1, DENSE), {"scale": [1.0, 1.0]}, ValueError, "1 or 6 positive"),
        ((W1, DENSE), {"scale": -1.0}, ValueError, "1 or 6 positive"),
        ((W1, DENSE), {"bits": 9}, ValueError, "from 2 to 8"),
        ((W1, DENSE), {"penalty": 0.0}, ValueError, "from 0.01"),
        ((W1, DENSE), {"steps": 5}, ValueError, "from 10"),
        ((np.ones((9, 99)), np.ones((3, 99))), {}, ValueError, "too large to run"),
        ((B1, DENSE), {}, ValueError, "row for each output"),
    ],
)
def test_adaround_play_refuses(arguments, traits, error, says):
    with pytest.raises(error, match=says):
        AdaRoundPlay(*arguments, **traits)


@pytest.mark.parametrize("kind", [Equalizer, BiasShift, AdaRoundPlay])
def test_text_stands_for_the_picture(kind):
    arguments = {Equalizer: (W1, W2), BiasShift: (W1, X), AdaRoundPlay: (W1, DENSE)}[kind]
    w = kind(*arguments)
    assert w._repr_mimebundle_()[0]["text/plain"] == f"{w!r}\n{w.alt}"
    with pytest.raises(TypeError, match="no argument"):
        kind(*arguments, nonsense=1)
