"""The simulator's own dump of a layer of chapter 2, a few of its signals, for chapter 19."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from minqbook.gates.icarus import version
from minqbook.gates.machine import Layer, run_verilog
from minqbook.tables.files import path_of, write
from minqbook.widgets import MacArray

PERIOD = 10
"""Units of time of the test bench in a cycle."""
# Name, signal of the dump, and for a bus how many numbers it joins, which of them, and their sign.
SIGNALS: list[tuple[str, str, int, int, bool]] = [
    ("clk", "test_array.clk", 1, 0, False),
    ("load", "test_array.load", 1, 0, False),
    ("compute", "test_array.compute", 1, 0, False),
    ("step", "test_array.step", 1, 0, False),
    ("x1", "test_array.x", 4, 0, False),
    ("W4,1", "test_array.array.row[3].column[0].one.held", 1, 0, True),
    ("C4,1", "test_array.array.row[3].column[0].one.product", 1, 0, True),
    ("enable 4", "test_array.enable", 4, 3, False),
    ("A4 before", "test_array.before", 4, 3, True),
    ("A4 after", "test_array.after", 4, 3, True),
    ("overflow 4", "test_array.overflow", 4, 3, False),
]


def store() -> dict[str, Any]:
    """Simulate chapter 2's default picture and keep what chapter 19 draws."""
    picture = MacArray()
    w, x, b = picture.operands
    with tempfile.TemporaryDirectory(prefix="minq-waves-") as folder:
        dump = Path(folder, "dump.vcd")
        (cycles,) = run_verilog(picture.array, [Layer(w, x, b)], dump=dump)
        found = changes(dump.read_text("utf-8"))
    start = next(t for t, v in found["test_array.busy"] if v == "1")
    result = {
        "command": "python -m minqbook.gates waves",
        "versions": {"iverilog": version()},
        "period": PERIOD,
        "start": start,
        "cycles": len(cycles),
        "records": [
            {"name": name, "bits": bits, "changes": series}
            for name, path, parts, which, signed in SIGNALS
            for bits, series in [numbers(found[path], parts, which, signed)]
        ],
    }
    write(path_of("waves"), result)
    return result


def changes(dump: str) -> dict[str, list[tuple[int, str]]]:
    """When each signal of a VCD file changes, and to which bits.

    >>> changes("$scope module t $end $var wire 2 ! a $end $upscope $end "
    ...         "$enddefinitions $end #0 b0 ! #5 b11 !")
    {'t.a': [(0, '00'), (5, '11')]}
    """
    head, _, body = dump.partition("$enddefinitions $end")
    where: list[str] = []
    signals: dict[str, tuple[str, int]] = {}  # by path: code and width
    for kind, rest in re.findall(r"\$(scope|upscope|var)\s+(.*?)\s*\$end", head):
        words = rest.split()
        if kind == "scope":
            where.append(words[1])
        elif kind == "upscope":
            where.pop()
        else:
            signals[".".join([*where, words[3]])] = words[2], int(words[1])
    width = dict(signals.values())
    history: dict[str, list[tuple[int, str]]] = {code: [] for code in width}
    time = 0
    for at, vector, one, scalar, other in re.findall(
        r"#(\d+)|b([01xz]+) (\S+)|(?<=\s)([01xz])(\S+)", body
    ):
        if at:
            time = int(at)
            continue
        code, bits = (one, vector) if one else (other, scalar)
        if code in history:
            bits = bits.rjust(width[code], bits[0] if bits[0] in "xz" else "0")
            history[code].append((time, bits))
    return {path: history[code] for path, (code, _) in signals.items()}


def numbers(
    series: list[tuple[int, str]], parts: int, which: int, signed: bool
) -> tuple[int, list[list[int | None]]]:
    """One of the numbers that a bus joins, the lowest first: its bits, and when it changes to what.

    >>> numbers([(0, "xxxx"), (5, "1101"), (7, "1111")], 2, 1, signed=True)
    (2, [[0, None], [5, -1]])
    """
    bits = len(series[0][1]) // parts
    result: list[list[int | None]] = []
    for time, word in series:
        part = word[len(word) - bits * (which + 1) : len(word) - bits * which]
        value = None if set(part) - {"0", "1"} else int(part, 2)
        if value is not None and signed and part[0] == "1":
            value -= 2**bits
        if not result or result[-1][1] != value:
            result.append([time, value])
    return bits, result
