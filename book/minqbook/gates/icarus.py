"""Icarus Verilog: a test bench is compiled once for each set of parameters, then run on data."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "hardware"
"""The Verilog of the book."""


def installed() -> str:
    """Why nothing can be simulated here; "" where it can.

    Returns:
        A sentence.
    """
    if not SOURCES.is_dir():
        return f"The Verilog sources are not at {SOURCES}: clone the repository of the book."
    if not (shutil.which("iverilog") and shutil.which("vvp")):
        return "Icarus Verilog is not installed; on Debian: apt-get install iverilog"
    return ""


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="minq-verilog-")


@cache
def compiled(top: str, sources: tuple[str | Path, ...], **parameters: int) -> Path:
    """A test bench, ready to run. Warnings are errors.

    Args:
        top: the name of its module.
        sources: files, by name those of ``SOURCES``.
        parameters: of the module.

    Returns:
        What ``vvp`` runs; it is there as long as the process.

    Raises:
        RuntimeError: Icarus is missing, or complains.
    """
    if missing := installed():
        raise RuntimeError(missing)
    named = "-".join(f"{k}{v}" for k, v in parameters.items())
    program = Path(_folder().name) / f"{top}-{named}-{abs(hash(sources))}"
    command = ["iverilog", "-g2005", "-Wall", "-s", top, "-o", str(program)]
    command += [f"-P{top}.{k}={v}" for k, v in parameters.items()]
    run = subprocess.run(
        [*command, *(str(SOURCES / s) for s in sources)], capture_output=True, text=True
    )
    if run.returncode or run.stderr:
        raise RuntimeError(f"Icarus does not take {top} with {parameters}:\n{run.stderr}")
    return program


def simulate(program: Path, words: Iterable[int], dump: Path | None = None) -> list[str]:
    """Run a test bench on 64-bit words, negative ones in two's complement.

    Args:
        program: as ``compiled`` returns it.
        words: what the bench reads.
        dump: where it writes its waveforms, if it does.

    Returns:
        The lines that it prints.

    Raises:
        RuntimeError: The simulation stopped.
    """
    lines = [f"{int(word) & (2**64 - 1):x}" for word in words]
    with tempfile.NamedTemporaryFile("w", suffix=".hex", dir=_folder().name) as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        command = ["vvp", str(program), f"+data={file.name}", f"+words={len(lines)}"]
        command += [f"+dump={dump}"] if dump else []
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode or run.stderr:
        raise RuntimeError(f"The simulation stopped:\n{run.stdout}\n{run.stderr}")
    return [s for s in run.stdout.splitlines() if not s.startswith("VCD info")]


def version() -> str:
    """Of Icarus, e.g. "11.0"."""
    run = subprocess.run(["iverilog", "-V"], capture_output=True, text=True)
    return run.stdout.split("version", 1)[1].split()[0]
