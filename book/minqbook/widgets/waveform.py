"""Waveforms of a simulated circuit: what each signal holds, cycle by cycle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import traitlets

from minqbook.widgets.base import Widget, within


class Waveform(Widget):
    """Step through what a simulator wrote, signal by signal (``minqbook.gates.waves``).

    dump: ``results/waves.json``: period and start of the clock, the number of cycles, and records
    of signals, each a name, bits and [time, value] of its changes; None where it is not known yet.
    cycle: how many cycles have passed; ``MacArray`` counts alike, so both can be linked.

    >>> dump = {"period": 10, "start": 5, "cycles": 2, "records": [
    ...     {"name": "load", "bits": 1, "changes": [[0, None], [5, 1], [15, 0]]}]}
    >>> Waveform(dump, cycle=1).values(), Waveform(dump, cycle=2).values()
    ({'load': 1}, {'load': 0})

    Raises ValueError for a dump without signals or cycles.
    """

    alt = traitlets.Unicode(
        "Waveforms: one line a signal over time; bits as steps, numbers in lozenges; the cycle"
        " looked at is marked."
    ).tag(sync=True)
    records = traitlets.List().tag(sync=True)
    period = traitlets.Int(10).tag(sync=True)
    start = traitlets.Int(0).tag(sync=True)
    cycles = traitlets.Int(1).tag(sync=True)
    cycle = traitlets.Int(0).tag(sync=True)
    shown = ("cycles", "cycle")

    def __init__(self, dump: Mapping[str, Any], **traits: Any) -> None:
        if not dump.get("records") or dump.get("cycles", 0) < 1:
            raise ValueError("the dump has no signals or no cycles; see minqbook.gates.waves")
        wave = {k: dump[k] for k in ("records", "period", "start", "cycles")}
        super().__init__(**wave, **traits)

    @traitlets.validate("cycle")
    def _check_cycle(self, proposal: Any) -> Any:
        return within(proposal, 0, self.cycles)

    def values(self) -> dict[str, int | None]:
        """What each signal holds at the end of the cycle looked at; at 0, before the first."""
        end = self.start + self.period * self.cycle
        return {
            r["name"]: next((v for t, v in reversed(r["changes"]) if t < end), None)
            for r in self.records
        }
