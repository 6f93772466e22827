"""What the page's Python does with a cell: here in this Python, in tests/browser in the page's."""

import json
import struct
import subprocess
import sys
from base64 import b64decode

import pytest

from minqbook import live


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """What cells show, as the page hears it; print's pieces joined."""
    outputs = []

    def emit(kind, text):
        if kind in ("stdout", "stderr") and outputs and outputs[-1][0] == kind:
            text = outputs.pop()[1] + text
        outputs.append((kind, text))

    monkeypatch.setattr("builtins.input", input)  # and back, after the test
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(".")
    monkeypatch.setattr(live, "_spaces", {})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    live.begin(emit)
    return outputs


def run(source, *arguments):
    return json.loads(live.run(source, *arguments))


def test_a_cell_shows_what_it_prints_and_its_last_value(shown):
    assert run("x = 2\nprint('two:', x)\nx + 3") == {
        "status": "ok",
        "text": "",
        "line": None,
        "traceback": "",
    }
    assert shown == [("stdout", "two: 2\n"), ("text", "5")]


@pytest.mark.parametrize(
    "source", ["x = 1", "None", "5;", "", "# nothing", "def f():\n    return 1"]
)
def test_what_shows_no_value(source, shown):
    assert run(source)["status"] == "ok" and shown == []


def test_cells_of_a_space_share_their_names(shown):
    run("x = 1", "a")
    assert run("x", "a")["status"] == "ok"
    assert run("x", "b")["text"] == "NameError: name 'x' is not defined"
    assert run("x", "a", "", True)["status"] == "error", "a fresh space has no names"
    assert shown == [("text", "1")]


def test_an_error_says_its_line_and_only_the_readers_steps():
    run("def halve(x):\n    return x / 0\n", "page", "cell 1")
    found = run("y = 1\n\nhalve(y)", "page", "cell 2")
    assert (found["status"], found["line"]) == ("error", 3)
    assert found["text"] == "ZeroDivisionError: division by zero"
    assert 'File "<cell 2>", line 3' in found["traceback"]
    assert "return x / 0" in found["traceback"], "the source of another cell is shown too"
    assert "live.py" not in found["traceback"]
    again = run("def f():\n    raise ValueError('no\\nyes')\n\nf()")
    assert (again["line"], again["text"]) == (2, "ValueError: no\nyes")


