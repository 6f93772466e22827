"""Recurrent layers as their gates: the oracle is torch's own operator."""

import warnings

import pytest
import torch
from networks import Lambda, noise
from torch import nn

import minq
from minq import graph
from minq.simulate import activation_quantizers, weight_quantizers

X = noise(8, 3, 5)


def same(model, *args):
    gm = minq.capture(model.eval(), args)
    kinds = set(map(graph.op, gm.graph.nodes))
    assert not kinds & {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"}
    with torch.no_grad():
        for a, b in zip(flat(gm(*args)), flat(model(*args)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    return gm


def flat(outputs):
    return torch.utils._pytree.tree_leaves(outputs)


@pytest.mark.parametrize("settings", [
    {}, {"bias": False}, {"num_layers": 2, "bidirectional": True}, {"batch_first": False},
    {"proj_size": 3, "num_layers": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_all_answers_and_last_states(kind, settings):
    if "proj_size" in settings and kind is not nn.LSTM:
        return
    torch.manual_seed(0)
    batch_first = settings.get("batch_first", True)
    x = X if batch_first else X[:3]  # the length comes first, and the batch of the capture is it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(kind(5, 6, **{"batch_first": True} | settings), x)


def test_states_that_are_given():
    model = Lambda(
        lambda m, x, h, c: m.r(x, (h.transpose(0, 1), c.transpose(0, 1))),
        r=nn.LSTM(5, 6, batch_first=True),
    )
    same(model, X, noise(len(X), 1, 6), noise(len(X), 1, 6, seed=3))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_in_a_loop(cell):
    def forward(m, x):
        h = x.new_zeros(len(x), 6)
        state = (h, h) if cell is nn.LSTMCell else h
        for t in range(x.shape[1]):
            state = m.c(x[:, t], state)
        return state

    gm = same(Lambda(forward, c=cell(5, 6)), X)
    parameters = {n.target for n in gm.graph.nodes if n.op == "get_attr"}
    assert parameters >= {"c.weight_ih", "c.weight_hh"}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_each_weight_has_one_quantizer_and_nothing_stays_in_float(kind):
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.a(m.r(x)[0]), r=kind(5, 6, batch_first=True), a=nn.Linear(6, 3))
    model, x = model.eval(), noise(32, 2, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*quantized.*")
        q = minq.ptq(model, x, rounding="nearest", activation_range="min_max")
    names = {"r.weight_ih_l0_quantizer", "r.weight_hh_l0_quantizer", "a.weight_quantizer"}
    assert set(weight_quantizers(q)) == names
    with torch.no_grad():
        assert minq.sqnr(model(x), q(x)) > 30
    assert not minq.to_integer(q).islands
    q = minq.ptq(model, x, rounding="nearest", activation_range="min_max", skip=["r"])
    assert set(weight_quantizers(q)) == {"a.weight_quantizer"}
    assert "a.input.quantizer" in activation_quantizers(q)
