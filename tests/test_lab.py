"""The lab: what it is given, how answers go from step to step, and that they are minq's."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import replace

import lab as tool
import nbformat
import numpy as np
import pytest
import torch
from exercises import REFERENCE_MARKS, exercises
from torch import nn

import minq
from minq import graph
from minq.ptq import equalize as equalization
from minq.ptq.rounding import AdaRound
from minqbook import lab
from minqbook.lab import mine, solutions
from minqbook.lab.walk import round_network

STEPS = sorted(tool.BOOK.glob("lab*.ipynb"))


# --- What is given --------------------------------------------------------------------------------


def test_the_network_reads_digits():
    images, digits = lab.pictures("test")
    scores = lab.tensors(images, lab.network())["output 3"]
    assert lab.accuracy(scores, digits) > 95
    assert not {a.tobytes() for a in images} & {a.tobytes() for a in lab.pictures("train")[0]}


@pytest.mark.parametrize("stride, padding", [(1, 0), (1, 1), (2, 1), (2, 0)])
def test_the_convolution_without_torch_is_the_same(stride, padding, monkeypatch):
    random = np.random.default_rng(0)
    x, w, b = (random.standard_normal(s) for s in ((2, 3, 6, 6), (4, 3, 3, 3), 4))
    expected = torch.conv2d(*map(torch.tensor, (x, w, b)), stride=stride, padding=padding).numpy()
    np.testing.assert_array_equal(lab.conv(x, w, b, stride, padding), expected)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_allclose(lab.conv(x, w, b, stride, padding), expected, atol=1e-12)
    np.testing.assert_allclose(lab.conv(x, w, None, stride, padding),
                               expected - b[:, None, None], atol=1e-12)  # fmt: skip


def test_rows_make_a_convolution_a_product():
    layer, x = lab.network()[1], np.random.default_rng(0).standard_normal((2, 8, 8, 8))
    y = lab.conv(x, layer.weight, None, layer.stride, layer.padding)
    product = lab.rows(x, layer) @ layer.weight.reshape(16, -1).T
    np.testing.assert_allclose(product, np.moveaxis(y, 1, -1).reshape(-1, 16), atol=1e-12)


# --- From step to step ----------------------------------------------------------------------------


def test_the_module_of_solutions_is_that_of_the_notebooks():
    assert tool.FILE.read_text("utf-8") == tool.solutions(), "run python book/_tools/lab.py"


def cell(source: str, number: int) -> dict:
    """Run a cell as IPython does, which remembers its text."""
    name = f"<cell {number}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    names = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), names)
    return names


def test_each_step_imports_what_the_last_has_kept(tmp_path, monkeypatch, capsys):
    """A student who answers everything has all functions in one file, and all are used."""
    monkeypatch.chdir(tmp_path)
    for path in STEPS:
        for k, exercise in enumerate(exercises(nbformat.read(path, as_version=4))):
            answer = REFERENCE_MARKS.sub("", exercise.answer.source)
            names = cell(answer + f"\n\nSTEP = {path.stem!r}\n", k)
            exec(compile(exercise.check.source, "check", "exec"), names)
            assert "Kept in myquant.py" in capsys.readouterr().out, exercise.label
    assert mine.whose(*solutions.__all__) == f"{', '.join(solutions.__all__)}: yours"
    assert mine.adaround.__globals__["STEP"] == "lab7_integers"  # the file's, not the book's
    assert (tmp_path / "myquant.py").read_text("utf-8").count("def quantize(") == 1


def test_a_cell_is_replaced_and_the_rest_is_the_books(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mine.whose("quantize", "fold") == "quantize, fold: the book's"
    for value in (1, 2):
        names = cell(f"def quantize(x):\n    return {value}\n", value)
        assert lab.keep(names["quantize"]) == " Kept in myquant.py."
        assert mine.quantize(0) == value
        (tmp_path / "myquant.py").touch()
        os.utime("myquant.py", (value, value))  # two writes in one tick of the clock
    assert mine.whose("quantize", "fold") == "quantize: yours; fold: the book's"
    assert mine.fold is solutions.fold
    assert (tmp_path / "myquant.py").read_text("utf-8").count("def quantize") == 1
    with pytest.raises(AttributeError, match="the lab has no function 'sharpen'"):
        mine.sharpen  # noqa: B018


def test_the_books_answers_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = cell("def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n", 1)
    assert lab.keep(names["f"]) == "" and not list(tmp_path.iterdir())


def test_another_cell_under_the_same_name_is_not_kept(tmp_path, monkeypatch):
    """Where all cells of a page have one name, the text that is remembered is the last one's."""
    monkeypatch.chdir(tmp_path)
    names = cell("def f():\n    return 1\n", 1)
    cell("assert True, 'a check'\n", 1)
    assert lab.keep(names["f"]) == "" and not list(tmp_path.iterdir())


