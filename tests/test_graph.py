"""A captured network against the network itself, for every operator the library knows."""

import copy
import warnings

import pytest
import torch
from networks import (
    NETWORKS,
    Attention,
    Keywords,
    Lambda,
    Residual,
    captured,
    mobile,
    network,
    noise,
    tied,
)
from torch import nn
from torch.utils._pytree import tree_leaves

import minq
from minq import graph
from minq.graph.batches import batches_of


def close(result, expected, dtype=torch.float32):
    """Equal to float error: some dozens of roundings of the largest value."""
    result, expected = tree_leaves(result), tree_leaves(expected)
    assert len(result) == len(expected)
    for a, b in zip(result, expected, strict=True):
        if b is None:
            assert a is None
            continue
        tolerance = 64 * torch.finfo(dtype).eps * max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def same(result, expected):
    for a, b in zip(tree_leaves(result), tree_leaves(expected), strict=True):
        assert a is b is None or torch.equal(a, b)


def remembered(model):
    """All that must not change: values, flags, objects."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return state, [m.training for m in model.modules()], [id(p) for p in model.parameters()]


def unchanged(model, before):
    state, *rest = remembered(model)
    return state.keys() == before[0].keys() and rest == list(before[1:]) and all(
        torch.equal(v, before[0][k]) for k, v in state.items()
    )  # fmt: skip


SPELLED_OUT = {"attention", "encoder", "matmul"}  # attention in operators, x W as a layer


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_the_network_does(name):
    model, gm, shape = captured(name)
    with torch.no_grad():
        for batch in (1, 2, 5):
            x = noise(batch, *shape, seed=batch)
            check = close if name in SPELLED_OUT else same
            check(gm(x.clone()), model(x.clone()))


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_and_with_quantizers_off_it_is_the_same(name):
    model, gm, shape = captured(name)
    before = remembered(model)
    minq.fold_batch_norms(gm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = copy.deepcopy(gm)
        minq.insert_quantizers(gm, per_channel=True)
    x = noise(5, *shape, seed=3)
    with torch.no_grad():
        close(folded(x), model(x))
        same(gm(x), folded(x))
    assert unchanged(model, before)
    norms = sum(graph.op(n) == "batch_norm" for n in gm.graph.nodes)
    assert norms == name.startswith("a batch norm")


@pytest.mark.parametrize("name", ["linear2d", "residual", "transposed", "shared convolution"])
def test_folding_in_double_precision(name):
    model, shape = network(name)
    model, x = model.double(), noise(3, *shape).double()
    close(minq.fold_batch_norms(minq.capture(model, x))(x), model(x), torch.float64)


def test_words_masks_and_tied_weights():
    torch.manual_seed(0)
    tokens = torch.randint(1, 11, (4, 6))
    tokens[:, 4:] = 0
    model = Attention().eval()
    close(minq.capture(model, tokens[:2])(tokens), model(tokens))
    model = tied().eval()
    tokens = torch.randint(7, (3, 5))
    gm = minq.capture(model, tokens)
    same(gm(tokens), model(tokens))
    assert len(list(gm.parameters())) == 1 or gm.words.weight is gm.head.weight


@pytest.mark.parametrize("kind", ["float", "bool", "none"])
def test_attention_with_a_mask_as_input(kind):
    def attend(m, x, mask=None):
        q, k, v = m.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    model = Lambda(attend, qkv=nn.Linear(6, 12)).eval()
    allowed = torch.ones(5, 5).tril().bool().expand(2, 5, 5)
    mask = torch.zeros(2, 5, 5).masked_fill(~allowed, -1e4) if kind == "float" else allowed
    args = (noise(2, 5, 6),) if kind == "none" else (noise(2, 5, 6), mask)
    gm = minq.capture(model, args)
    close(gm(*args), model(*args))
    names = [graph.op(n) for n in gm.graph.nodes]
    assert names.count("matmul") == 2 and "scaled_dot_product_attention" not in names


@pytest.mark.parametrize("frozen", [True, False])
def test_no_fast_path_hides_the_operators(frozen):
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(not frozen)
    x = noise(2, 5, 8)
    with torch.no_grad():
        gm = minq.capture(model, x)
        close(gm(x), model(x))
    assert len(graph.layers(gm)) == 4


def test_keywords_in_any_order_and_results_by_name():
    model, u, v = Keywords().eval(), noise(2, 4), noise(2, 3)
    for example in ({"v": v, "u": u}, {"u": u, "v": v, "labels": torch.zeros(2)}):
        gm = minq.capture(model, example)
        x = {k: example[k] for k in ("u", "v")}
        assert set(gm(**x)) == {"sum", "first"}
        same(gm(**x), model(**x))
        (batch,) = batches_of(gm, {"labels": 1, "u": u, "v": v})
        names = [n.target for n in gm.graph.nodes if n.op == "placeholder"]
        assert all(a is b for a, b in zip(batch, [x[k] for k in names], strict=True))
    gm = minq.capture(model, {"u": u, "v": v, "double": True})
    same(gm(u=u, v=v, double=True), model(u, v, True))


def test_positional_arguments_labels_and_stars():
    model, u, v = Keywords().eval(), noise(3, 4), noise(3, 3)
    same(minq.capture(model, (u, v))(u, v), model(u, v))
    gm = minq.capture(nn.Linear(4, 2), (u, torch.zeros(3)))  # inputs and labels
    assert [n.op for n in gm.graph.nodes].count("placeholder") == 1
    model = Lambda(lambda m, a, b: m.a(a) * b, a=nn.Linear(4, 3))  # forward(*args)
    same(minq.capture(model, (u, v))(u[:1], v[:1]), model(u[:1], v[:1]))


@pytest.mark.parametrize("name", ["attention", "encoder", "a view overwritten"])
def test_nothing_in_the_graph_asks_for_the_strides_of_one_device(name):
    """A view of what another device computes, or another version of torch, may not be possible."""
    kinds = {graph.op(node) for node in captured(name)[1].graph.nodes}
    assert "reshape" in kinds and not kinds & {"view", "_unsafe_view"}


def test_a_copy_on_the_cpu_makes_its_tensors_there():
    model = Lambda(lambda m, x: x + torch.ones(x.shape, device=x.device))
    gm = minq.capture(model, noise(2, 3))
    elsewhere = copy.deepcopy(gm)
    for node in elsewhere.graph.nodes:
        if node.kwargs.get("device"):
            node.update_kwarg("device", torch.device("meta"))
    elsewhere.recompile()
    x = noise(3, 3, seed=2)
    assert torch.equal(graph.on_cpu(elsewhere)(x), gm(x))
    assert "meta" in elsewhere.code and "meta" not in graph.on_cpu(elsewhere).code


def test_the_model_stays_as_it_was():
    model = nn.Sequential(Residual(), nn.Dropout(0.3), Residual())
    model[0].eval()
    before = remembered(model)
    gm = minq.capture(model, noise(2, 4, 6, 6))
    minq.fold_batch_norms(gm)
    for p in gm.parameters():
        p.data.add_(1)
    assert unchanged(model, before)
    again = minq.capture(gm, noise(2, 4, 6, 6))  # of a graph: a copy
    for p in again.parameters():
        p.data.add_(1)
    x = noise(2, 4, 6, 6)
    assert not torch.equal(again(x), gm(x))


def test_a_buffer_that_counts_stays_out_of_the_network():
    def count(m, x):
        m.n += 1
        return m.a(x) * m.n

    model = Lambda(count, a=nn.Linear(6, 2), n=torch.zeros(()))
    gm, x = minq.capture(model, noise(2, 6)), noise(3, 6)
    assert model.n == 0
    same(gm(x), gm(x))


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


@pytest.mark.parametrize("call, error, words", [
    (lambda: minq.capture(lambda x: x, noise(1, 2)), TypeError, "torch.nn.Module, not function"),
    (lambda: minq.capture(nn.Linear(2, 2), None), TypeError, "a tensor, a tuple"),
    (lambda: minq.capture(nn.Linear(2, 2), ()), TypeError, "a tensor, a tuple"),
    (lambda: minq.capture(Branches(), noise(2, 2)), minq.CaptureError, "chooses its path"),
    (lambda: minq.capture(nn.Linear(2, 2), noise(2, 3)), minq.CaptureError, "Linear"),
    (lambda: minq.capture(Keywords(), {"u": noise(2, 4)}), minq.CaptureError, "'v'"),
])  # fmt: skip
def test_what_cannot_be_captured_is_explained(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("data, error, words", [
    ([], ValueError, "at least one batch"),
    ("data", TypeError, "not str"),
    (3, TypeError, "not int"),
    ([3], TypeError, "not int"),
    (noise(4, 7), ValueError, r"shape \(4, 7\)"),
    (noise(4, 6, 1), ValueError, "captured with"),
    (noise(0, 6), ValueError, "empty"),
    ([noise(2, 6), noise(2, 6) * float("nan")], ValueError, "NaN"),
    ([noise(2, 6), noise(2, 6) / 0], ValueError, "infinite"),
    ({"other": noise(2, 6)}, ValueError, "0 values, the model takes 1"),
    ([(3, noise(2, 6))], TypeError, "must be a tensor, not int"),
])  # fmt: skip
def test_bad_data_is_refused(data, error, words):
    gm = minq.capture(nn.Linear(6, 2), noise(2, 6))
    with pytest.raises(error, match=words):
        batches_of(gm, data)


def test_a_fixed_batch_size_is_told():
    model = Lambda(lambda m, x: m.a(x).view(2, 2), a=nn.Linear(6, 2))
    with pytest.warns(UserWarning, match="fixes its batch size at 2"):
        minq.capture(model, noise(2, 6))


def test_weights_have_one_layout():
    """A transposed convolution's weight, as (outputs, inputs / groups, *kernel), convolves."""
    model = nn.ConvTranspose2d(4, 6, 3, groups=2).eval()
    gm = minq.capture(model, noise(2, 4, 5, 5))
    (node,) = graph.layers(gm).values()
    weight = graph.weight_of(gm, node)
    x = noise(2, 4, 5, 5)
    by_hand = nn.functional.conv2d(
        nn.functional.pad(x, [2] * 4), weight.flip(2, 3), model.bias, groups=2
    )
    torch.testing.assert_close(gm(x), by_hand)
    graph.set_weight(gm, node, 2 * weight)
    graph.set_bias(gm, node, torch.zeros(6))
    gm.recompile()
    torch.testing.assert_close(gm(x), 2 * (model(x) - model.bias.reshape(-1, 1, 1)))


