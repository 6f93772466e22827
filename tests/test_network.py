"""What a captured network still knows after it was copied, moved, saved and loaded."""

import copy
import io
import pickle

import pytest
import torch
from networks import Lambda, noise
from torch import nn

import minq
from minq import graph
from minq.deploy.integer import simulation
from minq.graph.network import Network


def saved(q):
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Words(nn.Module):
    """Attention over embedded tokens, with positions made in forward, and a result by name."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Embedding(9, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens, scale=None):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        y = self.attention(x, x, x, need_weights=False)[0]
        return {"all": self.out(y), "first": y[:, 0], "nothing": scale}


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten(), nn.Linear(64, 2)
    )


def kind(name):
    torch.manual_seed(0)
    if name == "convolutions":
        return convolutions().eval(), noise(12, 3, 6, 6)
    if name == "words":
        return Words().eval(), {"tokens": torch.randint(0, 11, (8, 5)), "scale": None}
    model = Lambda(lambda m, x: m.l(x)[0][:, -1], l=nn.LSTM(4, 5, batch_first=True))
    return model.eval(), noise(8, 3, 4)


def call(q, x):
    return q(**{k: v for k, v in x.items() if v is not None}) if isinstance(x, dict) else q(x)


@pytest.mark.filterwarnings("ignore:.*stays in float")
@pytest.mark.parametrize("name", ["convolutions", "words", "lstm"])
def test_a_saved_network_is_the_same_network(name):
    model, x = kind(name)
    q = minq.ptq(model, x, rounding="nearest", per_channel=True)
    expected = minq.graph.batches.flatten_outputs(call(q, x))
    for again in (saved(q), pickle.loads(pickle.dumps(q)), saved(copy.deepcopy(saved(q)))):
        assert isinstance(again, Network) and again.meta.keys() == q.meta.keys()
        assert again.code == q.code and graph.call_of(again) == graph.call_of(q)
        assert torch.equal(minq.graph.batches.flatten_outputs(call(again, x)), expected)
        for a, b in zip(again.graph.nodes, q.graph.nodes, strict=True):
            facts = [
                (isinstance(n.meta.get("val"), torch.Tensor), n.name, n.op, n.target, str(n.args))
                for n in (a, b)
            ]
            assert facts[0] == facts[1]
            if isinstance(a.meta.get("val"), torch.Tensor):
                shapes = [
                    [int(s) if graph.is_fixed(s) else "free" for s in graph.shape_of(n)]
                    for n in (a, b)
                ]
                assert shapes[0] == shapes[1] and a.meta["val"].dtype == b.meta["val"].dtype
        assert list(minq.quantizers(again)) == list(minq.quantizers(q))
        assert list(graph.layers(again)) == list(graph.layers(q))
        assert minq.debug(again, model, x, each=False) == minq.debug(q, model, x, each=False)


def test_a_saved_network_is_deployed_like_the_original(tmp_path):
    import onnx

    model, x = kind("convolutions")
    q = minq.ptq(model, x, rounding="nearest", per_channel=True)
    again = saved(q)
    assert torch.equal(minq.to_integer(again)(x), minq.to_integer(q)(x))
    assert torch.equal(simulation(again)(x.double()), simulation(q)(x.double()))
    assert str(minq.to_integer(again).report(x)) == str(minq.to_integer(q).report(x))
    for net, name in ((q, "a"), (again, "b"), (torch.compile(again), "c")):
        minq.to_onnx(net, tmp_path / name)
    files = [(tmp_path / name).read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    kinds = [n.op_type for n in onnx.load(tmp_path / "b").graph.node]
    assert kinds.count("QuantizeLinear") >= 3  # one for each tensor of data


def test_a_shallow_copy_knows_what_the_network_knows():
    def forward(m, x):
        return m.a(x) if x.shape[0] > 4 else m.a(x).relu()

    q = minq.ptq(Lambda(forward, a=nn.Linear(6, 3)), noise(8, 6), rounding="nearest")
    twin = copy.copy(q)
    assert twin.a.weight is q.a.weight
    for one in (twin, pickle.loads(pickle.dumps(twin))):
        assert torch.equal(one(noise(8, 6)), q(noise(8, 6)))
        with pytest.raises(ValueError, match="another path"):
            one(noise(2, 6))


def test_an_integer_network_is_saved_too():
    model, x = kind("convolutions")
    net = minq.to_integer(minq.ptq(model, x, rounding="nearest"))
    again = saved(net)
    assert torch.equal(again(x), net(x)) and str(again.report(x)) == str(net.report(x))


def test_parameters_of_one_network_go_into_another():
    model, x = kind("convolutions")
    q = minq.ptq(model, x, rounding="nearest", per_channel=True)
    other = minq.ptq(model, 3 * x, rounding="nearest", per_channel=True)
    assert not torch.equal(q(x), other(x))
    other.load_state_dict(q.state_dict())
    assert torch.equal(q(x), other(x))


@pytest.mark.parametrize("way", ["fold", "dynamic", "keep"])
def test_a_network_is_saved_while_it_trains(way):
    model, x = kind("convolutions")
    q = minq.qat.prepare(model, x, per_channel=True, batch_norm=way)
    again = saved(q)
    for net in (q, again):
        net(x).square().mean().backward()
        torch.optim.SGD(net.parameters(), 1e-2).step()
    finished = minq.qat.finish(copy.deepcopy(q)), minq.qat.finish(again)
    assert torch.equal(finished[0](x), finished[1](x))
    assert torch.equal(minq.to_integer(finished[1])(x), minq.to_integer(finished[0])(x))


def test_what_is_quantized_is_not_quantized_again(tmp_path):
    model, x = kind("convolutions")
    q = minq.ptq(model, x, rounding="nearest")
    for net in (q, saved(q), nn.Sequential(q), torch.compile(q), nn.DataParallel(q)):
        with pytest.raises(ValueError, match="quantized already"):
            minq.ptq(net, x)
        with pytest.raises(ValueError, match="quantized already"):
            minq.qat.prepare(net, x)
    with pytest.raises(ValueError, match="has quantizers but was not captured"):
        minq.to_onnx(nn.Sequential(q), tmp_path / "file", example=x)
    assert not (tmp_path / "file").exists()


def test_what_makes_tensors_moves_with_the_network():
    def forward(m, x):
        return m.a(x) + torch.arange(x.shape[0], device=x.device)[:, None]

    gm = minq.capture(Lambda(forward, a=nn.Linear(3, 4)), noise(2, 3))
    assert "device(type='cpu')" in gm.code
    assert "device(type='cpu')" not in gm.to("meta").code
    assert "device(type='cpu')" in gm.to_empty(device="cpu").code


def test_free_sizes_equal_nothing_by_accident():
    for batch in (4, 5):  # as many samples as channels
        gm = minq.capture(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), noise(batch, 3))
        node = next(n for n in gm.graph.nodes if graph.op(n) == "linear")
        size = graph.shape_of(node)[0]
        assert size != 4 and size != 5 and size != 2 and not graph.is_fixed(size)
        assert gm(noise(7, 3)).shape == (7, 4)
