"""Two networks side by side, against the two networks themselves run one after the other."""

import weakref

import pytest
import torch
from networks import Attention, Lambda, Residual, captured, mobile, noise, settle
from torch import nn
from torch.utils._pytree import tree_leaves

import minq
from minq import graph
from minq.graph.batches import batches_of
from minq.ptq.storage import Again, Integers
from minq.ptq.walk import Walk, sample_rows
from minq.simulate import is_quantizer, quantizers


class Recorder(torch.fx.Interpreter):
    """What every node of a graph gives: torch's own way to run it."""

    def run_node(self, n):
        value = super().run_node(n)
        if n.op not in ("get_attr", "output"):
            self.seen[n] = value
        return value

    def record(self, *args):
        self.seen = {}
        with torch.no_grad():
            self.run(*args)
        return self.seen


def quantized(model, example, data, bits=4):
    gm = minq.fold_batch_norms(minq.capture(model, example))
    minq.insert_quantizers(
        gm, weights=bits, activations=bits, weight_range="min_max",
        activation_range="min_max",
    )  # fmt: skip
    for q in quantizers(gm).values():
        q.observe()
    gm(data)
    return gm


def stages(gm, stage):
    for q in quantizers(gm).values():
        q.off() if stage == "off" else q.freeze()


def words():
    torch.manual_seed(0)
    return Attention().eval(), torch.randint(1, 11, (5, 6))


def nets():
    torch.manual_seed(0)
    yield "mobile", settle(mobile()), noise(5, 3, 8, 8)
    yield "residual", settle(nn.Sequential(Residual(), Residual())), noise(5, 4, 6, 6)
    yield "words", *words()
    yield "split", captured("split")[0], noise(5, 6)
    yield "two results", captured("two results")[0], noise(5, 6)


def same(a, b):
    for u, v in zip(tree_leaves(a), tree_leaves(b), strict=True):
        assert torch.equal(torch.as_tensor(u), torch.as_tensor(v))


@pytest.mark.parametrize("model, x", [pytest.param(m, x, id=k) for k, m, x in nets()])
def test_both_streams_at_every_node(model, x):
    gm = quantized(model, x, x)
    batches = [x[:2], x[2:]]
    stages(gm, "off")
    exact = [Recorder(gm).record(b) for b in batches]
    stages(gm, "frozen")
    rounded = [Recorder(gm).record(b) for b in batches]
    walk, visited = Walk(gm, batches_of(gm, batches)), []
    for node in walk:
        visited.append(node)
        same(walk.exact[node], [seen[node] for seen in exact])
        for source in node.all_input_nodes:
            if source in walk.quantized:
                same(walk.quantized[source], [seen[source] for seen in rounded])
    constant = {n for n in gm.graph.nodes if is_quantizer(n) and n.args[0].op == "get_attr"}
    assert set(visited) == set(exact[0]) - constant
    with torch.no_grad():
        same(list(walk.outputs[1]), [gm(b) for b in batches])
        stages(gm, "off")
        same(list(walk.outputs[0]), [gm(b) for b in batches])


@pytest.mark.parametrize("bits", [8, 9])
@pytest.mark.parametrize("model, x", [pytest.param(m, x, id=k) for k, m, x in nets()])
def test_values_too_large_to_keep_are_computed_again(model, x, bits):
    """Bit for bit, and those behind a quantizer of up to 8 bits are kept in bytes."""
    gm = quantized(model, x, x, bits)
    stages(gm, "frozen")
    batches = batches_of(gm, [x[:2], x[2:]])
    large, small, kinds = Walk(gm, batches), Walk(gm, batches, kept=0), set()
    for node, again in zip(large, small, strict=True):
        assert node is again
        for run in ("exact", "quantized"):
            for source in node.all_input_nodes:
                if source in (values := getattr(small, run)):
                    same(list(values[source]), list(getattr(large, run)[source]))
                    kinds.add(type(values[source]))
    assert Again in kinds and (Integers in kinds) == (bits == 8)
    same(*(list(map(list, walk.outputs)) for walk in (large, small)))


