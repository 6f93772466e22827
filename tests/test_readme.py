"""Code in the text is code: every line of it runs here, and its answer is judged."""

import ast
import builtins
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from nbformat import read
from texts import blocks, prose
from torch.nn.functional import cross_entropy

import minq
from minqbook import zoo

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
# --- The README's networks ------------------------------------------------------------------------


class Said(list):
    """What the code prints."""

    def __call__(self, *values):
        self.append(" ".join(map(str, values)))


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """Its blocks about networks, run in order on a trained one; what each left behind."""
    model = zoo.load("resnet_basic")
    images, labels = zoo.test_set("resnet_basic", 48)
    calibration = zoo.calibration_set("resnet_basic", 16)
    loader = [(images[k : k + 8], labels[k : k + 8]) for k in range(0, 16, 8)]
    names = {"model": model, "calibration": calibration, "loader": loader, "x": images[:4]}
    names |= {"loss": cross_entropy, "torch": torch, "print": Said()}
    folder = tmp_path_factory.mktemp("readme")
    after = []
    run = [b for b in blocks(ROOT / "README.md", "python") if not b.startswith(">>>")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names["minq"] = minq
        for body in run:
            for statement in ast.parse(body).body:
                if ast.unparse(statement) == "...":  # "any training loop"
                    train(names["q"], names["optimizer"], loader)
                else:
                    exec(compile(ast.Module([statement], []), "README.md", "exec"), names)
                after.append((ast.unparse(statement), dict(names)))
    return after, folder, images, labels


def train(q, optimizer, loader):
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(q(x), y).backward()
        optimizer.step()


def after(readme, start):
    """The names as they stood behind the statement that starts so."""
    (found,) = [names for text, names in readme[0] if text.startswith(start)]
    return found


def test_post_training_quantization_and_the_verdict(readme):
    names = after(readme, "print(minq.debug")
    (verdict,) = names["print"]
    q, model, x = names["q"], names["model"], names["calibration"]
    decibels = minq.sqnr(model(x).detach(), q(x).detach())
    assert verdict == f"Good: {decibels:.1f} dB. Measure the accuracy on labelled data."
    assert minq.debug(q, model, x, each=False).exact > 80
    bits = {name: m.bits for name, m in minq.quantizers(q).items()}
    assert {b for name, b in bits.items() if name.endswith("weight_quantizer")} == {4}
    assert {b for name, b in bits.items() if not name.endswith("weight_quantizer")} == {8}
    assert zoo.evaluate(q, "resnet_basic", readme[2:]) > 75


def test_quantization_aware_training_in_one_call_and_in_a_loop(readme):
    for start in ("q = minq.qat(", "minq.qat.finish("):
        names = after(readme, start)
        q, model = names["q"], names["model"]
        assert isinstance(q, torch.fx.GraphModule) and not q.training
        assert {m.bits for m in minq.quantizers(q).values()} == {4}
        assert zoo.evaluate(q, "resnet_basic", readme[2:]) > 75
        verdict = minq.debug(q, model, names["calibration"], each=False).verdict
        assert verdict.startswith("Training has moved the network")
    optimizer = after(readme, "optimizer =")["optimizer"]
    prepared = after(readme, "q = minq.qat.prepare(")["q"]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in prepared.parameters() if p.requires_grad} <= held


def test_integers(readme):
    names = after(readme, "net = minq.to_integer(")
    net, q, x = names["net"], names["q"], names["x"]
    step = float(list(minq.quantizers(q).values())[-1].scale_zero_point()[0].max().detach())
    assert float((net(x) - q(x)).detach().abs().max()) <= 1.01 * step
    exact = minq.to_integer(q, multipliers="float")
    assert torch.equal(exact(x), minq.deploy.simulation(q)(x.double()).float())  # bit for bit
    rows = str(net.report(x)).splitlines()
    assert all(any(name in row for row in rows) for name in minq.graph.layers(q))


def test_a_file_for_onnx_runtime(readme):
    names, file = after(readme, "minq.to_onnx("), readme[1] / "network.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x, (given,) = names["x"], session.get_inputs()
    (y,) = session.run(None, {given.name: x.numpy()})
    # With 4 bits a tie is a large step, and there are some: the classes are the same.
    expected = names["q"](x).detach().numpy()
    assert np.array_equal(np.argmax(y, 1), expected.argmax(1))
    assert minq.sqnr(expected, np.asarray(y)) > 15
    assert b"QuantizeLinear" in file.read_bytes()


def test_a_network_in_c(readme):
    names, folder = after(readme, "minq.to_c("), readme[1] / "chip"
    assert sorted(p.name for p in folder.iterdir()) == ["network.c", "network.h"]
    again = minq.to_c(names["net"], folder / "again")  # that it computes the same: test_to_c.py
    assert again.source.read_bytes() == (folder / "network.c").read_bytes()


# --- The chapters' scripts ------------------------------------------------------------------------


