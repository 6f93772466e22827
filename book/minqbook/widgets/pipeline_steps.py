"""The PTQ pipeline as a chain of switches (figure 8): what each step is worth, from here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import traitlets

from minqbook.widgets.base import Widget

METRICS = {
    "sqnr": ("SQNR", "dB"),
    "agreement": ("agreement with FP32", "%"),
    "accuracy": ("accuracy", "%"),
    "top1": ("top-1", "%"),
}
"""Names and units of metrics that need no explanation: {key: (label, unit)}."""


class PipelineSteps(Widget):
    """Flip the steps of a pipeline and see what each is worth, on results computed beforehand.

    results: a list of records {"steps": {step: option, ...}, metric: number, ...}, one for each
    combination that was measured; all have the same steps, an option is a string, bool or number,
    a metric may be missing or None. Combinations that are not there are shown as not measured.
    steps: the order of the chain, its labels and the order of the options, {step: (label,
    {option: label})} or {step: label}; default: as the records have them. metrics: {metric:
    (label, unit)} or (label, unit, "lower") where less is better; default: all in the records.
    start: the combination shown first; naive: the one marked as naive (both default to each step's
    first option). fp32: {metric: number}, the level of the float network; ``math.inf`` for an SQNR.
    metric: the one shown first.

    In a live notebook ``combination`` follows the picture.

    >>> results = [{"steps": {"equalize": e, "bits": b}, "sqnr": 9.0 * e + 5.0 * (b == "W8A8")}
    ...            for e in (False, True) for b in ("W8A8", "W4A8")]
    >>> w = PipelineSteps(results, fp32={"sqnr": math.inf})
    >>> w
    PipelineSteps(combination={'equalize': False, 'bits': 'W8A8'}, metric='sqnr')
    >>> w.result
    {'sqnr': 5.0}

    Raises TypeError or ValueError for records that lack steps, differ in their steps, come twice,
    hold NaN or no metric at all, and for a start or naive combination with unknown parts.
    """

    chain = traitlets.List().tag(sync=True)  # [{key, label, options: [label, ...]}]
    records = traitlets.List().tag(sync=True)  # [{at: [option, ...], values: [metric, ...]}]
    metrics = traitlets.List().tag(sync=True)  # [{key, label, unit, lower}]
    levels = traitlets.List().tag(sync=True)  # FP32, a metric each: a number, "inf" or None
    naive = traitlets.List().tag(sync=True)  # an option a step, or empty
    choice = traitlets.List(traitlets.Int()).tag(sync=True)
    metric = traitlets.Unicode().tag(sync=True)
    shown = ("combination", "metric")

    def __init__(
        self,
        results: Sequence[Mapping[str, Any]],
        *,
        steps: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
        naive: Mapping[str, Any] | None = None,
        fp32: Mapping[str, float] | None = None,
        metric: str | None = None,
        alt: str = "A chain of switches, one for each step of the pipeline; below it the measured "
        "result of the combination chosen, among those of all others, and a table of what each "
        "switch is worth from there.",
        **traits: Any,
    ) -> None:
        results = _checked(results)
        chain = _chain(results, steps)
        self._options = {key: [o for o, _ in options] for key, _, options in chain}
        names = list(dict.fromkeys(k for record in results for k in record if k != "steps"))
        described = named_metrics(metrics, names)
        keys = [m["key"] for m in described]
        found = self._found(results, keys)
        first = [0] * len(chain)
        super().__init__(
            chain=[{"key": k, "label": a, "options": [b for _, b in o]} for k, a, o in chain],
            records=[{"at": list(at), "values": values} for at, values in found.items()],
            metrics=described,
            levels=_levels(fp32 or {}, keys),
            naive=self._naive(naive, found, first),
            choice=first if start is None else self._index(start, "start"),
            metric=keys[0] if metric is None else metric,
            alt=alt,
            **traits,
        )

    def _found(
        self, results: Sequence[Mapping[str, Any]], keys: Sequence[str]
    ) -> dict[tuple[int, ...], list[float | None]]:
        """What was measured, by the places of the options: a value or None for each metric."""
        found: dict[tuple[int, ...], list[float | None]] = {}
        for i, record in enumerate(results):
            at = tuple(self._index(record["steps"], f"results[{i}]"))
            if at in found:
                raise ValueError(
                    f"results[{i}] repeats the combination {dict(record['steps'])}; "
                    "keep one record of each, for instance the mean over seeds"
                )
            found[at] = [
                None if record.get(k) is None else number(record[k], f"results[{i}][{k!r}]")
                for k in keys
            ]
        for i, key in enumerate(keys):
            if all(values[i] is None for values in found.values()):
                raise ValueError(f"no record has a value of {key!r}; leave it out of metrics")
        return found

    def _naive(
        self,
        naive: Mapping[str, Any] | None,
        found: Mapping[tuple[int, ...], Any],
        first: list[int],
    ) -> list[int]:
        """What others are compared with: by default the first option of each step, if measured."""
        if naive is None:
            return first if tuple(first) in found else []
        base = self._index(naive, "naive")
        if tuple(base) not in found:
            raise ValueError(f"naive={dict(naive)} was not measured; choose a record's steps")
        return base

    @property
    def combination(self) -> dict[str, Any]:
        """The options chosen now, {step: option}."""
        pairs = zip(self._options.items(), self.choice, strict=True)
        return {key: options[i] for (key, options), i in pairs}

    @property
    def result(self) -> dict[str, float | None] | None:
        """What was measured for that combination, {metric: number}; None if it was not."""
        for record in self.records:
            if record["at"] == self.choice:
                keys = (m["key"] for m in self.metrics)
                return dict(zip(keys, record["values"], strict=True))
        return None

    def _index(self, steps: Mapping[str, Any], where: str) -> list[int]:
        """The place of each option in its step's list."""
        if set(steps) != set(self._options):
            raise ValueError(
                f"{where} has the steps {', '.join(map(str, steps)) or 'none'}, expected "
                f"{', '.join(self._options)}; name every step in every combination"
            )
        places = []
        for key, options in self._options.items():
            at = [i for i, o in enumerate(options) if _same(o, steps[key])]
            if not at:
                known = ", ".join(map(repr, options))
                raise ValueError(f"{where}: {key!r} cannot be {steps[key]!r}; it has {known}")
            places.append(at[0])
        return places

    @traitlets.validate("choice")
    def _check_choice(self, proposal: Any) -> list[int]:
        sizes = [len(o) for o in self._options.values()]
        fits = len(proposal.value) == len(sizes)
        if not fits or not all(0 <= i < n for i, n in zip(proposal.value, sizes, strict=True)):
            raise ValueError(f"choice must hold one index a step, below {sizes}")
        return proposal.value

    @traitlets.validate("metric")
    def _check_metric(self, proposal: Any) -> str:
        keys = [m["key"] for m in self.metrics]
        if keys and proposal.value not in keys:
            raise ValueError(f"metric must be one of {', '.join(keys)}, not {proposal.value!r}")
        return proposal.value


