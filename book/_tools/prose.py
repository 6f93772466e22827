"""Read the text of the book as an editor would, and name what CONTRIBUTING.md asks to avoid.

    python book/_tools/prose.py [page ...]

proselint knows the slips of all writers; the few patterns here are relapses of this book: sentences
and paragraphs that are too long, tensors with feelings, and turns that are not English.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
SENTENCE, PARAGRAPH = 45, 140
"""Words, at most."""

CHECKS = (
    "archaism", "hedging", "lexical_illusions", "malapropisms", "mixed_metaphors", "mondegreens",
    "nonwords", "oxymorons", "redundancy", "spelling", "uncomparables", "needless_variants",
)  # fmt: skip
"""Of proselint; the others are about newspapers, or matters of taste."""

THINGS = (
    "tensor|weight|activation|layer|network|channel|quantizer|scale|grid|number|bit|kernel|"
    "accumulator|gradient|bias|range|level|model"
)
CODE = r"^(`{3,})(?:\w|\{(?:code|math|glossary|figure|equation))[^\n]*\n.*?^\1 *$"
FINE = {"for free", "for ever", "X", "XX", "and"}
"""What proselint has against is our custom; and a formula behind a formula is no repetition."""

RELAPSES = {
    rf"\b(?:{THINGS})s? (?:wish|want|hope|fear|trembl|dream|enjoy|take note|takes note|long for|"
    r"is happy|are happy|suffer)\w*": "numbers have no feelings: say what is computed, by what",
    r"\banother (?:one )?than\b": "not English: different from",
    r"\bshall (?:get|become|have)\b": "say who decides: we give it, it should have",
    r"\b(?:since|already) long\b|\ball what\b|\bhow it looks like\b|\bfirst of all\b": (
        "not English, or too many words: for a long time, all that, how it looks, first"
    ),
    r"\b(?:simply|obviously|of course|trivially|easy to see)\b": (
        "who does not see it at once is hurt, who does needs no such word"
    ),
}


class Found(NamedTuple):
    place: str
    words: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: “{' '.join(self.words.split())}”: {self.why}"


def cells(path: Path) -> Iterator[tuple[str, str]]:
    """The places and texts of a page."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        yield path.name, text
        return
    for number, cell in enumerate(json.loads(text)["cells"]):
        if cell["cell_type"] == "markdown":
            yield f"{path.name}, cell {number}", "".join(cell["source"])


def running(text: str) -> str:
    """The text without what is no prose: code, formulas, roles, addresses, tables, directives.

    >>> running("Take `x` and $y$, {cite:p}`nagel2021`; see [there](a.md).")
    'Take X and X, X; see there.'
    """
    text = re.sub(CODE, "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", "X", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$", "X", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$", "X", text)
    text = re.sub(r"(?:\{[\w:-]+\})?`[^`\n]+`", "X", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    lines = (
        "" if re.match(r"\s*(\||`{3}|:{3}|:\w+:|<|#|---)", line) else line
        for line in text.split("\n")
    )
    return "\n".join(lines)


def paragraphs(text: str) -> Iterator[str]:
    """Blocks of text; an item of a list is one."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        if words := " ".join(block.split()):
            yield words


def sentences(paragraph: str) -> list[str]:
    """
    >>> sentences("It is 0.5, e.g. here. Is it? **Yes.** No.")
    ['It is 0.5, e.g. here.', 'Is it?', '**Yes.**', 'No.']
    """
    return re.split(r"(?:(?<=[.?!:;])|(?<=[.?!:;]\*\*))(?<!e\.g\.)(?<!i\.e\.)\s+(?=[\W\d]*[A-Z])",
                    paragraph)  # fmt: skip


def too_long(text: str) -> Iterator[tuple[str, str]]:
    for paragraph in paragraphs(text):
        if (count := len(paragraph.split())) > PARAGRAPH:
            yield paragraph[:60], f"a paragraph of {count} words; one idea each"
        for sentence in sentences(paragraph):
            if (count := len(sentence.split())) > SENTENCE:
                yield sentence[:60], f"a sentence of {count} words; make two"


def relapses(text: str) -> Iterator[tuple[str, str]]:
    for pattern, why in RELAPSES.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield match[0], why


@functools.cache
def _proselint():
    from proselint.checks import __register__
    from proselint.config import DEFAULT
    from proselint.registry import CheckRegistry

    CheckRegistry().register_many(__register__)
    return {**DEFAULT, "checks": {name: name in CHECKS for name in DEFAULT["checks"]}}


def slips(text: str) -> Iterator[tuple[str, str]]:
    """What proselint finds."""
    from proselint.tools import LintFile

    page = LintFile("text", text)
    for found in page.lint(_proselint()):
        start, end = found.check_result.span
        words = page.content[start:end]
        if words.lower() not in FINE and set(words.split()) - FINE:
            yield words, found.check_result.message.strip()


def read(path: Path) -> Iterator[Found]:
    """All that is to be mended on a page."""
    for place, source in cells(path):
        text = running(source)
        for reader in (too_long, relapses, slips):
            for words, why in reader(text):
                yield Found(place, words, why)


def pages() -> list[Path]:
    found = [p for kind in ("*.ipynb", "*.md") for p in BOOK.rglob(kind) if "_" not in p.parts[-2]]
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path)
    found = [f for path in parser.parse_args().pages or pages() for f in read(path)]
    print(*found, sep="\n") if found else print("Prose: nothing to mend.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
