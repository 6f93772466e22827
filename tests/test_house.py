"""The repository around the library: one address, no trace of the machine it was made on."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
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


def test_every_mention_of_the_repository_is_the_address_in_the_config():
    name = ADDRESS.rsplit("/", 1)[1]
    pattern = re.compile(rf"https://github\.com/[\w.-]+/{name}\b")
    for path in own_files():
        assert set(pattern.findall(path.read_text("utf-8"))) <= {ADDRESS}, path


def test_no_file_names_a_place_on_a_machine():
    pattern = re.compile(r"(?<![\w.~])/(home|root|work|Users|tmp)/\w+|[A-Z]:\\\\Users")
    for path in own_files():
        if path != Path(__file__):
            assert not pattern.search(path.read_text("utf-8")), path


def test_no_file_is_large():
    for path in own_files():
        assert path.stat().st_size < 2 * 2**20, path