def test_a_broken_file_says_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "myquant.py").write_text("x = 1\ny = = 2\n", "utf-8")
    for _ in range(2):
        with pytest.raises(SyntaxError) as error:
            mine.quantize  # noqa: B018
        assert (error.value.filename, error.value.lineno) == ("myquant.py", 2)


# --- Held against minq ----------------------------------------------------------------------------


def by_minq() -> list[lab.Layer]:
    """Folded and equalized by minq's own functions, on NumPy arrays.

    PyTorch's square root may differ from NumPy's in the last bit.
    """
    layers = []
    for layer in lab.network():
        weight, bias = layer.weight, layer.bias
        if layer.norm:
            weight, bias = minq.fold_batch_norm(weight, bias, *layer.norm, lab.EPSILON)
        layers.append(replace(layer, weight=weight, bias=bias, norm=None))
    for _ in range(3):
        for k in range(3):
            a, b = layers[k], layers[k + 1]
            first, bias, second, _ = equalization.equalize(a.weight, a.bias, b.weight)
            layers[k : k + 2] = replace(a, weight=first, bias=bias), replace(b, weight=second)
    return layers


def as_torch(layers: list[lab.Layer]) -> nn.Module:
    """Folded layers as PyTorch has them."""
    parts: list[nn.Module] = []
    for layer in layers:
        outputs, inputs, kernel, _ = layer.weight.shape
        conv = nn.Conv2d(inputs, outputs, kernel, layer.stride, layer.padding)
        conv.weight.data, conv.bias.data = torch.tensor(layer.weight), torch.tensor(layer.bias)
        parts += [conv, nn.ReLU()] if layer.relu else [conv, nn.Flatten()]
    return nn.Sequential(*parts).eval()


def test_all_of_it_is_minqs_bit_for_bit():
    bits = 2
    x, images = lab.pictures("train")[0][:100], lab.pictures("test")[0][:100]
    layers = [solutions.fold(layer) for layer in lab.network()]
    for _ in range(3):
        for k in range(3):
            layers[k], layers[k + 1] = solutions.equalize(layers[k], layers[k + 1])
    rounded, grids = round_network(x, layers, bits, 8, solutions.adaround)

    def weight_range(w, *, axis, group):
        return tuple(torch.tensor(v).double() for v in solutions.mse_range(w.numpy(), bits, True))

    q = minq.ptq(as_torch(by_minq()), torch.tensor(x), weights=bits, activations=8, equalize=False,
                 weight_range=weight_range, activation_range="min_max", progress=False,
                 rounding=AdaRound(rows=10**6))  # fmt: skip
    quantizers = minq.quantizers(q)
    assert len(quantizers) == len(grids) == 9
    theirs = [tuple(map(float, m.scale_zero_point())) for m in quantizers.values()]
    names = [f"weight {k}" for k in range(4)] + ["input"] + [f"output {k}" for k in range(4)]
    assert [grids[name][:2] for name in names] == theirs
    for k, (layer, name) in enumerate(zip(rounded, list(quantizers)[:4], strict=True)):
        weight = graph.get(q, name.replace("weight_quantizer", "weight"))
        assert np.array_equal(layer.weight, weight.detach().numpy()), name
        nearest = solutions.fake_quantize(layers[k].weight, grids[f"weight {k}"])
        assert not np.array_equal(layer.weight, nearest)
    trace = minq.to_integer(q).trace(torch.tensor(images))
    integers = solutions.integer_network(images, rounded, grids)
    for name, place in zip(names[4:], list(quantizers)[4:], strict=True):
        assert np.array_equal(integers[name], trace[place].numpy().reshape(integers[name].shape))
    # one weight another way, and they differ: the comparison sees a single step
    other = rounded[0].weight.copy()
    other[0, 0, 1, 1] += grids["weight 0"][0] * (-1 if other[0, 0, 1, 1] > 0 else 1)
    changed = [replace(rounded[0], weight=other), *rounded[1:]]
    found = solutions.integer_network(images, changed, grids)["output 0"]
    assert not np.array_equal(found, integers["output 0"])


def test_the_gradients_are_minqs():
    x = torch.linspace(-3, 9, 97, dtype=torch.float64)
    mine_, theirs = [], []
    for function, found in ((solutions.fake_quantize_ste, mine_), (minq.fake_quantize, theirs)):
        a, s = x.clone().requires_grad_(), torch.tensor(0.4, dtype=torch.float64).requires_grad_()
        if function is minq.fake_quantize:
            y = function(a, s, 3, 4, rounding=minq.round_straight_through)
        else:
            y = function(a, s, 3, 0, 15)
        (y * torch.arange(97)).sum().backward()
        found += [y.detach(), a.grad, s.grad]
    assert torch.equal(mine_[0], theirs[0]) and torch.equal(mine_[1], theirs[1])
    torch.testing.assert_close(mine_[2], theirs[2])
