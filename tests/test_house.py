"""The repository around the library: one address, no trace of the machine it was made on."""

import re
import subprocess
from pathlib import Path

import address
import pytest

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = address.address()
TEXT = {".md", ".py", ".js", ".css", ".toml", ".yml", ".cff", ".ipynb", ".txt", ".bib", ".json", ""}


def own_files():
    """The files git tracks, or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    paths = [ROOT / name for name in names.split("\0") if name]
    return [p for p in paths if p.is_file() and p.suffix in TEXT]


def test_every_mention_of_the_repository_is_the_address_in_pyproject():
    name = ADDRESS.rsplit("/", 1)[1]
    pattern = re.compile(rf"https://github\.com/[\w.-]+/{name}\b")
    for path in own_files():
        assert set(pattern.findall(path.read_text("utf-8"))) <= {ADDRESS}, path


def test_a_fork_writes_its_own_address_everywhere(tmp_path):
    for path in address.places():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), "utf-8")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    before = {p: p.read_text("utf-8") for p in tmp_path.rglob("*") if p.suffix in address.KINDS}
    assert len(before) >= 25  # README, citation, configuration, two pyprojects, the notebooks
    mine = "https://git.school.example/teacher/quantization"
    assert set(address.write(mine + "/", tmp_path)) == set(before)
    for path, old in before.items():
        text = path.read_text("utf-8")
        assert ADDRESS not in text and text.count(mine) == old.count(ADDRESS), path
        assert text.count(f"{mine} minq") == old.count("git clone"), path  # then `cd minq` works
    address.write(ADDRESS, tmp_path)
    assert {p: p.read_text("utf-8") for p in before} == before
    with pytest.raises(ValueError, match="must look like"):
        address.write("git@github.com:me/minq", tmp_path)


def test_no_file_names_a_place_on_a_machine():
    pattern = re.compile(r"(?<![\w.~])/(home|root|work|Users|tmp)/\w+|[A-Z]:\\\\Users")
    for path in own_files():
        if path != Path(__file__):
            assert not pattern.search(path.read_text("utf-8")), path


def test_no_file_is_large():
    for path in own_files():
        assert path.stat().st_size < 2 * 2**20, path
