"""Networks as people bring them: what torch.export follows works, the rest is named."""

import re
import subprocess
import sys
import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from networks import noise
from torch import nn
from torch.utils.checkpoint import checkpoint

import minq
from minq import graph
from minq.graph.batches import arguments_for, batches_of


def layers(**more):
    torch.manual_seed(0)
    return {"a": nn.Linear(8, 8), "b": nn.Linear(8, 4)} | more


def net(forward, **more):
    model = type("Net", (nn.Module,), {"forward": forward})()
    for name, value in layers(**more).items():
        model.register_buffer(name, value) if isinstance(value, torch.Tensor) else setattr(
            model, name, value
        )
    return model.eval()


def quantized(model, x, **settings):
    return minq.ptq(model, x, rounding=minq.ptq.Nearest(correct_bias=False), **settings)


def off_equals(model, x, batch=None):
    """With all quantizers off the network computes what the model does."""
    q = quantized(model, x)
    for quantizer in minq.quantizers(q).values():
        quantizer.off()
    x = x if batch is None else batch
    with torch.no_grad():
        torch.testing.assert_close(q(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)
    return q


# --- Sizes that take another path -----------------------------------------------------------------


def above_four(m, x):
    y = m.a(x)
    return m.b(y) if x.shape[0] > 4 else m.b(torch.relu(y) * 3)


def alone(m, x):
    return m.b(m.a(x)) if x.shape[0] == 1 else m.b(torch.relu(m.a(x)))


def even(m, x):
    return m.b(m.a(x)) if x.size(0) % 2 == 0 else m.b(torch.relu(m.a(x)))


def long(m, x):
    return m.b(m.a(x)) if x.numel() >= 64 else m.b(torch.relu(m.a(x)))


def halves(m, x):
    assert x.shape[0] % 2 == 0, "pairs are needed"
    return m.b(m.a(x)).reshape(2, -1, 4).mean(0)


def root(m, x):
    return m.b(m.a(x)) if x.shape[0] ** 0.5 > 3 else m.b(torch.relu(m.a(x)))


def pieces(m, x):
    return torch.cat([m.b(part) for part in m.a(x).split(4)])


def tried(operator):
    def forward(m, x):
        y = m.a(x)
        try:
            y = operator(m, y)
        except RuntimeError:
            y = torch.relu(y)
        return m.b(y)

    return forward


viewed = tried(lambda m, y: 3 * y.view(16, 8))
summed = tried(lambda m, y: y + torch.arange(128.0).reshape(16, 8))


@pytest.mark.parametrize("forward, size, good, bad, words", [
    (viewed, 12, (3, 15), (16,), r"x.shape\[0\]\)? != 128"),
    (summed, 12, (3, 15), (16,), r"x.shape\[0\] != 16"),
    (root, 16, (10,), (9,), r"x.shape\[0\]"),
    (pieces, 7, (5, 8), (4, 9), r"math.ceil\(x.shape\[0\] / 4\) == 2"),
    (above_four, 32, (5, 7), (4, 1), r"x.shape\[0\] > 4"),
    (above_four, 3, (4, 2, 1), (5, 32), r"x.shape\[0\] <= 4"),
    (alone, 4, (2, 5), (1,), r"x.shape\[0\] != 1"),
    (even, 4, (2, 8), (3,), r"x.shape\[0\] % 2\)? == 0"),
    (long, 9, (8, 30), (7, 2), r"x.shape\[0\] >= 64|x.shape\[0\] >= 8"),
    (halves, 4, (2, 8), (3,), r"x.shape\[0\] % 2\)? == 0"),
])  # fmt: skip
def test_other_sizes_than_the_captured_path_takes_are_refused(forward, size, good, bad, words):
    model = net(forward)
    q = quantized(model, noise(size, 8))
    integers = minq.to_integer(q)
    for n in good:
        x = noise(n, 8)
        assert minq.debug(q, model, x, each=False).exact > 60
        integers(x)
    for n in bad:
        x = noise(n, 8)
        for call in (
            q,
            integers,
            integers.report,
            lambda x: minq.debug(q, model, x),
            lambda x: quantized(model, [noise(size, 8), x]),
        ):
            with pytest.raises(ValueError, match=words):
                call(x)


@pytest.mark.parametrize("forward", [alone, lambda m, x: m.b(m.a(x)) if len(x) < 4 else x])
def test_a_path_for_one_sample_is_that_of_an_example_of_one(forward):
    model, x = net(forward), noise(1, 8)
    with pytest.warns(UserWarning, match="takes batches of one"):
        q = quantized(model, x)
    assert minq.debug(q, model, x, each=False).exact > 60


@pytest.mark.parametrize("forward", [viewed, summed])
def test_a_try_that_fits_one_size_keeps_that_size(forward):
    model, x = net(forward), noise(16, 8)
    with pytest.warns(UserWarning, match="fixes its batch size at 16"):
        q = quantized(model, x)
    assert minq.debug(q, model, x, each=False).exact > 60
    with pytest.raises(ValueError, match="16"):
        q(noise(12, 8))


def test_an_error_that_forward_goes_on_after_is_told():
    chosen = tried(lambda m, y: 3 * y if y.max() > -100 else y)
    with pytest.warns(UserWarning, match="goes on after an error.*test_capture.py, line"):
        minq.capture(net(chosen), noise(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minq.capture(net(tried(lambda m, y: 3 * y)), noise(4, 8))


def test_a_network_for_pictures_of_another_size_is_told():
    def forward(m, x):
        return m.c(x) if x.shape[2] > 6 else torch.relu(m.c(x))

    q = quantized(net(forward, c=nn.Conv2d(3, 2, 3)), noise(4, 3, 8, 8))
    for run in (q, minq.to_integer(q)):
        with pytest.warns(UserWarning, match="What forward asks of the other sizes"):
            run(noise(2, 3, 5, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(noise(2, 3, 8, 8))


def test_a_layer_of_one_vector():
    model = net(lambda m, x: torch.stack([m.b(m.a(x[k])) for k in range(x.shape[0])]))
    with pytest.warns(UserWarning, match="fixes its batch size at 3"):
        q = minq.ptq(model, x := noise(3, 8), rounding="nearest")
    with torch.no_grad():
        assert minq.sqnr(model(x), q(x)) > 30


def test_a_path_that_two_inputs_choose():
    def forward(m, x, u):
        return m.b(m.a(x)) + (u.sum() if x.shape[0] == u.shape[0] else 0)

    q = quantized(net(forward), [(noise(6, 8), noise(6, 2))])
    q(noise(3, 8), noise(3, 2))
    with pytest.raises(ValueError, match=r"x: \(6, 8\), u: \(5, 2\)"):
        q(noise(6, 8), noise(5, 2))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        y = x.transpose(0, 1)  # (length, batch, channels)
        return self.out(self.attention(y, y, y, need_weights=False)[0][0])


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6])
def test_a_batch_as_large_as_another_dimension_stays_free(batch):
    model = Tokens().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = quantized(model, noise(batch, 5, 6))
    for n in (1, 4, 6):
        assert q(noise(n, 5, 6)).shape == (n, 3)
    minq.to_integer(q)(noise(4, 5, 6))


# --- Random numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_alpha_dropout"])
def test_dropout_that_the_model_leaves_on_is_told(name):
    function = getattr(nn.functional, name)
    model = net(lambda m, x: m.b(function(torch.relu(m.a(x)), 0.5, training=True)))
    with pytest.warns(UserWarning, match=f"leaves dropout on .* in {name}"):
        q = quantized(model, x := noise(32, 8))
    assert torch.equal(q(x), q(x))
    assert "answers differently every time" in minq.debug(q, model, x, each=False).verdict


def test_dropout_inside_of_attention_is_told():
    def forward(m, x):
        y = m.a(x).unsqueeze(1)
        return m.b(nn.functional.scaled_dot_product_attention(y, y, y, dropout_p=0.3)[:, 0])

    with pytest.warns(UserWarning, match="leaves dropout on"):
        q = quantized(net(forward), noise(8, 8))
    assert torch.equal(q(noise(3, 8)), q(noise(3, 8)))


@pytest.mark.parametrize("draw", [
    torch.randn_like, torch.bernoulli, torch.rand_like,
    lambda p: nn.functional.rrelu(p, training=True), lambda p: p + torch.rand(4, 8),
    lambda p: p * torch.multinomial(p, 2)[:, :1],
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*stays in float")
def test_other_random_numbers_are_told(draw):
    model = net(lambda m, x: m.b(m.a(x) + draw(torch.sigmoid(x))))
    with pytest.warns(UserWarning, match="draws random numbers"):
        minq.capture(model, noise(4, 8))


def test_what_is_random_only_in_training_is_not_told():
    model = net(
        lambda m, x: m.b(m.c(nn.functional.dropout(m.a(x), 0.5, m.training))),
        c=nn.Sequential(nn.RReLU(), nn.AlphaDropout(), nn.Dropout(0.2)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = minq.capture(model, x := noise(4, 8))
    torch.testing.assert_close(gm(x), model(x))


# --- Contexts inside and outside ------------------------------------------------------------------


def no_grad(m, x):
    with torch.no_grad():
        y = m.a(x)
        with torch.enable_grad():
            y = torch.relu(y) + 1
    return m.b(y)


def inference(m, x):
    with torch.inference_mode():
        y = m.a(x)
    return m.b(y)


def exact_region(m, x):
    with torch.autocast("cpu", enabled=False):
        y = m.a(x.float())
    return m.b(y)


def recomputed(m, x):
    return m.b(checkpoint(m.a, x, use_reentrant=False))


def recomputed_by_the_old_way(m, x):
    return m.b(checkpoint(m.a, x, use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "forward", [no_grad, inference, exact_region, recomputed, recomputed_by_the_old_way]
)
def test_contexts_inside_of_forward(forward):
    q = off_equals(net(forward), noise(8, 8), noise(3, 8))
    assert list(graph.layers(q)) == ["a", "b"] and len(minq.quantizers(q)) >= 5


def test_autocast_inside_of_forward_is_told():
    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.a(x)
        return m.b(y.float())

    with pytest.warns(UserWarning, match="bfloat16 where its forward turns autocast on"):
        q = quantized(net(forward), x := noise(8, 8))
    assert minq.sqnr(net(forward)(x).detach(), q(x).detach()) > 25


WITH_COND = """
import minq, torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        return torch.cond(x.sum() > 0, self[0], lambda x: self[0](x) * 2, (x,))

minq.ptq(Net(nn.Linear(8, 8)).eval(), torch.randn(8, 8), rounding="nearest")
"""


def test_cond_is_refused_by_name():
    """In a process of its own: Dynamo reads minq's bytecode here, which coverage has changed."""
    done = subprocess.run([sys.executable, "-c", WITH_COND], capture_output=True, text=True)
    assert re.search(r"CaptureError: .*torch\.cond", done.stderr), done.stderr


@pytest.mark.parametrize("context", [
    lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode, torch.no_grad,
])  # fmt: skip
def test_all_works_in_contexts_of_the_caller(context, tmp_path):
    model = net(lambda m, x: m.b(torch.relu(m.a(x))))
    x = noise(16, 8)
    expected = minq.ptq(model, x)
    whole = minq.to_integer(expected)(x)
    verdict = minq.debug(expected, model, x)
    with context():
        q = minq.ptq(model, x.clone())
        assert minq.debug(q, model, x.clone()) == verdict
        assert torch.equal(minq.to_integer(q)(x.clone()), whole)
        minq.to_onnx(q, tmp_path / "file")
        training = minq.qat.prepare(model, x.clone())
        gm = minq.capture(net(lambda m, x: m.b(m.a(x))), noise(2, 8))  # made in here
    assert torch.equal(q(x), expected(x))
    training(x).sum().backward()
    gm(x).sum().backward()


# --- Modules of other kinds -----------------------------------------------------------------------


def weight_normed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 4)), nn.ReLU()).eval()


def pruned():
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


@pytest.mark.filterwarnings("ignore:.*stays in float")
@pytest.mark.parametrize("make", [weight_normed, pruned])
def test_weights_that_are_computed_before_each_call(make):
    model = make()
    model(noise(2, 8))  # now they hang on a graph of autograd
    off_equals(model, noise(8, 8), noise(3, 8))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models(wrap):
    model, x = net(lambda m, x: m.b(m.a(x))), noise(8, 8)
    q = quantized(wrap(model), x)
    assert torch.equal(q(x), quantized(model, x)(x))
    assert list(graph.layers(q)) == ["a", "b"]
    assert minq.debug(q, wrap(model), x, each=False).exact > 60


def traced():
    return torch.jit.trace(nn.Linear(8, 4), noise(2, 8))


def uncopied():
    model = nn.Linear(8, 4)
    model.__dict__["generator"] = (k for k in ())  # what copy.deepcopy refuses
    return model


class Cache:
    pass


def with_cache(m, x):
    past_key_values = Cache()
    past_key_values.keys = m.a(x)
    return m.b(x), past_key_values


def branches(m, x):
    return m.a(x) if x.sum() > 0 else m.b(x)


torch.library.define("minqtest::shift", "(Tensor x) -> Tensor")
torch.library.impl("minqtest::shift", "cpu", lambda x: x + 1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make, words", [
    (traced, "TorchScript module.*Python module it was made from"),
    (lambda: nn.Sequential(traced()), "its part 0 is a TorchScript"),
    (uncopied, "cannot be copied.*generator"),
    (lambda: net(with_cache), "use_cache=False"),
    (lambda: net(branches), "(?s)test_capture.py, line.*by the values of tensors"),
    (lambda: net(lambda m, x: m.a(torch.ops.minqtest.shift(x))), "(?s)register_fake.*minqtest"),
    (lambda: net(lambda m, x: m.a(x), s=noise(3, 3).to_sparse()), "s is a sparse tensor"),
    (lambda: net(lambda m, x: (x.to_sparse() @ m.a.weight)), "to_dense"),
    (lambda: net(lambda m, x, y: m.a(x) + y), "missing a required argument: 'y'"),
])  # fmt: skip
def test_what_cannot_be_captured_is_named(make, words):
    with pytest.raises(minq.CaptureError, match=words) as caught:
        minq.capture(make(), noise(4, 8))
    assert ("by the values" in str(caught.value)) == ("by the values" in words)


# --- What comes out, and what goes in -------------------------------------------------------------


Pair = namedtuple("Pair", "left right")


@dataclass
class Result:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


torch.export.register_dataclass(Result)


@pytest.mark.parametrize("answer", [
    lambda y: (y, None), lambda y: (None, {"y": y, "n": 3}), lambda y: [y, 0.5, True],
    lambda y: Pair(y, y.mean()), lambda y: {"a": (y, [y + 1])}, lambda y: Result(y),
])  # fmt: skip
def test_answers_of_all_kinds(answer):
    model, x = net(lambda m, x: answer(m.b(m.a(x)))), noise(8, 8)
    q = quantized(model, x)
    expected = torch.utils._pytree.tree_structure(model(x))
    assert torch.utils._pytree.tree_structure(q(x)) == expected
    assert torch.utils._pytree.tree_structure(minq.to_integer(q)(x)) == expected
    assert minq.debug(q, model, x).exact > 60


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x, mask=None, labels=None):
        y = self.a(x if mask is None else x * mask)
        if labels is None:
            return {"logits": y}
        return {"loss": nn.functional.cross_entropy(y, labels), "logits": y}


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, batch):
        return self.a(batch["x"]) * batch["scale"]


def test_labels_and_none_in_batches_are_left_out():
    torch.manual_seed(0)
    model, x, labels = Tagger().eval(), noise(32, 6), torch.randint(0, 3, (32,))
    mask = torch.ones(32, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = quantized(model, x)(x)["logits"]
        for batch in (
            {"x": x, "labels": labels}, {"x": x, "labels": None, "mask": None}, (x, None, labels),
            (x, None), [x, None, None], {"labels": labels, "x": x, "index": labels},
        ):  # fmt: skip
            q = quantized(model, [batch])
            assert list(q(x)) == ["logits"] and torch.equal(q(x)["logits"], expected), batch
        for batch in ((x, mask, labels), {"x": x, "mask": mask, "labels": labels}):
            q = quantized(model, [batch])
            assert [n.op for n in q.graph.nodes].count("placeholder") == 2
            minq.debug(q, model, [batch], each=False)
    with pytest.warns(UserWarning, match="taken for labels, not for 'mask'"):
        q = quantized(model, [(x, labels)])
    assert torch.equal(q(x)["logits"], expected)


def test_labels_that_forward_needs_stay():
    model = net(lambda m, x, labels: m.a(x) + m.e(labels), e=nn.Embedding(5, 8))
    batch = {"x": noise(4, 8), "labels": torch.tensor([0, 1, 2, 4])}
    assert set(arguments_for(model, batch)[1]) == {"x", "labels"}


def test_a_dict_as_the_one_argument():
    torch.manual_seed(0)
    model, x = Detector().eval(), noise(16, 6)
    data = [{"x": x, "scale": torch.ones(16, 1)}, {"scale": torch.ones(4, 1), "x": x[:4], "n": 1}]
    q = quantized(model, data)
    again = quantized(model, [(batch,) for batch in data])
    assert torch.equal(q(data[0]), again(data[0]))
    assert minq.debug(q, model, data, each=False).exact > 60
    minq.to_integer(q).report(data[0])
    with pytest.raises(ValueError, match="has no scale"):
        batches_of(q, {"x": x})
    loader = [batch | {"labels": torch.zeros(len(batch["x"]), 3)} for batch in data]
    minq.qat.qat(model, loader, nn.functional.mse_loss, progress=False)


def test_training_leaves_out_what_forward_does_not_take():
    x, y = noise(8, 6), torch.zeros(8, 3)
    loader = [(x, None, y), (x[:4], None, y[:4])]
    q = minq.qat.qat(Tagger(), loader, lambda out, y: (out["logits"] - y).square().mean())
    assert [n.op for n in q.graph.nodes].count("placeholder") == 1


def test_a_tuple_for_one_batch_is_explained():
    with pytest.raises(ValueError, match="one batch of several inputs is"):
        quantized(nn.Linear(6, 3), (noise(8, 6), torch.zeros(8)))


def test_inputs_without_a_batch():
    def forward(m, x, table, shift):
        return m.b(m.a(x) @ table + shift)

    model, table, shift = net(forward), noise(8, 8), torch.tensor(2.0)
    q = quantized(model, [(noise(n, 8), table, shift) for n in (8, 3)])
    assert q(noise(5, 8), table, shift).shape == (5, 4)
    q = quantized(net(lambda m, x, k: m.b(m.a(x) * k)), [(noise(1, 8), noise(1, 1))])
    assert q(noise(5, 8), noise(1, 1)).shape == (5, 4)


# --- Tensors that are overwritten -----------------------------------------------------------------


def slices(m, x):
    mask = x.new_zeros(8)
    for k, part in enumerate((slice(0, 3), slice(3, 6), slice(6, None))):
        mask[part] = k
    return m.b(m.a(x) + mask)


def nested(m, x):
    y = m.a(x)
    part = y[:, 2:6]
    part[:, 1] = 7.0
    part.mul_(2)
    return m.b(y) + part.sum(1, keepdim=True)


def seen_through_views(m, x):
    y = m.a(x)
    first, second = y[:, :4], y[:, 4:]
    y.add_(1)
    second[0] = x[0, :4]
    return m.b(torch.cat([first, second], 1).relu_())


def input_overwritten(m, x):
    x[:, 0] = 1
    return m.b(m.a(x))


def buffer_overwritten(m, x):
    m.seen[1:3] = 5
    return m.b(m.a(x) + m.seen)


def hidden_by_reshape(m, x):
    y = m.a(x)
    z = y.reshape(-1, 2, 4)
    y[:, 3] = 9.0
    return m.b(z.flatten(1))


@pytest.mark.parametrize(
    "forward",
    [slices, nested, seen_through_views, input_overwritten, buffer_overwritten, hidden_by_reshape],
)
def test_tensors_that_are_overwritten(forward):
    model = net(forward, seen=torch.zeros(8))
    gm, x = minq.capture(model, noise(4, 8)), noise(5, 8)
    before = x.clone()
    result = gm(x)
    assert torch.equal(x, before)  # the network never changes its input
    with torch.no_grad():
        torch.testing.assert_close(result, model(x.clone()))
    kinds = [graph.op(n) for n in gm.graph.nodes]
    assert not any(k.endswith("_") for k in kinds)
    if forward is not hidden_by_reshape:
        assert kinds.count("linear") == 2  # nothing was decomposed


def test_complex_numbers_stay_in_float_by_name():
    def forward(m, x):
        y = torch.fft.rfft(m.a(x)) * torch.exp(1j * torch.arange(5.0))
        return m.b(torch.fft.irfft(y, n=8)) + y.abs().sum()

    model, x = net(forward), noise(8, 8)
    with pytest.warns(UserWarning) as told:
        q = quantized(model, x)
    text = " ".join(str(w.message) for w in told)
    assert all(name in text for name in ("fft_rfft", "fft_irfft"))
    assert minq.debug(q, model, x, each=False).exact > 60
    net_of_integers = minq.to_integer(q)
    assert minq.sqnr(q(x).detach(), net_of_integers(x)) > 60
