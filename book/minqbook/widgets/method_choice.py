"""Train or not: the smallest network that loses no more than is allowed, and how to get it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from minqbook.widgets.base import Widget
from minqbook.widgets.pipeline_steps import number

METHODS = ("ptq", "qat")  # the cheaper one first
SLACK = 1e-9  # the slider's tenths are no exact floats


class MethodChoice(Widget):
    """Say how many points may be lost, and see which bit width and which method are enough.

    records: what was measured, {"network", "per_channel", "bits": "W4A8", "ptq": accuracy,
    "qat": accuracy}, in percent. An accuracy is a number, or a list with one for each seed, of
    which the mean counts; either may be missing or None. "ptq_cost" and "qat_cost" may say in words
    what each takes. fp32: {network: accuracy} before. trained: the same after more training in full
    precision, a second thing to compare with. weights: {network: how many weights}, for the size.
    most: the end of the slider. network, per_channel, allowed, reference ("fp32" or "trained"):
    what is shown first.

    Fewer bits of weights are smaller, then fewer bits of activations; PTQ is cheaper than QAT.
    In a live notebook ``choice`` follows the picture.

    >>> records = [{"network": "a", "per_channel": False, "bits": bits, "ptq": ptq, "qat": qat}
    ...            for bits, ptq, qat in (("W8A8", 94.0, 94.0), ("W4A4", 80.0, [93.0, 94.0]))]
    >>> w = MethodChoice(records, fp32={"a": 94.0}, weights={"a": 1000}, allowed=1.0)
    >>> w
    MethodChoice(network='a', per_channel=False, allowed=1, reference='fp32')
    >>> w.choice
    {'bits': 'W4A4', 'method': 'qat', 'accuracy': 93.5, 'bytes': 500.0}

    Raises TypeError or ValueError for records without results, of unknown networks, that come
    twice, or hold NaN.
    """

    networks = traitlets.List().tag(sync=True)  # [{name, fp32, trained, weights}]
    rows = traitlets.List().tag(sync=True)  # [{network, per_channel, bits, w, a, ptq, ptq_cost, ...
    most = traitlets.Float(10.0).tag(sync=True)
    network = traitlets.Unicode().tag(sync=True)
    per_channel = traitlets.Bool(False).tag(sync=True)
    allowed = traitlets.Float(1.0).tag(sync=True)
    reference = traitlets.Enum(["fp32", "trained"], "fp32").tag(sync=True)
    shown = ("network", "per_channel", "allowed", "reference")

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        fp32: Mapping[str, float],
        weights: Mapping[str, int],
        trained: Mapping[str, float] | None = None,
        alt: str = "For each bit width a line with the accuracy after post-training quantization "
        "and after training, a band of what may be lost against full precision, and the smallest "
        "network inside that band.",
        **traits: Any,
    ) -> None:
        rows = [_row(record, f"records[{i}]") for i, record in enumerate(records)]
        if not rows:
            raise ValueError("records are empty; pass one for each network and bit width")
        rows.sort(key=lambda r: (-r["w"], -r["a"]))
        names = list(dict.fromkeys(str(record["network"]) for record in records))
        networks = []
        for name in names:
            mine = [(r["per_channel"], r["bits"]) for r in rows if r["network"] == name]
            if len(set(mine)) < len(mine):
                raise ValueError(f"{name} has two records of the same bits; give seeds as a list")
            if name not in fp32 or name not in weights:
                raise ValueError(f"fp32 and weights must say something about {name!r}")
            level = (trained or {}).get(name)
            networks.append(
                {
                    "name": name,
                    "fp32": number(fp32[name], f"fp32[{name!r}]"),
                    "trained": None if level is None else number(level, f"trained[{name!r}]"),
                    "weights": number(weights[name], f"weights[{name!r}]"),
                }
            )
        traits.setdefault("network", names[0])
        super().__init__(networks=networks, rows=rows, alt=alt, **traits)

    @property
    def limit(self) -> float:
        """The accuracy that is still allowed."""
        now = next(n for n in self.networks if n["name"] == self.network)
        level = now[self.reference]
        return (now["fp32"] if level is None else level) - self.allowed

    @property
    def choice(self) -> dict[str, Any] | None:
        """The smallest inside, and the cheapest way to it; None if nothing quantized is inside."""
        now = next(n for n in self.networks if n["name"] == self.network)
        for r in reversed(self.rows):
            if (r["network"], r["per_channel"]) != (self.network, self.per_channel):
                continue
            for method in METHODS:
                if r[method] is not None and r[method][0] >= self.limit - SLACK:
                    return {
                        "bits": r["bits"],
                        "method": method,
                        "accuracy": r[method][0],
                        "bytes": now["weights"] * r["w"] / 8,
                    }
        return None

    @traitlets.validate("network")
    def _check_network(self, proposal: Any) -> str:
        names = [n["name"] for n in self.networks]
        if names and proposal.value not in names:
            raise ValueError(f"network must be one of {', '.join(names)}, not {proposal.value!r}")
        return proposal.value

    @traitlets.validate("allowed", "most")
    def _check_allowed(self, proposal: Any) -> float:
        if not 0 <= proposal.value <= 100:
            raise ValueError(f"{proposal.trait.name} is in points, 0 to 100, not {proposal.value}")
        return proposal.value


def _row(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One line of the picture; an accuracy as [mean, least, most], or None."""
    if not isinstance(record, Mapping) or not {"network", "per_channel", "bits"} <= set(record):
        raise TypeError(f"{where} must be a dict with network, per_channel and bits: {record!r}")
    found = re.fullmatch(r"W(\d+)A(\d+)", str(record["bits"]))
    if not found:
        raise ValueError(f"{where}: bits must look like W4A8, not {record['bits']!r}")
    row = {
        "network": str(record["network"]),
        "per_channel": bool(record["per_channel"]),
        "bits": record["bits"],
        "w": int(found[1]),
        "a": int(found[2]),
    }
    for method in METHODS:
        v = record.get(method)
        v = [] if v is None else list(v) if isinstance(v, Sequence) else [v]
        v = [number(a, f"{where}[{method!r}]") for a in v]
        row[method] = [sum(v) / len(v), min(v), max(v)] if v else None
        row[f"{method}_cost"] = str(record.get(f"{method}_cost", ""))
    if all(row[m] is None for m in METHODS):
        raise ValueError(f"{where} has neither ptq nor qat; leave it out")
    return row
