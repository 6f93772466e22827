"""Language models as they come: captured, simulated, on integers, in a file."""

import warnings
from functools import cache

import pytest
import torch
from decoders import DECODERS, logits_of, model_of, tokens

import minq
from minq import graph
from minq.deploy.integer import simulation
from minq.simulate import activation_quantizers, is_quantizer, weight_quantizers

W8A8 = {"weights": 8, "activations": 8, "equalize": False}


@cache
def captured(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = model_of(name)
        return model, minq.capture(model, tokens(name))


@cache
def quantized(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would name what stays in float
        return minq.ptq(captured(name)[1], tokens(name), rounding="nearest", **W8A8)


@torch.no_grad()
def logits(network, name, samples=8):
    return logits_of(network(**tokens(name, samples)))


@pytest.mark.parametrize("name", DECODERS)
def test_the_captured_network_is_the_model(name):
    """For any number of sequences; operators in another order differ in the last digits."""
    model, gm = captured(name)
    for samples in (8, 3, 1):
        exact = logits(model, name, samples)
        off = float((logits(gm, name, samples) - exact).abs().max())
        assert off < 2e-5 * float(exact.abs().max())


def source(node):
    """Back through what only moves values or scales them."""
    while not is_quantizer(node) and graph.traits(node).passes:
        node = node.all_input_nodes[0]
    return node


@pytest.mark.parametrize("name", DECODERS)
def test_every_weight_and_every_product_is_on_a_grid(name):
    q = quantized(name)
    kinds = [graph.op(node) for node in q.graph.nodes]
    assert kinds.count("matmul") == (12 if name == "T5" else 4)  # q k^T and p v
    assert "softmax" in kinds and not {"addmm", "scaled_dot_product_attention"} & {*kinds}
    assert not {"pow", "rsqrt", "mean", "sqrt"} & {*kinds} or name == "GPT-2"  # all in rms_norm
    for node in q.graph.nodes:
        if not graph.traits(node).multiplies:
            continue
        of = graph.traits(node)
        if of.layer:
            assert is_quantizer(graph.weight_node(node)), node
        for x in filter(graph.is_float, graph.operands(node)):
            assert is_quantizer(source(x)) or graph.op(source(x)) == "embedding", (node, x)
    matrices = [p for n, p in q.named_parameters() if p.ndim == 2 and "quantizer" not in n]
    assert len(weight_quantizers(q)) == len(matrices)


@pytest.mark.parametrize("name", DECODERS)
def test_masked_scores_set_no_range_and_quality_is_that_of_8_bits(name):
    q = quantized(name)
    assert min(float(one.low) for one in activation_quantizers(q).values()) > -150
    assert minq.sqnr(logits(captured(name)[0], name), logits(q, name)) > 22


@pytest.mark.parametrize("name", DECODERS)
def test_on_integers_with_not_one_float(name):
    """The same integers with multipliers in floats; a few steps off with fixed ones."""
    q = quantized(name)
    net = minq.to_integer(q)
    assert net.islands == {}
    assert minq.sqnr(logits(q, name, 3), logits(net, name, 3)) > 28
    if name in ("Llama", "T5"):
        exact = minq.to_integer(q, multipliers="float")
        expected = logits(simulation(q), name, 3).float()  # a step is 1e-2 of the largest
        torch.testing.assert_close(logits(exact, name, 3), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "T5"])
def test_onnx_runtime_answers_the_same(name, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    q = quantized(name)
    path = minq.to_onnx(q, tmp_path / "decoder.onnx", example=tokens(name))
    session = ort.InferenceSession(path)
    for samples in (8, 2):
        given = tokens(name, samples)
        found = session.run(None, {k: v.numpy() for k, v in given.items()})[0]
        assert minq.sqnr(logits(q, name, samples), torch.from_numpy(found)) > 28


def test_rounding_leaves_a_tied_table_as_it_was():
    """GPTQ gives the head a weight of its own; the embedding reads what it read."""
    model, gm = captured("Llama")
    q = minq.ptq(
        gm, tokens("Llama"), weights=4, per_channel=True, group_size=8, activations=None,
        rounding="gptq", equalize=False,
    )  # fmt: skip
    table, head = (
        next(graph.weight_node(n) for n in q.graph.nodes if graph.is_layer(n) and here(n))
        for here in (lambda n: graph.op(n) == "embedding", lambda n: n.meta["val"].shape[-1] == 100)
    )
    table, head = (graph.get(q, graph.parameter_of(n).target) for n in (table, head))
    assert torch.equal(table, model.lm_head.weight) and not torch.equal(head, table)


def test_a_cache_is_refused_and_the_way_out_is_named():
    model = model_of("Qwen2")
    model.config.use_cache = True
    with pytest.raises(minq.CaptureError, match="use_cache=False"):
        minq.capture(model, tokens("Qwen2"))


def test_sequences_of_another_length_are_refused_in_words():
    q = quantized("nanoGPT")
    with pytest.raises(ValueError, match=r"input_ids has shape \(2, 7\).*captured with.*12"):
        q(tokens("nanoGPT", 2)["input_ids"][:, :7])
