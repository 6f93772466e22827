"""The debugging flow of section 3.7: what to do when a quantized network is bad, on evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from minqbook.widgets.base import Widget
from minqbook.widgets.pipeline_steps import number

QUESTIONS: dict[str, tuple[str, str, str, str, str]] = {
    "sanity": (
        "32 bits differ from FP32?",
        "Set every quantizer to 32 bits. Does the result differ from the float network's?",
        "setup",
        "all",
        "At 32 bits rounding is too fine to matter: any difference is a bug around quantization.",
    ),
    "all": (
        "All quantized: good enough?",
        "Quantize everything at the bits you want. Is the result close enough to the float "
        "network's?",
        "ready",
        "weights",
        "Only if it is not is there anything to debug.",
    ),
    "weights": (
        "Weights alone: lossy?",
        "Quantize the weights only, activations stay float. Is a large part of the loss there?",
        "fix_weights",
        "activations",
        "Weights and activations fail for different reasons and have different remedies.",
    ),
    "fix_weights": (
        "Weights repaired: recovered?",
        "Equalize, or quantize per channel, and round with AdaRound or correct the bias; then "
        "quantize everything again. Is the result close enough now?",
        "weights_fixed",
        "activations",
        "These remedies all change how the weights meet their grid.",
    ),
    "activations": (
        "Activations alone: lossy?",
        "Quantize the activations only, weights stay float. Is a large part of the loss there?",
        "fix_activations",
        "sweep",
        "What remains must come from activations, or from a few places only.",
    ),
    "fix_activations": (
        "Ranges set anew: recovered?",
        "Set the activation ranges by MSE in place of min-max, equalize, absorb high biases. Is "
        "the result close enough now?",
        "ranges_fixed",
        "sweep",
        "A better range helps where the tails of many tensors are at fault.",
    ),
    "sweep": (
        "One at a time: do few stand out?",
        "Switch on one quantizer at a time, all others off. Do one or a few lose far more than the "
        "rest?",
        "look",
        "train",
        "If the loss is spread evenly over the network, no single place can be repaired.",
    ),
    "look": (
        "Its values: is there a cause?",
        "Look at the values of the worst one. Is there a reason that a range, per-channel scales "
        "or a few more bits for this tensor would remove?",
        "one_fixed",
        "train",
        "An outlier, one wide channel, two tensors in one concat: each has its remedy.",
    ),
}
"""{question: (short, full, where "yes" leads, where "no" leads, why it is asked)}."""

VERDICTS: dict[str, tuple[str, str]] = {
    "setup": (
        "Fix the setup",
        "Quantization is not to blame. Compare preprocessing, batch-norm mode, the exported graph "
        "and the evaluation with those of the float network, until 32 bits agree.",
    ),
    "ready": ("Ready", "Nothing to debug: the network keeps its quality in integers."),
    "weights_fixed": ("Weights fixed", "The weights were to blame; keep the remedy that helped."),
    "ranges_fixed": (
        "Ranges fixed",
        "The ranges of the activations were to blame; keep the new ones.",
    ),
    "one_fixed": (
        "Fix that tensor",
        "One or a few tensors were to blame: clip their range, give their channels scales of "
        "their own, or give them 16 bits; then quantize everything again.",
    ),
    "train": (
        "More bits, or train",
        "No single place is to blame. Take more bits, or train with quantization in the loop.",
    ),
}
"""{verdict: (short, what to do)}: where a walk ends."""


class DebugChart(Widget):
    """Walk the flow chart of PTQ debugging on the measurements of a network that went wrong.

    cases: a list of dicts, one a network:

        name     text for the selector, unique
        steps    {question: {"metric": {label: number or text, ...},    the evidence, 1 to 6 numbers
                             "answer": "yes" or "no",                   what it says
                             "text": why it says so,                    shown once answered
                             "layers": [...]}}                          optional, see below
        layers   optional [{"name": text, "sqnr": dB, "kind": "weight" or "activation"}, ...] in the
                 order of the network (kind is optional): the bar chart at every question that has
                 no layers of its own
        verdict  text: what was wrong and what was done
        after    {"metric": {label: number or text}, "layers": [...]} after the fix; optional, and
                 so are its parts. Labels that also stand in the evidence of "all" (or "sanity") are
                 shown as before and after.
        note     optional sentence that introduces the case

    The questions are those of ``QUESTIONS``: sanity, all, weights, fix_weights, activations,
    fix_activations, sweep, look. A case needs those on the way that its answers take from
    "sanity" to a verdict; others are optional and shown to readers who go astray.

    >>> w = DebugChart([{"name": "healthy", "verdict": "Nothing is wrong.", "steps": {
    ...     "sanity": {"metric": {"agreement (%)": 100.0}, "answer": "no", "text": "They agree."},
    ...     "all": {"metric": {"agreement (%)": 99.2}, "answer": "yes", "text": "Close enough."}}}])
    >>> w, w.path(0)
    (DebugChart(case=0, answers=[]), ['sanity', 'all', 'ready'])

    Raises TypeError or ValueError for unknown questions or keys, answers other than "yes" and "no",
    a way that ends before a verdict, names that come twice, and numbers that are not finite.
    """

    cases = traitlets.List().tag(sync=True)
    questions = traitlets.Dict(QUESTIONS).tag(sync=True)
    verdicts = traitlets.Dict(VERDICTS).tag(sync=True)
    case = traitlets.Int(0).tag(sync=True)
    answers = traitlets.List(traitlets.Enum(["yes", "no"])).tag(sync=True)
    shown = ("case", "answers")

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        *,
        alt: str = "The flow chart of PTQ debugging: eight questions, six verdicts. For each "
        "question the measured evidence is shown, and answering yes or no lights up the way.",
        **traits: Any,
    ) -> None:
        read = [_case(case, f"cases[{i}]") for i, case in enumerate(cases)]
        if not read:
            raise ValueError("cases are empty; pass at least one network with its measurements")
        names = [case["name"] for case in read]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of cases must differ, not {names}")
        super().__init__(cases=read, alt=alt, **traits)

    def path(self, case: int) -> list[str]:
        """The questions and the verdict to which the evidence of a case leads."""
        return _path(self.cases[case]["steps"], self.cases[case]["name"])

    @traitlets.validate("case")
    def _check_case(self, proposal: Any) -> int:
        if not 0 <= proposal.value < max(1, len(self.cases)):
            last = len(self.cases) - 1
            raise ValueError(f"case must be from 0 to {last}, not {proposal.value}")
        return proposal.value

    @traitlets.validate("answers")
    def _check_answers(self, proposal: Any) -> list[str]:
        at = "sanity"
        for answer in proposal.value:
            if at in VERDICTS:
                raise ValueError(f"answers go on after the verdict {at!r}; leave out the last ones")
            at = QUESTIONS[at][2 if answer == "yes" else 3]
        return proposal.value


def _path(steps: Mapping[str, Any], where: str) -> list[str]:
    path = ["sanity"]
    while path[-1] not in VERDICTS:
        if path[-1] not in steps:
            raise ValueError(
                f"{where}: the answers lead to {path[-1]!r}, which has no measurements; "
                f"add steps[{path[-1]!r}], or change the answer before it"
            )
        answer = steps[path[-1]]["answer"]
        path.append(QUESTIONS[path[-1]][2 if answer == "yes" else 3])
    return path


def _case(case: Mapping[str, Any], where: str) -> dict[str, Any]:
    _keys(case, where, {"name", "steps", "verdict"}, {"layers", "after", "note"})
    steps = {}
    for key, step in case["steps"].items():
        if key not in QUESTIONS:
            raise ValueError(f"{where}: unknown question {key!r}; they are {', '.join(QUESTIONS)}")
        at = f"{where}.steps[{key!r}]"
        _keys(step, at, {"metric", "answer", "text"}, {"layers"})
        if step["answer"] not in ("yes", "no"):
            raise ValueError(f'{at}: answer must be "yes" or "no", not {step["answer"]!r}')
        steps[key] = {
            "metric": _metric(step["metric"], at),
            "answer": step["answer"],
            "text": str(step["text"]),
            "layers": _layers(step.get("layers", ()), at),
        }
    _path(steps, where)
    after = case.get("after") or {}
    _keys(after, f"{where}.after", set(), {"metric", "layers"})
    return {
        "name": str(case["name"]),
        "note": str(case.get("note", "")),
        "steps": steps,
        "layers": _layers(case.get("layers", ()), where),
        "verdict": str(case["verdict"]),
        "after": {
            "metric": _metric(after.get("metric", {}), f"{where}.after", 0),
            "layers": _layers(after.get("layers", ()), f"{where}.after"),
        },
    }


def _keys(given: Any, where: str, needed: set[str], allowed: set[str]) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{where} must be a dict, not {given!r}")
    if missing := sorted(needed - set(given)):
        raise ValueError(f"{where} lacks {missing[0]!r}; it needs {', '.join(sorted(needed))}")
    if unknown := sorted(set(given) - needed - allowed):
        known = ", ".join(sorted(needed | allowed))
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {known}")


def _metric(metric: Any, where: str, least: int = 1) -> dict[str, Any]:
    if not isinstance(metric, Mapping) or not least <= len(metric) <= 6:
        raise ValueError(
            f"{where}: metric must be a dict of {least} to 6 {{label: number}}, not {metric!r}"
        )
    what = f"{where}: metric"
    return {
        str(k): v if isinstance(v, str) else number(v, f"{what}[{k!r}]") for k, v in metric.items()
    }


def _layers(layers: Any, where: str) -> list[dict[str, Any]]:
    read = []
    for i, layer in enumerate(layers):
        at = f"{where}.layers[{i}]"
        _keys(layer, at, {"name", "sqnr"}, {"kind"})
        kind = layer.get("kind", "")
        if kind not in ("", "weight", "activation"):
            raise ValueError(f'{at}: kind must be "weight" or "activation", not {kind!r}')
        read.append(
            {"name": str(layer["name"]), "sqnr": number(layer["sqnr"], f"{at} sqnr"), "kind": kind}
        )
    return read
