"""Write the repository's address, which stands in pyproject.toml, wherever else it is needed.

    python book/_tools/address.py https://github.com/<you>/minq        yours, after a fork
    python book/_tools/address.py                                    says what it is

README, notebooks, citation and the book's buttons follow; look at them with `git diff`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VALID = re.compile(r"https://[\w.-]+/[\w./-]*[\w-]")
FOLDER = "minq"  # the folder that commands enter after they cloned the repository
KINDS = {".md", ".py", ".toml", ".yml", ".cff", ".ipynb"}


def address(root: Path = ROOT) -> str:
    """The repository's address, from pyproject.toml."""
    text = (root / "pyproject.toml").read_text("utf-8")
    return re.search(r'^Repository = "(.+)"$', text, re.MULTILINE)[1]


def places(root: Path = ROOT) -> list[Path]:
    """The files that name the address, of those that git tracks."""
    command = ["git", "ls-files", "-z"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    paths = [root / name for name in names.split("\0") if Path(name).suffix in KINDS]
    return [p for p in paths if p.is_file() and address(root) in p.read_text("utf-8")]


def write(new: str, root: Path = ROOT) -> list[Path]:
    """Put ``new`` in place of the address everywhere; the answer: the files that changed.

    Raises:
        ValueError: for what is not an address of the form https://host/owner/name.
    """
    new = new.removesuffix("/").removesuffix(".git")
    if not VALID.fullmatch(new):
        raise ValueError(f"the address must look like https://github.com/<you>/minq, not {new!r}")
    old, found = address(root), places(root)
    mention = re.compile(
        rf"(git clone (?:-\S+ (?:\d+ )?)*)?{re.escape(old)}(?![\w.-]*\w)(?: {FOLDER})?"
    )
    into = "" if new.rsplit("/", 1)[1] == FOLDER else f" {FOLDER}"
    for path in found:
        text = path.read_text("utf-8")
        path.write_text(mention.sub(lambda m: f"{m[1]}{new}{into}" if m[1] else new, text), "utf-8")
    return found


def main() -> int:
    if len(sys.argv) == 1:
        print(f"{address()}, in {len(places())} files")
        return 0
    try:
        found = write(sys.argv[1])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{address()} stands in {len(found)} files now.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
