"""What the live pages need from outside: sources made here, in their order; wrong files refused."""

import base64
import gzip
import hashlib
import http.server
import io
import os
import re
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import parts
import pytest
from pack import PIECE, pack

CONTENT = b"what was published\n"
WRONG = b"what somebody changed\n"[: len(CONTENT)]
FACTS = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
TABLE = {
    "tool": {"sources": [{"npm": "@group/tool@1.0", "into": "sub", "files": {"dist/a.js": FACTS}}]},
    "wheels": {"sources": [{"cdn": "all", "wheel": "many==1", "files": {"b-1.whl": FACTS}}]},
}


@pytest.fixture(autouse=True)
def nothing_to_be_had(monkeypatch, tmp_path):
    """A small table, an empty cache, a CDN that does not answer, and no package manager."""
    monkeypatch.setattr(parts, "TABLE", TABLE)
    monkeypatch.setattr(parts, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(parts, "CDN", "http://127.0.0.1:9")
    monkeypatch.setattr(parts, "run", run_nothing)
    monkeypatch.delenv("MINQ_PARTS", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def run_nothing(*command):
    raise FileNotFoundError(f"{command[0]} is not installed")


@pytest.fixture
def cdn(monkeypatch, tmp_path):
    """A CDN on this machine: the folder that it serves, and the paths it was asked for."""
    root, asked = tmp_path / "cdn", []
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=root)

        def log_message(self, form, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(parts, "CDN", f"http://127.0.0.1:{server.server_port}")
        yield root, asked
        server.shutdown()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def archives(command, wheel=CONTENT, script=CONTENT):
    """What npm and pip would leave in the folder they were given."""
    folder = Path(re.search(r"--(?:pack-destination|dest)=(\S+)", " ".join(command))[1])
    if command[0] == "npm":
        with tarfile.open(folder / "group-tool-1.0.tgz", "w:gz") as archive:
            entry = tarfile.TarInfo("package/dist/a.js")
            entry.size = len(script)
            archive.addfile(entry, io.BytesIO(script))
    else:
        with zipfile.ZipFile(folder / "many-1-py3-none-any.whl", "w") as archive:
            archive.writestr("many/data/b-1.whl", wheel)


def test_the_table_is_whole():
    """Every file has its size, its sum, a source, and a place of its own."""
    import yaml

    table = yaml.safe_load(Path(parts.__file__).with_suffix(".yml").read_text("utf-8"))
    assert {"pyodide", "numpy", "matplotlib", "codemirror", "onnxruntime-web"} <= set(table)
    for name, part in table.items():
        assert part["licence"] and part["what"] and part["home"].startswith("https://")
        for source in part["sources"]:
            assert ("npm" in source) != ("wheel" in source and "cdn" in source)
            exact = source.get("npm") or source["wheel"].replace("==", "@")
            assert re.fullmatch(r"(@[\w-]+/)?[\w-]+@\d[\w.]*", exact), f"{name}: one version"
            for facts in source["files"].values():
                assert facts["size"] > 0 and re.fullmatch("[0-9a-f]{64}", facts["sha256"])


def test_what_can_not_be_had_is_none_and_the_reason_is_said():
    sources = parts.Sources()
    assert parts.fetch("tool", sources) is None
    assert parts.fetch("wheels", sources) is None
    said = parts.why_not(sources)
    for word in ("127.0.0.1:9", "npm is not installed", "MINQ_PARTS", "parts.py"):
        assert word in said
    with pytest.raises(ValueError, match="no part 'toll'; parts.yml has tool, wheels"):
        parts.fetch("toll")


@pytest.mark.parametrize("place", ["tool/sub/a.js", "a.js"])
def test_a_named_folder_comes_first(place, monkeypatch, tmp_path, cdn):
    write(tmp_path / "mine" / place, CONTENT)
    monkeypatch.setenv("MINQ_PARTS", str(tmp_path / "mine"))
    folder = parts.fetch("tool")
    assert (folder / "sub" / "a.js").read_bytes() == CONTENT
    assert not cdn[1], "the network was asked for what was at hand"


def test_then_the_cdn_and_only_once(cdn):
    root, asked = cdn
    write(root / "npm/@group/tool@1.0/dist/a.js", CONTENT)
    write(root / "all/b-1.whl", CONTENT)
    for _ in range(2):  # the second time from the cache
        assert (parts.fetch("tool") / "sub" / "a.js").read_bytes() == CONTENT
        assert (parts.fetch("wheels") / "b-1.whl").read_bytes() == CONTENT
    assert asked == ["/npm/@group/tool@1.0/dist/a.js", "/all/b-1.whl"]


def test_then_npm_and_pip(monkeypatch):
    commands = []
    monkeypatch.setattr(parts, "run", lambda *c: (commands.append(c), archives(c)))
    sources = parts.Sources()
    assert (parts.fetch("tool", sources) / "sub" / "a.js").read_bytes() == CONTENT
    assert (parts.fetch("wheels", sources) / "b-1.whl").read_bytes() == CONTENT
    assert commands[0][-1] == "@group/tool@1.0" and "--ignore-scripts" in commands[0]
    assert commands[1][-1] == "many==1" and "--no-deps" in commands[1]


@pytest.mark.parametrize("wrong", [WRONG, CONTENT + b"more", b""])
def test_a_changed_file_is_taken_from_nowhere(wrong, monkeypatch, tmp_path, cdn):
    write(tmp_path / "mine" / "a.js", wrong)
    write(cdn[0] / "npm/@group/tool@1.0/dist/a.js", wrong)
    monkeypatch.setenv("MINQ_PARTS", str(tmp_path / "mine"))
    monkeypatch.setattr(parts, "run", lambda *c: archives(c, script=wrong))
    sources = parts.Sources()
    assert parts.fetch("tool", sources) is None
    assert "a.js from named: has another SHA-256" in parts.why_not(sources)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_file_that_rots_in_the_cache_is_replaced(cdn):
    write(cdn[0] / "npm/@group/tool@1.0/dist/a.js", CONTENT)
    path = parts.fetch("tool") / "sub" / "a.js"
    path.write_bytes(WRONG)
    assert parts.fetch("tool") and path.read_bytes() == CONTENT


def test_half_a_file_is_never_seen(monkeypatch, tmp_path):
    """Written beside, then moved: where the move fails the old content stays, and nothing else."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        parts.keep(path, CONTENT)
    assert path.read_bytes() == b"old" and list(tmp_path.glob("*.part")) == []


def test_the_command_prints_a_table_and_says_what_is_missing(cdn, capsys, monkeypatch):
    for part in TABLE.values():
        monkeypatch.setitem(part, "what", "a thing")
        monkeypatch.setitem(part, "licence", "MIT")
    write(cdn[0] / "all/b-1.whl", CONTENT)
    assert parts.main() == 1
    out, err = capsys.readouterr()
    assert re.search(r"^tool .* MISSING ", out, re.M)
    assert re.search(r"^wheels .* verified ", out, re.M)
    assert "Not to be had: tool." in err


def test_a_manager_that_fails_says_why(monkeypatch):
    def fail(*command):
        raise subprocess.CalledProcessError(1, command, stderr="npm error\nnpm error 404 no tool\n")

    monkeypatch.setattr(parts, "run", fail)
    sources = parts.Sources()
    assert parts.fetch("tool", sources) is None
    assert "@group/tool@1.0: npm error 404 no tool" in parts.why_not(sources)


# --- As scripts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 5])
def test_a_packed_file_is_its_scripts_joined(tmp_path, size):
    content = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    digest, count, whole, travels = pack("a.js", content, tmp_path)
    assert digest == hashlib.sha256(content).hexdigest()[:12]
    joined, length = b"", 0
    for number in range(count):
        text = (tmp_path / f"a.js.{digest}.{number}.js").read_text("ascii")
        found = re.fullmatch(rf'minqPart\("a.js.{digest}",(\d+),"(.*)"\);\n', text)
        assert int(found[1]) == number
        joined += base64.b64decode(found[2])
        length += len(text)
    assert gzip.decompress(joined) == content
    assert (whole, travels) == (size, length) and len(list(tmp_path.iterdir())) == count


def test_packing_that_was_stopped_is_done_again(monkeypatch, tmp_path):
    """The first script comes last: while it is missing, all are written."""
    content, replace, moved = np.random.default_rng(1).bytes(PIECE + 1), Path.replace, []

    def stop_after_one(path, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", stop_after_one)
        pack("a.js", content, tmp_path)
    digest, count, *_ = known = pack("a.js", content, tmp_path)
    assert count == 2 == len(list(tmp_path.glob(f"a.js.{digest}.*.js")))
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.js"))]
    assert pack("a.js", content, tmp_path) == known, "and now it is there"
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.js"))]


# --- Ready to start -------------------------------------------------------------------------------


def test_without_node_nothing_is_compiled(monkeypatch, tmp_path):
    import ready

    (tmp_path / "pyodide.asm.wasm").write_bytes(b"")
    monkeypatch.setattr(ready.shutil, "which", lambda name: None)
    assert ready.ready({"a.whl": b""}, ["a.whl"], tmp_path, tmp_path) is None


def test_what_node_made_is_kept_until_something_changes(monkeypatch, tmp_path):
    import ready

    (tmp_path / "pyodide.asm.wasm").write_bytes(b"")
    runs = []

    def node(command, **_):
        runs.append(command)
        given, made = map(Path, command[-3:-1])
        for path in given.iterdir():
            (made / path.name).write_bytes(path.read_bytes() * 2)
        for name in ready.MEMORY:
            (made / name).write_bytes(command[-1].encode())

    monkeypatch.setattr(ready.shutil, "which", lambda name: name)
    monkeypatch.setattr(ready.subprocess, "run", node)
    for _ in range(2):
        found = ready.ready({"a.whl": b"ab"}, ["a.whl"], tmp_path, tmp_path / "kept")
        assert found == {"a.whl": b"abab", **dict.fromkeys(ready.MEMORY, b"a.whl")}
    assert len(runs) == 1
    assert ready.ready({"a.whl": b"c"}, [], tmp_path, tmp_path / "kept")["a.whl"] == b"cc"
    assert len(list((tmp_path / "kept").iterdir())) == 1, "the old ones are gone"


def test_a_node_that_fails_changes_nothing(monkeypatch, tmp_path):
    import ready

    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command)

    (tmp_path / "pyodide.asm.wasm").write_bytes(b"")
    monkeypatch.setattr(ready.shutil, "which", lambda name: name)
    monkeypatch.setattr(ready.subprocess, "run", fail)
    assert ready.ready({"a.whl": b""}, [], tmp_path, tmp_path / "kept") is None
