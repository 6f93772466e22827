"""What passes know of a node or a network stays with it, wherever it goes."""

import copy
import io

import pytest
import torch
from networks import Lambda, noise
from torch import nn
from torch.utils._pytree import tree_flatten

import minq
from minq import graph
from minq.deploy.compiler.compile import HANDLERS
from minq.export import capture
from minq.fold import fold
from minq.ptq.smooth import smooth


def saved_and_loaded(gm):
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def known(gm):
    """All notes, as values that can be compared."""
    return [vars(graph.network_notes(gm))] + [vars(graph.notes_of(n)) for n in gm.graph.nodes]


def same(a, b):
    (a, shape), (b, other) = tree_flatten(a), tree_flatten(b)
    alike = lambda x, y: torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y  # noqa: E731
    return shape == other and all(map(alike, a, b))


def folded():
    return fold(
        capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), noise(2, 3, 8, 8))
    )


def smoothed():
    torch.manual_seed(0)
    modules = dict(norm=nn.LayerNorm(6), linear=nn.Linear(6, 6))
    model = Lambda(lambda m, x: m.linear(y := m.norm(x)) + y, **modules).eval()
    return smooth(capture(model, noise(4, 6)), noise(4, 6), alpha=0.5)


def rounded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    return minq.ptq(model, noise(16, 6), weights=4, progress=False)


@pytest.mark.parametrize("make", [folded, smoothed, rounded])
@pytest.mark.parametrize("move", [copy.deepcopy, saved_and_loaded, lambda gm: gm.to("cpu")])
def test_notes_stay_with_a_network(make, move):
    gm = make()
    before = copy.deepcopy(known(gm))
    assert any(v for notes in before for v in notes.values()), "nothing was noted"
    assert same(known(move(gm)), before)


def test_what_was_noted_is_there():
    statistics = [graph.notes_of(n).statistics for n in folded().graph.nodes]
    assert len([s for s in statistics if s is not None]) == 1
    assert any(graph.notes_of(n).smoothing for n in smoothed().graph.nodes)
    assert graph.network_notes(rounded()).added and graph.network_notes(rounded()).captured


def test_statistics_go_where_the_network_goes():
    (found,) = [s for n in folded().double().graph.nodes if (s := graph.notes_of(n).statistics)]
    assert {v.dtype for v in found} == {torch.float64}


def test_a_copy_does_not_share_what_it_learns():
    gm = folded()
    twin = copy.deepcopy(gm)
    graph.note_network(twin, trained=True)
    for node in twin.graph.nodes:
        graph.note(node, smoothing=True)
    assert not graph.network_notes(gm).trained
    assert not any(graph.notes_of(n).smoothing for n in gm.graph.nodes)


def test_the_table_names_lowerings_that_exist_and_all_of_them():
    assert {o.integer for o in graph.OPERATORS.values()} - {""} == set(HANDLERS)