@pytest.fixture
def project(monkeypatch):
    """The reader's own project, as the scripts import it."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    module = ModuleType("my_project")
    module.data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    module.loss = cross_entropy
    module.model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )
    monkeypatch.setitem(sys.modules, "my_project", module)
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", "0")
    return module


@pytest.mark.filterwarnings("ignore")
def test_the_script_of_chapter_15_runs(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    whole = [b for path in NOTEBOOKS for b in blocks(path, "python") if "import minq" in b]
    (script,) = whole  # a new one: say here what it has to leave behind
    names = {}
    exec(compile(script, "chapter 15", "exec"), names)
    assert (tmp_path / "training.pt").exists()
    other = minq.qat.finish(minq.qat.prepare(project.model, project.data.tensors[0], weights=4,
                                             activations=4))  # fmt: skip
    other.load_state_dict(torch.load(tmp_path / "w4a4.pt", weights_only=True))
    x = project.data.tensors[0]
    assert torch.equal(other(x), names["q"](x))
    assert not torch.distributed.is_initialized()


def stored(tree):
    """All names that the code gives a value to."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = {n.name for n in ast.walk(tree) if isinstance(n, kinds)}
    names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)
              and isinstance(n.ctx, ast.Store)}  # fmt: skip
    names |= {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    return names | {
        (a.asname or a.name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for a in n.names
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_solutions_use_names_of_their_chapter(path):
    """They go on from the chapter's cells, which take too long to run here."""
    cells = [c.source for c in read(path, as_version=4).cells if c.cell_type == "code"]
    lines = [x for c in cells for x in c.splitlines() if not x.lstrip().startswith(("!", "%"))]
    known = stored(ast.parse("\n".join(lines))) | set(dir(builtins))
    for body in blocks(path, "python"):
        tree = ast.parse(body)
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert used <= known | stored(tree), body


# --- Commands, names and files --------------------------------------------------------------------

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.M))
SETTINGS = (ROOT / "pyproject.toml").read_text("utf-8")
EXTRAS = SETTINGS.partition("[project.optional-dependencies]")[2]
PROGRAMS = [p for folder in ("tests/browser", "book/_tools") for p in (ROOT / folder).glob("*.py")]
VARIABLES = set(re.findall(r"MINQ_\w+", "".join(p.read_text() for p in PROGRAMS)))


def commands(path):
    """Each command line: those of blocks, and those in the middle of a sentence."""
    lines = [line for body in blocks(path, "sh", "bash", "") for line in body.splitlines()]
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(path))
    starts = ("make ", "python ", "python3 ", "pip ", "pytest ", "MINQ_")
    lines += [code for code in inline if code.startswith(starts)]
    parts = [p for line in lines for p in re.split(r"&&", re.split(r"(?:^| )#", line)[0])]
    return [shlex.split(p) for p in parts if p.strip()]


@pytest.mark.parametrize("path", TEXTS + NOTEBOOKS, ids=lambda p: p.stem)
def test_commands_exist(path, monkeypatch, capsys):
    for words in commands(path):
        while words and words[0].startswith("MINQ_"):  # a variable for the command
            assert words.pop(0).partition("=")[0] in VARIABLES
        if not words:
            continue
        program = Path(words[0]).name
        if program == "make":
            for word in words[1:]:
                name, value, _ = word.partition("=")
                assert (f"{name} ?=" in MAKEFILE or f"$({name})" in MAKEFILE) if value else (
                    word in TARGETS), words  # fmt: skip
        elif program.startswith("python") and words[1:3] == ["-m", "minqbook.tables"]:
            tables(words[3:], monkeypatch, capsys)
        elif program in ("pip", "pytest") or program.startswith("python"):
            for word in words[1:]:
                if word.endswith((".py", ".txt")) or word.startswith("tests/"):
                    assert (ROOT / word).exists(), words
                if extras := re.search(r"minq\[(\w+)\]", word):
                    assert f"\n{extras[1]} = [" in EXTRAS
        else:
            assert program in ("git", "cd", "source", "torchrun", "nbgrader"), words


def tables(words, monkeypatch, capsys):
    """The options are those that ``--help`` knows, the tables those that there are."""
    from minqbook.tables.registry import TABLES

    assert all(w in TABLES for w in words if words[0] != "--model" and not w.startswith("--"))
    module = importlib.import_module("minqbook.tables.real" if "--model" in words else
                                     "minqbook.tables.__main__")  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["minqbook.tables", "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    shown = capsys.readouterr().out
    assert not end.value.code
    assert all(w in shown for w in words if w.startswith("--"))


@pytest.mark.parametrize("path", TEXTS + NOTEBOOKS, ids=lambda p: p.stem)
def test_names_of_the_library_exist(path):
    """``minq.ptq.debug.only`` is there, and takes the arguments that the text gives it."""
    for code in re.findall(r"(?<!`)`((?:minq|minqbook)(?:\.\w+)+)(?:\((.*?)\))?`", prose(path)):
        place, arguments = code
        package, *parts = place.split(".")
        value = importlib.import_module(package)
        for k, part in enumerate(parts):
            if not hasattr(value, part):
                importlib.import_module(".".join([package, *parts[: k + 1]]))
            value = getattr(value, part)
        if arguments:
            call = ast.parse(f"f({arguments})", mode="eval").body
            inspect.signature(value).bind_partial(
                *call.args, **{k.arg: None for k in call.keywords}
            )


@pytest.mark.parametrize("path", [*TEXTS[:2], ROOT / "book" / "inside.md"], ids=lambda p: p.stem)
def test_files_that_are_named_exist(path):
    """`minq/graph.py`, `fold.py` beside it, and folders; names of new files are left alone."""
    last = ROOT
    pattern = r"(?<!`)`([\w./-]+(?:\.(?:py|js|md|yml|yaml|bib|txt)|/))`"
    for code in re.findall(pattern, path.read_text("utf-8")):
        if re.search(r"NN|name|ch03|test_name|level_count", code):
            continue
        folders = (ROOT, last, ROOT / "book/minqbook/widgets")
        found = [folder / code for folder in folders if (folder / code).exists()]
        assert found, code
        last = found[0].parent
