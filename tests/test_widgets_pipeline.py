"""SimulatedBlock, PipelineSteps and DebugChart: what they accept, refuse and say in Python."""

import itertools
import json
import math

import numpy as np
import pytest

pytest.importorskip("anywidget")

from traitlets import TraitError

from minqbook.widgets import DebugChart, PipelineSteps, SimulatedBlock, debug_chart

# --- SimulatedBlock -------------------------------------------------------------------------------


def test_configurations_are_those_with_different_quantizers_or_folding():
    """Fold counts even where nothing is rounded; every other difference is a quantizer."""
    switches = ("activations", "add", "fold", "fuse", "pool", "weights")
    every = [c for r in range(7) for c in itertools.combinations(switches, r)]
    distinct = {(SimulatedBlock.quantizers(*c), "fold" in c) for c in every}
    listed = [(SimulatedBlock.quantizers(*c), "fold" in c) for c in SimulatedBlock.configurations()]
    assert len(listed) == len(set(listed)) == 36 and set(listed) == distinct


def test_the_standard_and_the_naive_simulation():
    """After folding and fusing: one rounding a layer, and those of the add."""
    naive = SimulatedBlock.quantizers("weights", "activations", "add")
    assert len(naive) == 12 and "conv1" in naive and "pool" in naive
    best = SimulatedBlock.quantizers("weights", "activations", "add", "fold", "fuse", "pool")
    assert set(naive) - set(best) == {"conv1", "bn1", "conv2", "add", "pool"}
    assert SimulatedBlock.quantizers() == SimulatedBlock.quantizers("fold", "add", "pool") == ()


def test_block_reads_keys_in_any_order_and_form():
    measured = {"weights+fold": {"sqnr": np.float32(20)}, (): {"sqnr": 90}}
    w = SimulatedBlock(measured | {"pool+weights": {"sqnr": 7}}, activations=False)
    assert set(w.measured) == {"fold+weights", "", "weights"}
    assert w.result == {"sqnr": 7} and w.configuration == ("weights",)
    w.fold = True
    assert w.result == {"sqnr": 20.0}
    w.activations = True
    assert w.result is None
    json.dumps(w.measured, allow_nan=False)


@pytest.mark.parametrize(
    "measured, error, words",
    [
        ({"fold+bn": {"sqnr": 1.0}}, ValueError, "unknown switch 'bn'"),
        ({"weights": 3.0}, TypeError, "metric: number"),
        ({"weights": {"sqnr": math.nan}}, ValueError, "must be finite"),
        ({"weights": {"sqnr": "high"}}, TypeError, "must be a number"),
        ({"weights": {"sqnr": 1.0}, "fuse+weights": {"sqnr": 2.0}}, ValueError, "contradicts"),
        ({}, ValueError, "no metric was measured"),
    ],
)
def test_block_refuses(measured, error, words):
    with pytest.raises(error, match=words):
        SimulatedBlock(measured)


def test_block_refuses_settings():
    for bad in (
        {"weight_bits": 1},
        {"activation_bits": 17},
        {"view": "both"},
        {"metrics": {"x": "X"}},
    ):
        with pytest.raises((ValueError, TraitError)):
            SimulatedBlock({"": {"sqnr": 1.0}}, **bad)


# --- PipelineSteps --------------------------------------------------------------------------------


def records(**change):
    return [
        {"steps": {"equalize": e, "ranges": r, "bits": b}, "sqnr": 3.0 * e + b, "agreement": 90}
        | change
        for e in (True, False)
        for r in ("min-max", "MSE")
        for b in (8, 4)
    ]


def test_steps_and_options_come_from_the_records():
    w = PipelineSteps(records())
    assert [s["key"] for s in w.chain] == ["equalize", "ranges", "bits"]
    assert [s["options"] for s in w.chain] == [["off", "on"], ["min-max", "MSE"], ["8", "4"]]
    assert w.combination == {"equalize": False, "ranges": "min-max", "bits": 8}
    assert w.result == {"sqnr": 8.0, "agreement": 90}
    w.choice = [1, 1, 1]
    assert w.combination == {"equalize": True, "ranges": "MSE", "bits": 4}
    assert w.result == {"sqnr": 7.0, "agreement": 90}


def test_steps_take_labels_order_and_levels():
    w = PipelineSteps(
        records()[:-1],
        steps={"bits": ("Bits", {4: "W4A8", 8: "W8A8"}), "ranges": "Ranges", "equalize": "CLE"},
        metrics={"sqnr": ("signal to noise", "dB"), "agreement": ("errors", "%", "lower")},
        start={"equalize": True, "ranges": "MSE", "bits": 8},
        fp32={"sqnr": math.inf, "agreement": 100},
    )  # fmt: skip
    assert [s["label"] for s in w.chain] == ["Bits", "Ranges", "CLE"]
    assert w.chain[0]["options"] == ["W4A8", "W8A8"]
    assert w.choice == [1, 1, 1] and w.naive == [0, 0, 0] and w.levels == ["inf", 100]
    assert [m["lower"] for m in w.metrics] == [False, True]
    w.choice = [0, 1, 0]  # the record left out
    assert w.result is None
    json.dumps([w.chain, w.records, w.metrics, w.levels], allow_nan=False)