@pytest.mark.parametrize("model, x", [pytest.param(m, x, id=k) for k, m, x in nets()])
def test_the_quantized_network_alone(model, x):
    gm = quantized(model, x, x)
    stages(gm, "frozen")
    batches = batches_of(gm, [x[:2], x[2:]])
    two, one = Walk(gm, batches), Walk(gm, batches, both=False)
    for node, again in zip(two, one, strict=True):
        assert node is again
        for source in node.all_input_nodes:
            if source in two.quantized:
                same(list(one.quantized[source]), list(two.quantized[source]))
        if node.op != "placeholder":
            assert node not in one.exact
    same(*(list(walk.outputs[1]) for walk in (two, one)))


def test_what_is_found_once_is_forgotten_with_its_node():
    gm = minq.capture(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), noise(3, 5))
    walk, calls = Walk(gm, batches_of(gm, noise(3, 5)), both=False), []
    for node in walk:
        if graph.op(node) == "linear":
            for _ in range(2):
                walk.once(graph.input_of(node), "sum", lambda: calls.append(1) or 7)
        assert len(walk._found) <= 1
    assert len(calls) == 2


def test_answers_are_computed_when_they_are_read():
    """Those of all data together may take more memory than everything else."""
    model, x = settle(mobile()), noise(4, 3, 8, 8)
    gm = quantized(model, x, x)
    stages(gm, "frozen")
    walk = Walk(gm, batches_of(gm, [x[:2], x[2:]]))
    for _ in walk:
        pass
    for answers in walk.outputs:
        assert isinstance(answers, Again) and len(answers) == 2
        once, again = answers[0], answers[0]
        assert once is not again
        same([once], [again])


def test_only_a_few_layers_are_computed_again():
    gm = minq.capture(nn.Sequential(*[nn.Linear(5, 5) for _ in range(12)]), noise(3, 5))
    walk, deepest = Walk(gm, batches_of(gm, noise(3, 5)), kept=0), 0
    for node in walk:
        deepest = max(deepest, getattr(walk.exact[node], "layers", 0))
    assert 2 <= deepest <= 4


def test_a_quantizer_turned_on_during_the_walk_counts_from_there():
    model, x = settle(mobile()), noise(4, 3, 8, 8)
    gm = quantized(model, x, x)
    stages(gm, "off")
    walk = Walk(gm, batches_of(gm, x))
    for node in walk:
        if is_quantizer(node):
            gm.get_submodule(node.target).freeze()
        elif node.op == "call_function":
            assert (walk.exact[node] is walk.quantized.get(node)) is False
    with torch.no_grad():
        same(list(walk.outputs[1]), [gm(x)])


def test_the_exact_network_has_its_own_parameters():
    model, x = settle(mobile()), noise(4, 3, 8, 8)
    gm = minq.fold_batch_norms(minq.capture(model, x))
    with torch.no_grad():
        expected = gm(x)
        exact = {k: p.detach().clone() for k, p in gm.named_parameters()}
        for p in gm.parameters():
            p.data.mul_(0.5)
        walk = Walk(gm, batches_of(gm, x), exact)
        for _ in walk:
            pass
        same(tuple(map(list, walk.outputs)), ([expected], [gm(x)]))


def test_nothing_is_computed_twice_where_nothing_is_quantized():
    gm = minq.capture(settle(mobile()), noise(2, 3, 8, 8))
    walk = Walk(gm, batches_of(gm, noise(2, 3, 8, 8)))
    for _ in walk:
        assert all(walk.exact[k] is v for k, v in walk.quantized.items())


def test_values_are_dropped_after_their_last_reader():
    depth = 8
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(depth)])
    x = noise(3, 5)
    gm = quantized(model, x, x)
    stages(gm, "frozen")
    walk, references = Walk(gm, batches_of(gm, x)), []
    for node in walk:
        references.append(weakref.ref(walk.exact[node][0]))
        assert len(walk.exact) <= 2 and len(walk.quantized) <= 2
        assert len({id(r()) for r in references if r() is not None}) <= 3  # and x itself


