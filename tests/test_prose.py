"""The reader of prose: it finds each kind of slip, and leaves code and formulas alone."""

from __future__ import annotations

import json

import prose
import pytest

LONG = " ".join(["word"] * 50)

SLIPS = {
    f"A sentence. {LONG.capitalize()}. Another.": "a sentence of 50 words",
    " ".join(["One short sentence."] * 50): "a paragraph of 150 words",
    "The weights wish to be integers.": "no feelings",
    "Every tensor trembles.": "no feelings",
    "The order of care is another one than before.": "different from",
    "A small network shall get weights of 4 bits.": "who decides",
    "We first of all round.": "not English",
    "Of course the grid holds zero.": "hurt",
    "A word that has since long been used.": "not English",
    "- a point\n- The weights wish to be integers.\n- a point": "no feelings",
    ":::{admonition} A title\nThe weights wish to be integers.\n:::": "no feelings",
    "```{admonition} A title\nThe weights wish to be integers.\n```": "no feelings",
    "The scale is too large irregardless of the range.": "irregardless",  # codespell:ignore
    "This is is a repetition.": "repeated",
    "A very unique scale.": "unique",
}
FINE = [
    "A layer computes a sum. A network has many layers.",
    f"```python\nx = '{LONG}'\n```",
    f"$$ \\text{{{LONG}}} $$",
    f"| a | table |\n|---|---|\n| {LONG} | is no sentence |",
    "The scale $s$ $s$ is $s$ and $s$ and so on.",
    "Batch norm comes for free.",
    f"See [a page](https://x.test/{'of-course/' * 30}).",
    "`the weights wish`, says the code.",
    ":::{admonition} Of course\nA box.\n:::",
]


@pytest.mark.parametrize("text", SLIPS)
def test_a_slip_is_found(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{text}\n", "utf-8")
    found = [str(f) for f in prose.read(page)]
    assert any(SLIPS[text] in f and f.startswith("page.md: “") for f in found), found


@pytest.mark.parametrize("text", FINE)
def test_what_is_no_prose_or_fine_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\nA sentence.\n\n{text}\n", "utf-8")
    assert not list(prose.read(page))


def test_a_notebook_names_its_cell(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["# the weights wish"]},
        {"cell_type": "markdown", "source": ["The weights are\n", "few."]},
        {"cell_type": "markdown", "source": ["The weights wish\n", "for more."]},
    ]
    page = tmp_path / "page.ipynb"
    page.write_text(json.dumps({"cells": cells}), "utf-8")
    (found,) = prose.read(page)
    assert str(found).startswith("page.ipynb, cell 2: “weights wish”")


def test_every_page_of_the_book_is_read():
    names = {p.name for p in prose.pages()}
    assert {"intro.ipynb", "glossary.md", "teaching.md", "ch20_after.ipynb"} <= names


def test_a_slip_fails_the_command(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    for text, status in (("The weights wish.", 1), ("The weights are few.", 0)):
        page.write_text(text, "utf-8")
        monkeypatch.setattr("sys.argv", ["prose.py", str(page)])
        assert prose.main() == status
        assert ("no feelings" in capsys.readouterr().out) == bool(status)
