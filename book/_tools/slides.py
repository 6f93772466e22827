"""Cut a deck of slides for each chapter out of the built pages: nothing runs again.

python book/_tools/slides.py           _build/html/slides/chNN_....html, and index.html

A heading of the second level starts a slide to the right; what follows goes down. On the slides
stand headings, admonitions, lists, displayed formulas, figures, tables, widgets, the code that is
not folded, printed outputs and bold sentences. Paragraphs are the speaker's notes (key S).
Solutions and checks are left out. A teacher steers with classes: a code cell by its tags, other
text by MyST's {class} directive above it.

    slide-new    starts a new slide             slide-skip   is left out
    slide-notes  goes to the speaker's notes    fragment     appears at the next key
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from bs4 import BeautifulSoup, NavigableString, Tag

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
REVEAL = ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "plugin/notes/notes.js", "LICENSE")
LEFT_OUT = ".solution, .tag_solution, .tag_check, .slide-skip, .tag_slide-skip"
STATE = 'script[type="application/vnd.jupyter.widget-state+json"]'
VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]'
SCRIPTS = re.compile("mathjax/|MathJax|(widgets|page)-")
LARGE = 'img, svg, table, .exercise, script[type*="widget-view"]'  # has a slide of its own

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
colour(); dark.addEventListener("change", colour);
</script>
{head}
<link rel="stylesheet" href="reveal/reset.css"><link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="../_static/slides.css"></head>
<body class="deck"><div class="reveal"><div class="slides bd-article">
{slides}
</div></div>
{states}
<script src="reveal/reveal.js"></script><script src="reveal/notes.js"></script>
<script defer src="../_static/slides.js"></script>
</body></html>
"""


def matches(node: Tag, name: str) -> bool:
    """Whether the author gave the element this class, or the cell this tag."""
    return bool({name, f"tag_{name}"} & set(node.get("class", [])))


def sentences(paragraph: Tag) -> list[Tag]:
    """The sentences of a paragraph as <p>; only the text between elements is cut."""
    found = [Tag(name="p")]
    for child in paragraph.children:
        if not isinstance(child, NavigableString):
            found[-1].append(copy.copy(child))
            continue
        first, *rest = re.split(r"(?<=[.!?]) (?=[A-Z])", str(child))
        found[-1].append(first)
        for text in rest:
            found.append(Tag(name="p"))
            found[-1].append(text)
    return [s for s in found if s.get_text(strip=True)]


def leads(paragraph: Tag) -> list[Tag]:
    """The bold sentences of a paragraph; its first sentence, if that begins in bold."""
    found = []
    for bold in paragraph.find_all("strong", recursive=False):
        starts = not any(str(s).strip() for s in bold.previous_siblings)
        whole = bold.get_text().rstrip().endswith((".", "?", "!"))
        if starts or whole:
            lead = Tag(name="p")
            lead.append(copy.copy(bold))
            found.append(lead if whole else sentences(paragraph)[0])
            found[-1]["class"] = "lead"
    return found


class Deck:
    """Slides in two directions: `columns` of lists of (blocks, notes)."""

    def __init__(self):
        self.columns: list[list[tuple[list, list]]] = []
        self.heading: Tag | None = None

    def right(self, heading: Tag) -> None:
        self.columns.append([([heading], [])])
        self.heading = heading

    def down(self, heading: Tag | None = None) -> None:
        blocks, _ = self.columns[-1][-1]
        if len(blocks) == 1 and heading is None:
            return  # only a heading so far
        if heading is not None:
            self.heading = heading
            if len(blocks) == 1:
                blocks.append(heading)
                return
        self.columns[-1].append(([copy.copy(self.heading)], []))

    def show(self, block: Tag) -> None:
        for inner in block.find_all("section"):
            inner.name = "div"  # reveal.js takes every <section> for a slide
        blocks, _ = self.columns[-1][-1]
        large = bool(block.select_one(LARGE)) or "exercise" in block.get("class", [])
        full = any(isinstance(b, Tag) and b.get("data-large") for b in blocks)
        if large or full or matches(block, "slide-new"):
            self.down()
        if large:
            block["data-large"] = "1"
        if matches(block, "fragment"):
            block["class"] = [*block.get("class", []), "fragment"]
        self.columns[-1][-1][0].append(block)

    def note(self, block: Tag) -> None:
        self.columns[-1][-1][1].append(copy.copy(block))

    def html(self) -> str:
        def leaf(blocks, notes, kind=""):
            aside = f'<aside class="notes">{"".join(map(str, notes))}</aside>' if notes else ""
            return f'<section class="leaf{kind}">{"".join(map(str, blocks))}{aside}</section>'

        first, *rest = self.columns
        parts = [
            "<section>"
            + "".join(leaf(b, n, " title" if i == 0 else "") for i, (b, n) in enumerate(first))
            + "</section>"
        ]
        parts += ["<section>" + "".join(leaf(*s) for s in column) + "</section>" for column in rest]
        return "\n".join(parts)


