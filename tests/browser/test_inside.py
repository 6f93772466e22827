"""The widget of the page about the library: made as its recipe says, and played."""

import os
import shutil
import subprocess
import sys

import pytest
from bookpage import ROOT, BookPage
from texts import blocks

PAGE = ROOT / "book" / "inside.md"


@pytest.fixture(scope="module")
def level_count(tmp_path_factory):
    """A copy of the package with the new widget, and the page that the command writes of it."""
    book = tmp_path_factory.mktemp("fork")
    shutil.copytree(ROOT / "book" / "minqbook", book / "minqbook")
    widgets = book / "minqbook" / "widgets"
    (script,) = blocks(PAGE, "js")
    (code,) = [b for b in blocks(PAGE, "python") if "class LevelCount" in b]
    (widgets / "level_count.js").write_text(script)
    (widgets / "level_count.py").write_text(code)
    home = widgets / "__init__.py"
    line = '    "LevelCount": "level_count",\n    "Question"'
    home.write_text(home.read_text("utf-8").replace('    "Question"', line), "utf-8")
    command = [sys.executable, ROOT / "book" / "_tools" / "alone.py", "LevelCount(bits=4)"]
    path = os.pathsep.join([str(book), str(ROOT)])
    subprocess.run(
        [*command, "--to", book / "seen"], check=True, env=os.environ | {"PYTHONPATH": path}
    )
    return book / "seen"


def test_the_widget_of_the_recipe(browser, level_count):
    assert '`python book/_tools/alone.py "LevelCount(bits=4)"`' in PAGE.read_text("utf-8")
    context = browser.new_context(viewport={"width": 375, "height": 600})
    page = BookPage(context.new_page(), level_count.as_uri() + "/")
    page.goto("widget.html")
    widget = page.widget(".minq")
    assert "16 levels, from 0 to 15." in widget.root.inner_text()
    widget.slider("Bits").set(2)
    assert "4 levels, from 0 to 3." in widget.root.inner_text()
    (ticks,) = widget.root.locator(".mq-levels path").all()
    assert ticks.get_attribute("d").count("M") == 4
    context.close()
    assert not page.problems
