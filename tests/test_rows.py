"""The eight networks of the paper's tables, from their libraries, on small inputs."""

import json
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

import minq
from minq.affine import sqnr
from minq.export import capture
from minqbook.tables import rows
from minqbook.tables.full_size import answers, compare
from minqbook.tables.paper import paper_tables
from minqbook.tables.rows import ROWS

SIZES = {"inception_v3": 80, "efficientdet_d1": 128, "bert_base": 16}
"""The smallest that all of their layers can work with; 64 for the others."""

QUICK = {"weight_range": "min_max", "activation_range": "min_max", "rounding": "nearest"}

IN_FLOAT = {name: [] for name in ROWS}
"""Operators without an integer form: in no row."""

SLOW = ("resnet50", "inception_v3", "deeplab_v3", "efficientdet_d1", "bert_base")
"""What 4 bits do, the other three show."""

LOUDER = {"inception_v3": 5, "efficientdet_d1": 5}
"""SQNR in dB that random weights must keep with W8A8, where it is not 14: these networks make noise
louder. efficientdet_d1 turns 80 dB at its input into 65 at its answers, so that the order in which
sums are computed, one thread or two, moves W8A8 from 9.8 to 12.9 dB."""


@cache
def row(name):
    """A row as a graph, and inputs."""
    size = SIZES.get(name, 64)
    x = ROWS[name].example(2, size)
    return capture(ROWS[name].build(size=size), x), x


@cache
def quantized(name, bits):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not among the operators that are quantized")
        return minq.ptq(*row(name), weights=bits, progress=False, **QUICK)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_quantized_and_none_of_its_operators_is_unknown(name):
    gm, x = row(name)
    exact = answers(gm, x)
    assert exact.isfinite().all() and exact.std() > 1e-3
    assert sqnr(exact, answers(quantized(name, 8), x)) > LOUDER.get(name, 14)
    if name not in SLOW:
        assert sqnr(exact, answers(quantized(name, 4), x)) > 3


@pytest.mark.parametrize("name", ROWS)
def test_every_row_computes_in_integers_alone(name):
    _, x = row(name)
    net = minq.to_integer(quantized(name, 8), multipliers="float")
    assert list(net.islands) == IN_FLOAT[name]
    if name != "bert_base":  # nothing that the tests of its operators do not show
        compared, differ = compare(net, quantized(name, 8), x)
        assert compared > 10**5 and differ == 0


def test_pairs_are_equalized_in_all_convolutional_rows():
    expected = json.loads((Path(minq.__file__).parents[1] / "book/results/rows.json").read_text())
    measured = {r["row"]: r for r in expected["records"] if r["measure"] == "network"}
    for name in ("resnet18", "mobilenet_v2", "bert_base"):
        gm = minq.fold.fold(capture(*row(name)))
        sets = minq.ptq.channels.shared_channels(gm)
        assert len(sets) == measured[name]["equalized"]
        assert (name == "bert_base") == (not sets)


# --- The contract of rows -------------------------------------------------------------------------


def target(name, size):
    task = ROWS[name].task
    if task == "segmentation":
        return torch.randint(0, 21, (2, size, size))
    if task == "detection":
        box = torch.tensor([[10.0, 20.0, 90.0, 100.0]])
        return {"bbox": [box, box[:0]], "cls": [torch.tensor([3.0]), torch.zeros(0)]}
    return torch.tensor([0, 1])


@pytest.mark.parametrize("name", ["resnet18", "deeplab_v3", "efficientdet_d1", "bert_base"])
def test_the_loss_is_that_of_the_task_and_reaches_the_network(name):
    gm, x = row(name)
    size = SIZES.get(name, 64)
    gm = capture(gm, x)
    outputs = gm(**x) if isinstance(x, dict) else gm(x)
    loss = ROWS[name].loss(outputs, target(name, size))
    assert loss.ndim == 0 and 0 < loss.item() < float("inf")
    first = next(p for p in gm.parameters() if p.requires_grad and p.ndim > 1)
    (gradient,) = torch.autograd.grad(loss, first)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_a_regression_has_the_squared_error():
    outputs = {"logits": torch.tensor([[1.0], [4.0]])}
    assert float(ROWS["bert_base"].loss(outputs, torch.tensor([2.0, 2.0]))) == 2.5


@pytest.mark.parametrize("name", ROWS)
def test_titles_and_preprocessing_are_those_of_paper_and_library(name):
    assert ROWS[name].title in paper_tables()["ptq"]
    expected = ROWS[name].preprocess
    if ROWS[name].task == "glue":
        assert expected == {"tokenizer": "bert-base-uncased", "length": 128}
    else:
        assert expected["mean"] == (0.485, 0.456, 0.406) and expected["resize"] >= 224


def test_random_weights_and_inputs_are_always_the_same():
    once, again = (ROWS["mobilenet_v2"].build() for _ in range(2))
    for a, b in zip(once.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for name in ("resnet18", "bert_base"):
        a, b, other = (ROWS[name].example(3, 32, seed) for seed in (0, 0, 1))
        leaves = [tree_leaves(v) for v in (a, b, other)]
        assert all(map(torch.equal, leaves[0], leaves[1]))
        assert not torch.equal(leaves[0][0], leaves[2][0])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file(tmp_path, suffix):
    made, path = ROWS["mobilenet_v2"].build(classes=3), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(made.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(made.state_dict(), path)
    x = ROWS["mobilenet_v2"].example(2, 64)
    read = ROWS["mobilenet_v2"].build(path, classes=3)
    assert not read.training and torch.equal(answers(read, x), answers(made, x))
    with pytest.raises(ValueError, match="give the library's own file, and classes="):
        ROWS["mobilenet_v2"].build(path)
    with pytest.raises(FileNotFoundError, match="there is no"):
        ROWS["mobilenet_v2"].build(tmp_path / "other.pth")


def test_a_missing_library_is_named(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(rows, "import_module", missing)
    with pytest.raises(ImportError, match="requirements-models.txt"):
        ROWS["resnet18"].build()