def walk(deck: Deck, section: Tag, level: int = 1) -> None:
    """Put what a section holds on the deck, in its order."""
    for node in section.find_all(True, recursive=False):
        if node.name == "section":
            walk(deck, node, level + 1)
        elif node.name in ("h1", "h2"):
            deck.right(node)
        elif node.name in ("h3", "h4"):
            deck.down(node)
        elif matches(node, "slide-notes"):
            deck.note(node)
        elif node.name == "p":
            deck.note(node)
            summary = "Summary" in section.find(["h1", "h2", "h3"]).get_text()
            for line in sentences(node) if summary and level == 2 else leads(node):
                deck.show(line)
        elif "cell" in node.get("class", []):
            if re.search("hide-input|hide-cell|remove", " ".join(node["class"])) or node.select(
                VIEW
            ):
                for code in node.select(".cell_input, details"):
                    code.decompose()
            for summary in node.select("details > summary"):
                summary.decompose()
            if node.get_text(strip=True) or node.select("img, script"):
                deck.show(node)
        else:
            deck.show(node)


def fill_bare(deck: Deck) -> None:
    """A slide with nothing but a heading shows the first sentence of each of its notes."""
    for column in deck.columns[1:]:
        for blocks, notes in column:
            if len(blocks) == 1:
                for note in notes[:4]:
                    blocks.extend(sentences(note)[:1])


def local(soup: Tag, page: str) -> None:
    """Addresses are those of the page, seen from the folder below it; ids stay in the page."""
    for node in [soup, *soup.find_all(True)]:
        for key in ("href", "src"):
            value = node.get(key, "")
            if value.startswith("#"):
                node[key] = f"../{page}{value}"
            elif value and not re.match(r"[a-z]+:|/", value):
                node[key] = f"../{value}"


def cut(path: Path) -> str:
    """The deck of one built page."""
    soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    article = soup.select_one("article.bd-article > section") or soup.select_one("article section")
    kept = 'link:is([rel="stylesheet"], [rel~="icon"]), meta[name="minq-parts"]'
    head = soup.select(f"head :is({kept})") + [
        s for s in soup.find_all("script") if SCRIPTS.search(s.get("src", "") + s.get_text()[:400])
    ]
    head = [s for s in head if not s.get("type", "").startswith("application/")]
    for script in head:
        if script.get("type") == "text/late":  # a deck cannot start before its formulas are set
            del script["type"]
            script["defer"] = ""
    states = soup.select(STATE)
    for node in [*article.select(LEFT_OUT), *article.select(".headerlink, .copybtn")]:
        node.decompose()
    for state in states:
        state.extract()
    for cell in article.select(".mq-live[id]:has(> .cell_input)"):  # no room here for an editor
        attributes = {"class": "mq-run", "href": f"#{cell['id']}", "target": "_blank"}
        cell.select_one(".cell_input").append(soup.new_tag("a", attrs=attributes, string="Run it"))
    for node in [*head, article]:
        local(node, path.name)
    title = article.find("h1").get_text(" ", strip=True)
    deck = Deck()
    walk(deck, article)
    fill_bare(deck)
    parts = {"head": head, "states": states}
    text = {key: "\n".join(map(str, nodes)) for key, nodes in parts.items()}
    return PAGE.format(title=title, slides=deck.html(), **text)


def main(html: Path = HTML) -> int:
    """Cut every chapter of a built book."""
    pages = sorted(html.glob("ch[0-9]*.html"))
    if not pages:
        print(f"no chapters in {html}; run `make book` first", file=sys.stderr)
        return 1
    out = html / "slides"
    shutil.rmtree(out, ignore_errors=True)
    (out / "reveal").mkdir(parents=True)
    reveal = files("sphinx_revealjs") / "_static" / "revealjs"
    for name in REVEAL:
        (out / "reveal" / Path(name).name).write_bytes((reveal / name).read_bytes())
    for name in ("slides.css", "slides.js"):
        shutil.copy(ROOT / "book" / "_assets" / name, html / "_static" / name)
    for page in pages:
        (out / page.name).write_text(cut(page), "utf-8")
    print(f"{len(pages)} decks. Open one:  {(out / pages[0].name).as_uri()}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=HTML, help="the built book")
    sys.exit(main(parser.parse_args().html))