@pytest.mark.parametrize(
    "source, line, text",
    [
        ("x = 1\ny = = 2", 2, "SyntaxError: invalid syntax"),
        ("if 1:\nx = 2", 2, "IndentationError: expected an indented block after 'if' statement"),
        ("raise SystemExit(2)", 1, "SystemExit: 2"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
        ("input('? ')", 1, "RuntimeError: input() cannot ask in the page"),
        (
            "import json\njson.loads('{')",
            2,
            "json.decoder.JSONDecodeError: Expecting property name",
        ),
    ],
)
def test_errors_of_every_kind_end_the_cell_only(source, line, text):
    found = run(source)
    assert found["line"] == line and found["text"].startswith(text)
    assert run("1")["status"] == "ok"


def test_torch_and_memory_get_a_word_of_advice(monkeypatch):
    missing = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch.nn')"
    assert live.NO_TORCH in run(missing)["text"]
    assert "smaller arrays" in run("raise MemoryError")["text"]


def test_what_a_cell_printed_before_an_error_stays(shown):
    assert run("print('so far')\n1 / 0")["status"] == "error"
    assert shown == [("stdout", "so far\n")]


def test_endless_printing_is_cut(shown, monkeypatch):
    monkeypatch.setattr(live, "MOST", 10)
    run("for _ in range(100):\n    print('abc')")
    ((kind, text),) = shown
    assert text == "abc\nabc\nab\n... and more: only the first 10 characters are shown\n"
    run("print('new')")
    assert shown[-1][1].endswith("new\n"), "the next cell may print again"


def test_figures_come_in_order_as_pictures(shown):
    import matplotlib
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    try:
        plt.switch_backend("module://minqbook.live_figures")
        run(
            "import matplotlib.pyplot as plt\n"
            "plt.figure(figsize=(3, 2)); plt.plot([1, 2]); plt.show()\n"
            "print('between')\n"
            "plt.figure(); plt.plot([2, 1]);"
        )
        assert [kind for kind, _ in shown] == ["figure", "stdout", "figure"]
        png = b64decode(shown[0][1])
        width, height = struct.unpack(">II", png[16:24])
        assert png[:4] == b"\x89PNG" and abs(width - 600) < 60 and abs(height - 400) < 60
        assert plt.get_fignums() == []
        run("plt.figure()\n1 / 0")
        assert plt.get_fignums() == [], "what an error left open is not shown by the next cell"
    finally:
        plt.switch_backend(before)


def test_what_the_page_brings_is_found_there_only(monkeypatch, tmp_path):
    monkeypatch.setattr(live, "DATA", None)
    assert live.given("net.npz") is None
    live.begin(lambda kind, text: None, str(tmp_path))
    assert live.given("net.npz") is None
    (tmp_path / "net.npz").touch()
    assert live.given("net.npz") == tmp_path / "net.npz"


def test_modules_that_came_later_are_found(monkeypatch, tmp_path):
    """Python remembers what a folder had; in the page two files can come within one tick."""
    import os

    monkeypatch.syspath_prepend(str(tmp_path))
    assert run("import minq_came_later")["status"] == "error"
    before = tmp_path.stat()
    (tmp_path / "minq_came_later.py").touch()
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run("import minq_came_later")["status"] == "error"
    live.look_again()
    assert run("import minq_came_later")["status"] == "ok"


def test_only_cells_that_need_no_torch_are_live(tmp_path, monkeypatch):
    """The rule, on a notebook made here: what fails is not live, nor what rests on it."""
    import live_cells

    sources = [
        "x = 1",
        "import torch\ny = 2",
        "print(x)",
        "y",
        "from minqbook.widgets import AffinePlayground\nAffinePlayground([0.1, 0.9], bits=3)",
        "!git clone nothing",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    ]
    cells = [{"cell_type": "code", "source": [s], "metadata": {}} for s in sources]
    cells[5]["metadata"] = {"tags": ["remove-cell"]}
    cells.insert(0, {"cell_type": "markdown", "source": ["# Title"], "metadata": {}})
    notebook = tmp_path / "ch.ipynb"
    notebook.write_text(json.dumps({"cells": cells}), "utf-8")
    monkeypatch.setattr(live_cells, "KEPT", tmp_path / "kept")
    found = live_cells.live_cells([notebook], b"library", tmp_path)
    assert found == {"ch": [1, 3, 5, 7]}
    monkeypatch.setattr(live_cells.subprocess, "run", None)  # nothing runs a second time
    assert live_cells.live_cells([notebook], b"library", tmp_path) == found


def test_modules_of_numpy_that_cells_seldom_use_load_when_they_are_used():
    """In a Python of its own, where nothing has imported them; the names are there as ever."""
    code = """
import sys
from minqbook import live
live.begin(lambda kind, text: None)
import minq
minq.quantize(0.3, 0.1)
assert "unittest" not in sys.modules
import numpy as np
assert float(np.random.default_rng(0).random()) < 1 and np.ma.array([1, 2]).sum() == 3
np.testing.assert_allclose([1.0], [1.0])
assert "unittest" in sys.modules and np.f2py.__version__
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_table_is_shown_as_html_and_other_values_as_text(shown, monkeypatch):
    """What stands for IPython in the page; Matplotlib finds nothing to hook itself into."""
    from minqbook import live_display

    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, live_display)
    show = "from IPython.display import HTML, display\n"
    assert run(show + "display(HTML('<b>1</b>'), 2)\nHTML('<i>3</i>')")["status"] == "ok"
    assert shown == [("html", "<b>1</b>"), ("text", "2"), ("html", "<i>3</i>")]
    plot = "import matplotlib.pyplot as plt\nplt.subplots()\nplt.close('all')"
    assert run(plot)["status"] == "ok"