def test_layers_have_names_also_without_a_module_of_their_own():
    model = Lambda(
        lambda m, x: nn.functional.linear(nn.functional.linear(x, m.w1), m.w2),
        w1=nn.Parameter(noise(4, 6)), w2=nn.Parameter(noise(2, 4)),
    )  # fmt: skip
    gm = minq.capture(model, noise(2, 6))
    assert len(graph.layers(gm)) == 2
    nodes = list(graph.layers(minq.capture(mobile(), noise(2, 3, 8, 8))))
    assert nodes == ["0", "3", "6", "11"]


def test_a_bias_is_made_for_a_layer_without():
    model = nn.Conv2d(3, 4, 3, bias=False)
    gm, x = minq.capture(model, noise(2, 3, 8, 8)), noise(2, 3, 8, 8)
    (node,) = graph.layers(gm).values()
    graph.set_bias(gm, node, torch.arange(4.0))
    gm.recompile()
    torch.testing.assert_close(gm(x), model(x) + torch.arange(4.0).reshape(-1, 1, 1))
    torch.testing.assert_close(graph.bias_of(gm, node), torch.arange(4.0))


def test_trains_moves_and_keeps_what_is_frozen():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    gm = minq.capture(model, noise(2, 4))
    gm.train()
    gm(noise(2, 4)).sum().backward()
    grads = {k: p.grad is not None for k, p in gm.named_parameters()}
    assert grads == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}
    assert gm.double()(noise(2, 4).double()).dtype == torch.float64
