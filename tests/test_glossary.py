"""The glossary: every word is in use, and the first use on a page links to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import glossary
import pytest
from docutils import nodes
from docutils.core import publish_doctree

BOOK = Path(__file__).resolve().parents[1] / "book"
SOURCE = (BOOK / "glossary.md").read_text("utf-8")
BLOCK = SOURCE.partition(":sorted:")[2].rpartition("```")[0]
ENTRIES = [entry.splitlines() for entry in BLOCK.strip().split("\n\n")]
WORDS = {line for entry in ENTRIES for line in entry if not line.startswith(" ")}

FOUND = {
    "scale": ("term-scale", "What one step is worth."),
    "power-of-two scale": ("term-power", "A shift."),
    "SQNR": ("term-sqnr", "Decibels."),
    "signal-to-quantization-noise ratio": ("term-sqnr", "Decibels."),
}


def prose() -> str:
    text = []
    for path in sorted(BOOK.glob("ch*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        text += ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return "\n".join(text)


def test_every_entry_is_a_word_a_sentence_and_a_chapter():
    for entry in ENTRIES:
        *words, says = entry
        assert words and says.startswith("  "), entry
        assert re.search(r"\. \{doc\}`Ch\. (\d+) <ch\d\d_\w+>`$", says), entry
        number, file = re.search(r"Ch\. (\d+) <ch(\d\d)_", says).groups()
        assert int(number) == int(file), entry
        assert len(says.split()) < 50, f"{words[0]}: an entry is a sentence or two"
    assert [e[0].lower() for e in ENTRIES] == sorted(e[0].lower() for e in ENTRIES)


def test_every_entry_is_used_in_a_chapter():
    text = prose()
    unused = [e[0] for e in ENTRIES if not glossary.pattern(e[:-1]).search(text)]
    assert not unused


@pytest.mark.parametrize(
    "text, links",
    [
        ("A scale, another scale.", [("scale", "term-scale")]),
        ("Scales come first.", [("Scales", "term-scale")]),
        ("``scale`` is code; the scale is not.", [("scale", "term-scale")]),
        ("`scale <https://x.org>`_ is a link already, the scale none.", [("scale", "term-scale")]),
        ("A power-of-two scale, then a scale.",
         [("power-of-two scale", "term-power"), ("scale", "term-scale")]),
        ("SQNR: the signal-to-quantization-noise ratio.", [("SQNR", "term-sqnr")]),
        ("Rescaled, scaled, full-scale and sqnr are other words.", []),
        ("A scale-free law and a re-scale are others too.", []),
        ("*The scale* stands out already; a scale does not.", [("scale", "term-scale")]),
        ("Scale\n=====\n\nA heading has none; the scale has.", [("scale", "term-scale")]),
    ],
)  # fmt: skip
def test_the_first_use_links(text, links):
    doctree = publish_doctree(text, settings_overrides={"report_level": 5})
    before = doctree.astext()
    assert glossary.link(doctree, FOUND, "glossary.html") == len(links)
    made = [r for r in doctree.findall(nodes.reference) if "mq-term" in r["classes"]]
    assert [(r.astext(), r["refuri"]) for r in made] == [
        (word, f"glossary.html#{place}") for word, place in links
    ]
    assert all(isinstance(r.parent, nodes.paragraph) for r in made), "not inside of an emphasis"
    assert all(r["reftitle"] == FOUND[r.astext().lower().removesuffix("s")][1]
               for r in made if r.astext().lower().removesuffix("s") in FOUND)  # fmt: skip
    assert doctree.astext() == before, "no word is lost"


def test_a_built_page_links_to_its_entry(tmp_path):
    """A book of three pages: Sphinx names the places, the extension is asked for each page."""
    from sphinx.application import Sphinx

    pages = {
        "index": "A book\n======\n\nA step and scales.\n\n.. toctree::\n\n   glossary\n   notation",
        "notation": "Notation\n========\n\nA scale.",
        "glossary": "Glossary\n========\n\nA scale here.\n\n.. glossary::\n\n   scale\n   step\n"
        "      What one step\n      is worth. Ch. 3\n",
    }
    for name, text in pages.items():
        (tmp_path / f"{name}.rst").write_text(text, "utf-8")
    settings = {"extensions": ["glossary"], "html_theme": "basic"}
    folders = tmp_path, None, tmp_path / "html", tmp_path / "trees"
    Sphinx(*folders, "html", settings, status=None).build()
    made = {name: (tmp_path / "html" / f"{name}.html").read_text("utf-8") for name in pages}
    (link,) = re.findall(r"<a class=\"mq-term[^>]*>[^<]*</a>", made["index"])
    (place,) = re.findall(r'href="glossary.html#([^"]+)"', link)
    assert link.endswith(">step</a>") and 'title="What one step is worth."' in link
    assert f'id="{place}"' in made["glossary"], "both words have one entry, so there is one link"
    assert "mq-term" not in made["notation"] + made["glossary"]