def _same(a: Any, b: Any) -> bool:
    """Equal, and of one kind: True is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _checked(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records, each with the steps that it belongs to."""
    records = list(results)
    if not records:
        raise ValueError("results are empty; pass one record for each combination measured")
    for i, record in enumerate(records):
        if not isinstance(record, Mapping) or not isinstance(record.get("steps"), Mapping):
            raise TypeError(
                f'results[{i}] must be a dict with "steps": {{step: option}} and numbers, '
                f"not {record!r}"
            )
    return records


def _levels(fp32: Mapping[str, float], keys: Sequence[str]) -> list[Any]:
    """What full precision has of each metric, as JSON can carry it: a number, "inf" or None."""
    if unknown := [k for k in fp32 if k not in keys]:
        raise ValueError(f"fp32 has {unknown[0]!r}, but the metrics are {', '.join(keys)}")
    levels: list[Any] = []
    for key in keys:
        level = fp32.get(key)
        infinite = isinstance(level, Real) and math.isinf(level)
        levels.append(
            "inf" if infinite else None if level is None else number(level, f"fp32[{key!r}]")
        )
    return levels


def _chain(results: Sequence[Mapping[str, Any]], steps: Mapping[str, Any] | None) -> list[Any]:
    """[(step, label, [(option, label), ...]), ...] in the order in which to show them."""
    chain = []
    given = results[0]["steps"] if steps is None else steps
    for key in given:
        seen: list[Any] = []
        for record in results:
            option = record["steps"].get(key)
            if not isinstance(option, (str, bool, Real)):
                raise TypeError(
                    f"step {key!r} has the option {option!r} in some record; every record needs "
                    "it, as a string, a bool or a number"
                )
            if not any(_same(o, option) for o in seen):
                seen.append(option)
        told = (key, {}) if steps is None else steps[key]
        label, options = (told, {}) if isinstance(told, str) else told
        ordered = [(o, str(a)) for o, a in options.items()]
        if all(isinstance(o, bool) for o in seen):
            seen.sort()
        words = {True: "on", False: "off"}
        for o in seen:
            if not any(_same(o, known) for known, _ in ordered):
                ordered.append((o, words[o] if isinstance(o, bool) else str(o)))
        chain.append((str(key), str(label), ordered))
    return chain


def number(value: Any, what: str) -> float:
    """A finite number as JSON can carry it.

    >>> number(3, "bits")
    3
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, not {value!r}; call .item() on arrays")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, not {value}; leave it out if it means nothing")
    return int(value) if isinstance(value, Integral) else float(value)


def named_metrics(metrics: Mapping[str, Any] | None, names: Sequence[str]) -> list[dict[str, Any]]:
    """[{key, label, unit, lower}] for the metrics to show: those told, else all ``names``.

    >>> named_metrics(None, ["sqnr"])
    [{'key': 'sqnr', 'label': 'SQNR', 'unit': 'dB', 'lower': False}]
    """
    if not names:
        raise ValueError('no metric was measured; pass for instance {"sqnr": 12.3}')
    described = []
    for key in names if metrics is None else metrics:
        if key not in names:
            raise ValueError(f"metrics names {key!r}, but measured were {', '.join(names)}")
        told = (metrics or {}).get(key, METRICS.get(key, (key, "")))
        label, unit, *rest = (told, "") if isinstance(told, str) else told
        if rest not in ([], ["lower"], ["higher"]):
            raise ValueError(f'metrics[{key!r}] must be (label, unit) or (label, unit, "lower")')
        described.append({"key": key, "label": label, "unit": unit, "lower": rest == ["lower"]})
    return described
