"""Where `make` takes PyTorch from: Linux without a GPU needs only the build without CUDA.

Prints what pip needs for that, or nothing for pip's own index; says which, in a line, on stderr.
Needs Python alone: it runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

CPU = "https://download.pytorch.org/whl/cpu"
ROOT = Path(__file__).resolve().parents[2]


def has_gpu() -> bool:
    """Whether an NVIDIA GPU or its driver is there."""
    return bool(shutil.which("nvidia-smi") or list(Path("/dev").glob("nvidia*")))


def pip_settings() -> str:
    """What the user's files and environment tell pip, as `pip config list` prints it."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def has_index(settings: str) -> bool:
    """Whether pip's settings name an index of the user's own, or forbid any."""
    return bool(re.search(r"\.(index-url|no-index)=", settings))


def reachable(index: str, timeout: float = 4.0) -> bool:
    """Whether the index answers for torch, within seconds."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=timeout) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def choose(index: str = CPU) -> tuple[str | None, str]:
    """The index to take torch from, None for pip's own, and why."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return None, "pip's index: its build for this system is the small one"
    if has_gpu():
        return None, "pip's index, with CUDA: there is a GPU"
    if has_index(pip_settings()):
        return None, "the index of your pip settings"
    if not reachable(index):
        return None, f"pip's index: {index} does not answer"
    return index, f"{index}, without CUDA: there is no GPU"


def wanted(requirements: str) -> list[str]:
    """The lines for torch and torchvision of requirements.txt."""
    return re.findall(r"^(?:torch|torchvision)\b[^\s#]*", requirements, re.MULTILINE)


def main() -> int:
    given = os.environ.get("TORCH_INDEX")
    index, why = (given, f"{given}, as you said") if given else choose()
    print(f"PyTorch comes from {why}.", file=sys.stderr)
    if index:
        print("--index-url", index, *wanted((ROOT / "requirements.txt").read_text("utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
