"""What makes the page's Python quick to start: modules as bytecode, and a memory that has started.

Only the Python that will read bytecode can write it, so Pyodide does, once, in node (ready.mjs).
The memory has imported NumPy and minq. Where there is no node the pages get what was given: all
runs, and the first start takes several times as long.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path(__file__).with_suffix(".mjs")
LIBRARIES = SCRIPT.parents[1] / "_assets" / "live-libraries.js"
MEMORY = ("snapshot.bin", "libraries.json")  # the memory, and the shared libraries it has opened
SECONDS = 900


def key(archives: dict[str, bytes], pyodide: Path) -> str:
    """One for each state of what goes in."""
    found = hashlib.sha256(SCRIPT.read_bytes() + LIBRARIES.read_bytes())
    for name, content in sorted(archives.items()):
        found.update(name.encode() + hashlib.sha256(content).digest())
    found.update((pyodide / "pyodide.asm.wasm").read_bytes())
    return found.hexdigest()[:12]


def ready(
    archives: dict[str, bytes], first: Sequence[str], pyodide: Path, kept: Path
) -> dict[str, bytes] | None:
    """Archives with their modules compiled, and the memory.

    Args:
        archives: {name of a zip file: its content}.
        first: Those that a first run needs: the memory has imported from them.
        pyodide: The folder of Pyodide's release.
        kept: Where what was made is kept, for these archives alone.

    Returns:
        The same names, and those of ``MEMORY``; None where no node is, or where it fails.
    """
    folder = kept / f"ready-{key(archives, pyodide)}"
    if not folder.is_dir():
        if not (node := shutil.which("node")):
            return None
        for old in kept.glob("ready-*"):
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory() as given, tempfile.TemporaryDirectory() as made:
            for name, content in archives.items():
                Path(given, name).write_bytes(content)
            command = [node, str(SCRIPT), str(pyodide), given, made, ",".join(first)]
            options = {"capture_output": True, "timeout": SECONDS, "stdin": subprocess.DEVNULL}
            try:
                subprocess.run(command, check=True, **options)
            except (OSError, subprocess.SubprocessError):
                return None
            draft = folder.with_suffix(".part")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(made, draft)
            draft.rename(folder)
    return {name: (folder / name).read_bytes() for name in (*archives, *MEMORY)}