def test_true_is_not_one():
    rows = [{"steps": {"x": o}, "sqnr": i} for i, o in enumerate((True, 1, "1"))]
    w = PipelineSteps(rows, start={"x": 1})
    assert w.result == {"sqnr": 1} and len(w.chain[0]["options"]) == 3


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"results": []}, ValueError, "empty"),
        ({"results": [{"sqnr": 1.0}]}, TypeError, '"steps"'),
        ({"results": records() + records()[:1]}, ValueError, "repeats the combination"),
        ({"results": records(sqnr=math.nan)}, ValueError, "must be finite"),
        ({"results": records(sqnr=None)}, ValueError, "no record has a value of 'sqnr'"),
        ({"results": records() + [{"steps": {"b": 1}, "sqnr": 1}]}, TypeError, "every record"),
        ({"results": [{"steps": {"a": 1}}]}, ValueError, "no metric"),
        ({"start": {"equalize": True}}, ValueError, "name every step"),
        ({"start": {"equalize": True, "ranges": "best", "bits": 8}}, ValueError, "cannot be"),
        ({"fp32": {"loss": 1.0}}, ValueError, "fp32 has 'loss'"),
        ({"metrics": {"loss": "loss"}}, ValueError, "names 'loss'"),
        ({"metrics": {"sqnr": ("a", "b", "down")}}, ValueError, "lower"),
        ({"metric": "loss"}, ValueError, "metric must be one of"),
        ({"choices": 1}, TypeError, "no argument"),
    ],
)  # fmt: skip
def test_steps_refuse(change, error, words):
    with pytest.raises(error, match=words):
        PipelineSteps(**({"results": records()} | change))


def test_naive_must_have_been_measured():
    steps = {"equalize": False, "ranges": "MSE", "bits": 4}
    with pytest.raises(ValueError, match="was not measured"):
        PipelineSteps(records()[:-1], naive=steps)
    assert PipelineSteps(records()[4:]).naive == [0, 0, 0]
    assert PipelineSteps(records()[:4] + records()[6:], start=steps).naive == []
    with pytest.raises(ValueError, match="below"):
        PipelineSteps(records()).choice = [2, 0, 0]


# --- DebugChart -----------------------------------------------------------------------------------


def case(**answers):
    steps = {
        k: {"metric": {"SQNR (dB)": 1.0}, "answer": a, "text": "so it is"}
        for k, a in answers.items()
    }
    return {"name": "a network", "steps": steps, "verdict": "this was it"}  # fmt: skip


def test_every_way_through_the_chart_ends_in_a_verdict():
    """No circles, all eight questions and all verdicts reachable, two answers each."""
    questions, verdicts = debug_chart.QUESTIONS, debug_chart.VERDICTS
    seen, ways = set(), [["sanity"]]
    while ways:
        way = ways.pop()
        assert len(set(way)) == len(way) <= len(questions) + 1
        seen.add(way[-1])
        if way[-1] not in verdicts:
            ways += [[*way, to] for to in questions[way[-1]][2:4]]
    assert seen == set(questions) | set(verdicts) and len(questions) == 8


def test_path_follows_the_answers():
    way = {"sanity": "no", "all": "no", "weights": "no", "activations": "yes"}
    w = DebugChart([case(**way, fix_activations="no", sweep="yes", look="no")])
    assert w.path(0)[-3:] == ["sweep", "look", "train"]
    w.answers = ["no", "no", "yes"]
    with pytest.raises(ValueError, match="after the verdict"):
        w.answers = ["yes", "no"]
    with pytest.raises(ValueError, match="from 0 to 0"):
        w.case = 1
    json.dumps(w.cases, allow_nan=False)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"steps": {}}, ValueError, "lead to 'sanity'"),
        (case(sanity="no"), ValueError, "lead to 'all', which has no measurements"),
        (case(sanity="maybe"), ValueError, '"yes" or "no"'),
        (case(sanity="yes", sleep="no"), ValueError, "unknown question 'sleep'"),
        ({"verdicts": "?"}, ValueError, "unknown key 'verdicts'"),
        ({"layers": [{"name": "a"}]}, ValueError, "lacks 'sqnr'"),
        ({"layers": [{"name": "a", "sqnr": math.inf}]}, ValueError, "must be finite"),
        ({"layers": [{"name": "a", "sqnr": 1, "kind": "bias"}]}, ValueError, "kind must be"),
        ({"after": {"sqnr": 3}}, ValueError, "unknown key 'sqnr'"),
        ({"after": {"metric": {"sqnr": None}}}, TypeError, "must be a number"),
        ({"steps": {"sanity": {"metric": {}, "answer": "yes", "text": ""}}}, ValueError, "1 to 6"),
    ],
)
def test_chart_refuses(change, error, words):
    with pytest.raises(error, match=words):
        DebugChart([case(sanity="yes") | change])


def test_chart_refuses_cases():
    with pytest.raises(ValueError, match="empty"):
        DebugChart([])
    with pytest.raises(ValueError, match="must differ"):
        DebugChart([case(sanity="yes")] * 2)
    with pytest.raises(TypeError, match="must be a dict"):
        DebugChart(["a network"])


# --- All three ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: SimulatedBlock({"": {"sqnr": 1.0}}),
        lambda: PipelineSteps(records()),
        lambda: DebugChart([case(sanity="yes")]),
    ],
)
def test_text_twin_is_stable(make):
    one, other = (make()._repr_mimebundle_()[0]["text/plain"] for _ in range(2))
    assert one == other and len(one.split("\n")[1]) > 60
