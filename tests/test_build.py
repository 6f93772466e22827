"""The build of the book where a package of one chapter is missing."""

from __future__ import annotations

import build
import nbformat
import pytest
from jupyter_cache import get_cache


@pytest.fixture
def notebook(tmp_path):
    """write(needs) -> the path of a notebook with two code cells and their stored outputs."""

    def write(needs):
        hidden = nbformat.v4.new_code_cell("import sys", metadata={"tags": ["remove-cell"]})
        output = nbformat.v4.new_output("stream", name="stdout", text="42\n")
        shown = nbformat.v4.new_code_cell("print(6 * 7)", outputs=[output], execution_count=1)
        nb = nbformat.v4.new_notebook(cells=[hidden, shown], metadata={"needs": needs})
        nbformat.write(nb, path := tmp_path / "chapter.ipynb")
        return path

    return write


def test_a_chapter_without_its_package_shows_what_is_stored(notebook, tmp_path, capsys):
    path, cache = notebook("no_such_package"), get_cache(tmp_path / "cache")
    cache.add_nb_to_project(path)
    build.keep_stored(cache, path)
    assert not cache.list_unexecuted()
    _, nb = cache.merge_match_into_file(path)
    hidden, shown = nb.cells
    text = "".join(output.text for output in shown.outputs)
    assert "without the package no_such_package" in text and text.endswith("42\n")
    assert not hidden.outputs
    assert "chapter.ipynb" in capsys.readouterr().out


@pytest.mark.parametrize("needs", ["json", None])
def test_all_others_run(notebook, tmp_path, needs):
    path, cache = notebook(needs), get_cache(tmp_path / "cache")
    cache.add_nb_to_project(path)
    build.keep_stored(cache, path)
    assert len(cache.list_unexecuted()) == 1
