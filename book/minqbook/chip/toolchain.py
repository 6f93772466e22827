"""Programs of a network in C: built with the compilers that are there, and run.

The same ``main`` runs on this machine and on a board that QEMU emulates; what differs between them
is in ``board/``.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minq.deploy.c import CNetwork
from minq.deploy.c.write import CTensor

BOARD = Path(__file__).parent / "board"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-O1", "-g", "-fsanitize=undefined,address", "-fno-sanitize-recover")
NUMPY = {"uint8_t": np.uint8, "int8_t": np.int8, "int16_t": np.int16, "int32_t": np.int32,
         "float": np.float32}  # fmt: skip
TICK = 40
"""Instructions of a tick: the timer runs at 25 MHz, an instruction takes a nanosecond."""


@dataclass(frozen=True)
class Chip:
    """A processor, how GCC is told of it, and the board that has it in QEMU."""

    name: str
    flags: tuple[str, ...]
    machine: str


CHIPS = {
    "Cortex-M3": Chip("Cortex-M3", ("-mcpu=cortex-m3",), "mps2-an385"),
    "Cortex-M4": Chip("Cortex-M4", ("-mcpu=cortex-m4",), "mps2-an386"),
    "Cortex-M4F": Chip(
        "Cortex-M4F",
        ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
        "mps2-an386",
    ),
}


def missing(*programs: str) -> str:
    """A sentence about what is not there; empty if all is."""
    lacking = [p for p in programs if shutil.which(p) is None]
    return f"there is no {', '.join(lacking)}; install it with your system's packages" if (
        lacking) else ""  # fmt: skip


def host_missing() -> str:
    """Whether C can be compiled for this machine, with the sanitizers."""
    return missing("gcc")


def chip_missing() -> str:
    """Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm."""
    return missing("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")


def main_of(files: CNetwork) -> str:
    """A main function: every input that comes is run through the network."""
    tensors = [*files.inputs, *files.outputs]
    names = [f"t{k}" for k in range(len(tensors))]
    buffers = [
        f"static {t.dtype} {n}[{torch.Size(t.shape).numel()}];"
        for n, t in zip(names, tensors, strict=True)
    ]
    count = len(files.inputs)
    reads = " && ".join(f"board_read({n}, sizeof {n})" for n in names[:count])
    writes = [f"        board_write({n}, sizeof {n});" for n in names[count:]]
    return "\n".join([
        '#include "board.h"', f'#include "{files.header.name}"', *buffers, "int main(void)", "{",
        f"    while ({reads}) {{", "        board_begin();",
        f"        {files.name}({', '.join(names)});", "        board_end();", *writes, "    }",
        "    return 0;", "}", "",
    ])  # fmt: skip


def build(
    files: CNetwork, folder: Path, chip: Chip | None = None, flags: tuple[str, ...] = ("-O2",)
) -> Path:
    """A program of the network, for a chip or for this machine. Raises where GCC complains."""
    text = main_of(files)
    return compiled(text, folder, chip, (*flags, f"-I{files.header.parent}", str(files.source)))


def compiled(main: str, folder: Path, chip: Chip | None, flags: tuple[str, ...]) -> Path:
    """A program of a main function, of what is in ``board/``, and of what the flags name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.c").write_text(main, "utf-8")
    program, board = folder / ("program.elf" if chip else "program"), "host.c"
    command = ["gcc"]
    if chip:
        board = "mps2.c"
        command = ["arm-none-eabi-gcc", *chip.flags, "-mthumb", "-ffunction-sections",
                   "-fdata-sections", "-nostartfiles", "-Wl,--gc-sections",
                   f"-Wl,-T,{BOARD / 'mps2.ld'}"]  # fmt: skip
    rest = [f"-I{BOARD}", "-o", program, "main.c", BOARD / board, "-lm"]
    said = _run([*command, *STRICT, *flags, *rest], folder)
    if said.returncode:
        raise RuntimeError(f"GCC refuses the program: {said.stderr.decode()[:2000]}")
    return program


def _run(command: list, folder: Path, given: bytes = b"") -> subprocess.CompletedProcess:
    words = [str(c) for c in command]
    return subprocess.run(words, cwd=folder, input=given, capture_output=True, timeout=900)


@dataclass(frozen=True)
class Run:
    """Results of each sample; ticks and bytes of stack of each."""

    outputs: list[list[Tensor]]
    ticks: list[int]
    stack: list[int]


def run(files: CNetwork, program: Path, inputs: list[Tensor], chip: Chip | None = None) -> Run:
    """Run a program on quantized inputs, each one sample.

    Args:
        files: what ``minq.to_c`` returned.
        program: what ``build`` made of it.
        inputs: integers on the input's grid, or token ids, of the shape that the network has.
        chip: the one it was built for.

    Returns:
        Outputs as they lie in memory; ticks are nanoseconds on this machine, ``TICK`` instructions
        on a board.

    Raises:
        RuntimeError: the program did not end well.
    """
    (first,) = files.inputs
    flat = [first.flat(x).numpy().astype(NUMPY[first.dtype]).tobytes() for x in inputs]
    data = b"".join(flat)
    answers, numbers = executed(program, chip, data)
    outputs = list(_outputs(files.outputs, answers, len(inputs)))
    return Run(outputs, [n[0] for n in numbers], [n[1] for n in numbers])


def executed(program: Path, chip: Chip | None, data: bytes) -> tuple[bytes, list[list[int]]]:
    """What a program writes, and the numbers that it says of each measurement."""
    folder = program.parent
    if chip is None:
        done = _run([program], folder, data)
        answers, said = done.stdout, done.stderr.decode()
    else:
        (folder / "input.bin").write_bytes(data)
        done = _run(["qemu-system-arm", "-M", chip.machine, "-icount", "shift=0", "-display",
                     "none", "-monitor", "none", "-serial", "none", "-semihosting-config",
                     "enable=on,target=native", "-kernel", program], folder)  # fmt: skip
        said, path = (done.stdout + done.stderr).decode(), folder / "output.bin"
        answers = path.read_bytes() if path.exists() else b""
    if done.returncode:
        raise RuntimeError(f"{program.name} ended with {done.returncode}: {said[:2000]}")
    return answers, [[int(v) for v in line.split()] for line in said.splitlines() if line]


def _outputs(specs: tuple[CTensor, ...], data: bytes, count: int):
    at = 0
    for _ in range(count):
        sample = []
        for spec in specs:
            kind, size = np.dtype(NUMPY[spec.dtype]), torch.Size(spec.shape).numel()
            sample.append(torch.from_numpy(np.frombuffer(data, kind, size, at).copy()))
            at += size * kind.itemsize
        yield sample


def sizes(program: Path) -> tuple[int, int]:
    """Bytes of flash (code, constants, initial values) and of RAM (variables, without stack)."""
    said = _run(["arm-none-eabi-size", program], program.parent).stdout.decode()
    text, data, bss = (int(v) for v in said.splitlines()[1].split()[:3])
    return text + data, data + bss