def test_a_layer_that_gets_a_bias_on_the_way():
    model, x = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)), noise(3, 4)
    gm = minq.capture(model, x)
    exact = {k: p.detach().clone() for k, p in gm.named_parameters()}
    walk = Walk(gm, batches_of(gm, x), exact)
    for node in walk:
        if graph.op(node) == "linear":
            graph.set_bias(gm, node, torch.ones(graph.weight_of(gm, node).shape[0]))
    gm.recompile()
    with torch.no_grad():
        same(tuple(map(list, walk.outputs)), ([model(x)], [gm(x)]))


# --- Rows -----------------------------------------------------------------------------------------

LAYERS = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear on a sequence": (nn.Linear(6, 4, bias=False), (5, 6)),
    "plain": (nn.Conv2d(4, 6, 3), (4, 7, 8)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 3)), (4, 9, 8)),
    "padded": (nn.Conv2d(4, 6, 3, padding=(2, 1)), (4, 5, 6)),
    "dilated": (nn.Conv2d(4, 6, (2, 3), dilation=(3, 2), padding=1), (4, 8, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), (4, 8, 8)),
    "depthwise": (nn.Conv2d(4, 8, 5, groups=4, padding=2, bias=False), (4, 6, 6)),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), (4, 7, 6)),
    "valid": (nn.Conv2d(4, 6, 2, padding="valid"), (4, 5, 5)),
    "sequence": (nn.Conv1d(4, 6, 4, stride=3, padding=2), (4, 11)),
    "same sequence": (nn.Conv1d(4, 6, 4, padding="same"), (4, 9)),
    "volume": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0)), (2, 4, 7, 3)),
}


@pytest.mark.parametrize("most", [1, 7, 10_000])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weight_is_the_layer(name, most):
    layer, shape = LAYERS[name]
    layer = layer.double()
    gm = minq.capture(Lambda(lambda m, x: m.layer(x), layer=layer), noise(2, *shape).double())
    (node,) = graph.layers(gm).values()
    inputs = [noise(n, *shape, seed=n).double() for n in (1, 2, 3)]
    with torch.no_grad():
        outputs = [layer(x) for x in inputs]
    generator = torch.Generator().manual_seed(0)
    x, y = sample_rows(gm, node, inputs, outputs, most, generator)
    groups = graph.groups_of(node)
    weight = layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    torch.testing.assert_close(
        y, x @ weight.transpose(1, 2) + bias.reshape(groups, 1, -1).to(x), rtol=1e-12, atol=1e-12
    )
    places = [o.numel() // len(layer.weight) for o in outputs]
    assert x.shape[1] == y.shape[1] == sum(min(max(1, most // 3), n) for n in places)
    if most == 10_000:  # room for all: each place once
        everything = torch.cat(
            [
                o.movedim(1 if o.ndim > 2 and not name.startswith("linear") else -1, -1).reshape(
                    -1, groups, y.shape[2]
                )
                for o in outputs
            ]
        ).transpose(0, 1)
        assert torch.equal(everything.sort(1).values, y.sort(1).values)
    again = sample_rows(gm, node, inputs, outputs, most, torch.Generator().manual_seed(0))
    same(again, (x, y))


def test_rows_come_from_everywhere():
    """Each place of each picture is as likely as any other."""
    layer = nn.Conv2d(1, 1, 1, bias=False)
    x = torch.arange(2 * 16.0).reshape(2, 1, 4, 4)
    gm = minq.capture(layer, x)
    (node,) = graph.layers(gm).values()
    rows, _ = sample_rows(gm, node, [x] * 1000, [x] * 1000, 16_000, torch.Generator())
    counts = torch.bincount(rows.flatten().long(), minlength=32).double()
    expected = counts.sum() / 32
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 31 + 5 * (2 * 31) ** 0.5  # mean and deviation of chi square, 31 degrees
