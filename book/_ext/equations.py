"""The equation index: what the code, the chapters and one table say about each equation, together.

Nothing is written twice. Lines of `minq` say `# eq. (7)`, chapters number their formulas, and
`tests/equations.yaml` names the tests; `tests/equation_lines.py` watches them while they run, and
proves that they execute these lines. A page gets its part of the index by `{equation-index} 1 13`.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests/equations.yaml"
LIST = re.compile(r"# eq\. (\(\d+[a-c]?\)(?:(?:, | to |-)\(\d+[a-c]?\))*)")
DISPLAY = re.compile(r"\$\$(.+?)\$\$|(\\begin\{align\}.+?\\end\{align\})", re.DOTALL)
NUMBER = re.compile(r"\\tag\{(\d+)[a-c]?\}|&&\s*\((\d+)\)")


class Line(NamedTuple):
    path: str  # from the root of the repository
    first: int  # the statement's lines
    line: int  # the one with the comment
    last: int
    name: str  # minq.affine.fake_quantize

    @property
    def public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))


def numbers(text: str) -> list[int]:
    """The numbers that a comment lists: "(2), (8a)" gives 2 and 8, "(37) to (39)" all three."""
    found: list[int] = []
    for separator, number in re.findall(r"(, | to |-|^)\((\d+)", text):
        first = found[-1] + 1 if separator in (" to ", "-") else int(number)
        found += range(first, int(number) + 1)
    return found


def code() -> dict[int, list[Line]]:
    """The formula lines of the library."""
    index: dict[int, list[Line]] = {}
    for path in sorted((ROOT / "minq").rglob("*.py")):
        text = path.read_text("utf-8")
        tree = ast.parse(text)
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and (match := LIST.match(token.string)):
                line = token.start[0]
                around = [
                    node
                    for node in ast.walk(tree)
                    if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno
                ]
                names = [module]  # a function inside a function goes by the outer one's name
                for node in around:
                    if isinstance(node, ast.ClassDef):
                        names.append(node.name)
                    elif isinstance(node, ast.FunctionDef):
                        names.append(node.name)
                        break
                inner = around[-1]
                if hasattr(inner, "body"):  # "if this:  # eq. (38)" speaks of what follows
                    inner = inner.body[0]
                place = path.relative_to(ROOT).as_posix()
                found = Line(place, inner.lineno, line, inner.end_lineno, ".".join(names))
                for number in numbers(match[1]):
                    index.setdefault(number, []).append(found)
    return index


def formulas() -> dict[int, dict[str, list[str]]]:
    """The numbered formulas: equation, chapter, and what stands there."""
    index: dict[int, dict[str, list[str]]] = {}
    for path in sorted((ROOT / "book").glob("ch*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] != "markdown":
                continue
            for match in DISPLAY.finditer("".join(cell["source"])):
                body = match[1] or match[2]
                several = len(NUMBER.findall(body)) > 1
                for row in body.split(r"\\") if several else [body]:
                    for number in NUMBER.findall(row):
                        text = NUMBER.sub("", row)
                        if several:
                            text = re.sub(r"\\(begin|end)\{align(ed)?\}|&", "", text)
                        places = index.setdefault(int("".join(number)), {})
                        places.setdefault(path.stem, []).append(" ".join(text.split()))
    return index


def table() -> dict[int, dict]:
    return yaml.safe_load(TABLE.read_text("utf-8"))


def test_line(test: str) -> int:
    """Where "tests/test_affine.py::test_name[case]" begins."""
    path, name = re.split(r"::|\[", test)[:2]
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node.lineno
    raise ValueError(f"{path} has no test {name}; correct {TABLE.name}")


def entries(first: int, last: int) -> list[str]:
    """The index as MyST text."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    address = f"{repository['url']}/blob/{repository['branch']}"
    in_code, in_book, said = code(), formulas(), table()
    text: list[str] = []
    for number in range(first, last + 1):
        entry, chapters = said[number], in_book[number]
        links = ", ".join(
            f"{{ref}}`chapter {int(chapter[2:4])} <eq-{number}-{chapter}>`" for chapter in chapters
        )
        text += [f"**({number})** {entry['says']}: {links}.", ""]
        for formula in list(chapters.values())[-1]:
            text += [f"$$ {formula} $$", ""]
        for line in in_code.get(number, []):
            module = line.path.removesuffix(".py").replace("/", ".")
            name = line.name.removeprefix(f"{module}.")
            name = f"{{py:obj}}`{name} <{line.name}>`" if line.public else f"`{name}`"
            text.append(f"- {name}, [{line.path}:{line.line}]({address}/{line.path}#L{line.line})")
        if "why" in entry:
            text.append(f"- No line of its own: {entry['why']}.")
        for test in entry["tests"]:
            path, name = re.split(r"::|\[", test)[:2]
            words = name.removeprefix("test_").replace("_", " ")
            link = f"{address}/{path}#L{test_line(test)}"
            text.append(f"- Held by the test [{words}]({link}).")
        text.append("")
    return text


class EquationIndex(SphinxDirective):
    required_arguments = 2

    def run(self):
        for pattern in ("minq/**/*.py", "book/ch*.ipynb", "book/_ext/*.py", "tests/*.py"):
            for path in (TABLE, *ROOT.glob(pattern)):
                self.env.note_dependency(str(path))
        first, last = map(int, self.arguments)
        node = nodes.container(classes=["equation-index"])
        text = StringList(entries(first, last), source=str(TABLE))
        self.state.nested_parse(text, self.content_offset, node)
        return node.children


def mark(app, doctree):
    """Give each numbered formula of a chapter a place that links can name."""
    docname = app.env.docname
    if not re.match(r"ch\d\d_", docname):
        return
    seen = set()
    for formula in doctree.findall(nodes.math_block):
        for number in map("".join, NUMBER.findall(formula.astext())):
            if number not in seen:
                seen.add(number)
                formula["ids"].append(f"eq-{number}")
                app.env.get_domain("std").note_hyperlink_target(
                    f"eq-{number}-{docname}", docname, f"eq-{number}", f"eq. ({number})"
                )


def not_in_api(app, env, node, contnode):
    """A method, or a function that api.md leaves out, keeps its name and gets no link."""
    if node.get("refdoc") == "equations" and node.get("reftype") == "obj":
        return contnode
    return None


def setup(app):
    app.add_directive("equation-index", EquationIndex)
    app.connect("missing-reference", not_in_api)
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
