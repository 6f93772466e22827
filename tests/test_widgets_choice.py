"""MethodChoice in Python: what it chooses, sends and refuses."""

import itertools
import json
import math

import numpy as np
import pytest

pytest.importorskip("anywidget")

from traitlets import TraitError

from minqbook.widgets import MethodChoice

BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
WEIGHTS = {"a": 1000, "b": 8001}
FP32 = {"a": 94.0, "b": 72.5}


def records(seed=0):
    """Accuracies that fall with the bits, at random; some methods and rows are missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, grain, bits in itertools.product(FP32, (False, True), BITS):
        loss = {"W8A8": 0.2, "W4A8": 1.5, "W4A4": 6.0}[bits]
        ptq = FP32[name] - rng.exponential(loss)
        qat = (FP32[name] - rng.exponential(loss, 3) / 3).tolist()
        row = {"network": name, "per_channel": grain, "bits": bits, "ptq": ptq, "qat": qat}
        if rng.random() < 0.3:
            row[("ptq", "qat")[rng.integers(2)]] = None
        rows.append(row)
    return [rows[i] for i in rng.permutation(len(rows))]


def cheapest(rows, network, grain, limit):
    """All that is inside, the smallest first, and of the same size PTQ first."""
    inside = [
        (*BITS[r["bits"]], method == "qat", r["bits"], method)
        for r in rows
        for method in ("ptq", "qat")
        if (r["network"], r["per_channel"]) == (network, grain) and r[method] is not None
        if np.mean(r[method]) >= limit
    ]
    return min(inside)[3:] if inside else None


@pytest.mark.parametrize("seed", range(8))
def test_choice_is_the_smallest_inside_and_the_cheapest_way(seed):
    rows, trained = records(seed), {"a": 94.7}
    w = MethodChoice(rows, fp32=FP32, trained=trained, weights=WEIGHTS)
    for name, grain, allowed, reference in itertools.product(
        FP32, (False, True), (0.0, 0.5, 1.0, 3.0, 10.0), ("fp32", "trained")
    ):
        w.network, w.per_channel, w.allowed, w.reference = name, grain, allowed, reference
        level = trained.get(name, FP32[name]) if reference == "trained" else FP32[name]
        expected = cheapest(rows, name, grain, level - allowed)
        if expected is None:
            assert w.choice is None
            continue
        assert (w.choice["bits"], w.choice["method"]) == expected
        assert w.choice["accuracy"] >= level - allowed - 1e-6
        assert w.choice["bytes"] == WEIGHTS[name] * BITS[expected[0]][0] / 8


def test_a_loss_of_exactly_what_is_allowed_is_inside():
    assert 94.4 - 0.1 > 94.3  # in floats
    row = {"network": "a", "per_channel": False, "bits": "W4A8", "ptq": 94.3}
    w = MethodChoice([row], fp32={"a": 94.4}, weights=WEIGHTS, allowed=0.1)
    assert w.choice["method"] == "ptq"
    w.allowed = 0.0
    assert w.choice is None


def test_seeds_become_a_mean_and_a_spread():
    row = {"network": "a", "per_channel": True, "bits": "W8A8", "ptq": [90.0, 94.0], "qat": 93}
    w = MethodChoice([row], fp32=FP32, weights=WEIGHTS)
    assert w.rows[0]["ptq"] == [92.0, 90.0, 94.0] and w.rows[0]["qat"] == [93.0, 93, 93]
    json.dumps([w.rows, w.networks], allow_nan=False)
    one, other = (w._repr_mimebundle_()[0]["text/plain"] for _ in range(2))
    assert one == other and len(one.split("\n")[1]) > 60


ROW = {"network": "a", "per_channel": False, "bits": "W4A8", "ptq": 90.0, "qat": 91.0}


@pytest.mark.parametrize(
    "rows, settings, error, words",
    [
        ([], {}, ValueError, "empty"),
        ([ROW, ROW], {}, ValueError, "two records"),
        ([{"network": "a"}], {}, TypeError, "must be a dict with"),
        ([ROW | {"bits": "INT8"}], {}, ValueError, "must look like W4A8"),
        ([ROW | {"ptq": math.nan}], {}, ValueError, "must be finite"),
        ([ROW | {"ptq": "high"}], {}, TypeError, "must be a number"),
        ([ROW | {"ptq": None, "qat": []}], {}, ValueError, "neither ptq nor qat"),
        ([ROW | {"network": "c"}], {}, ValueError, "something about 'c'"),
        ([ROW], {"trained": {"a": math.inf}}, ValueError, "must be finite"),
        ([ROW], {"network": "b"}, ValueError, "network must be one of a"),
        ([ROW], {"allowed": -1.0}, ValueError, "0 to 100"),
        ([ROW], {"most": 101.0}, ValueError, "0 to 100"),
        ([ROW], {"reference": "ptq"}, TraitError, "reference"),
    ],
)
def test_it_refuses(rows, settings, error, words):
    with pytest.raises(error, match=words):
        MethodChoice(rows, fp32=FP32, weights=WEIGHTS, **settings)
