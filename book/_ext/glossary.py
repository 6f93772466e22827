"""The first use of a glossary word on a page of prose links to its entry, which it shows as a tip.

Nobody marks words by hand: text that is written anew, or moved, keeps its links.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx import addnodes

PAGE = "glossary"
WITHOUT = {PAGE, "notation", "equations", "api", "references", "progress", "translator"}
"""Pages that are tables and lists themselves."""
LEFT_ALONE = (
    nodes.reference, nodes.literal, nodes.math, nodes.raw, nodes.image, nodes.caption,
    nodes.emphasis, addnodes.pending_xref,
)  # fmt: skip


def entries(doctree: nodes.document) -> dict[str, tuple[str, str]]:
    """A word of the glossary -> where its entry is, and what it says."""
    found = {}
    for item in doctree.findall(nodes.definition_list_item):
        said = next(item.findall(nodes.definition)).astext().partition(" Ch. ")[0].strip()
        terms = list(item.findall(nodes.term))
        for term in terms:  # words of one entry lead to one place
            found[term.astext()] = (terms[0]["ids"][0], " ".join(said.split()))
    return found


def pattern(words: list[str]) -> re.Pattern[str]:
    """Any of the words, the longest first, also as a plural and at the start of a sentence.

    >>> pattern(["scale", "power-of-two scale"]).findall("Scales; a power-of-two scale; scaled")
    ['Scales', 'power-of-two scale']
    """
    longest = sorted(words, key=len, reverse=True)
    either = "|".join(
        f"[{w[0]}{w[0].upper()}]{re.escape(w[1:])}" if w[0].islower() else re.escape(w)
        for w in longest
    )
    return re.compile(rf"(?<![\w-])(?:{either})s?(?![\w-])")


def texts(doctree: nodes.document) -> Iterator[nodes.Text]:
    """The running text, in the order of reading."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        for text in list(paragraph.findall(nodes.Text)):
            parent = text.parent
            while parent is not paragraph and not isinstance(parent, LEFT_ALONE):
                parent = parent.parent
            if parent is paragraph:
                yield text


def link(doctree: nodes.document, found: dict[str, tuple[str, str]], page: str) -> int:
    """Link the first use of each entry; the answer: how many links there are now."""
    wanted, linked = pattern(list(found)), set()
    for text in texts(doctree):
        pieces: list[nodes.Node] = []
        end = 0
        for match in wanted.finditer(text):
            place, says = _entry(match[0], found)
            if place not in linked:
                linked.add(place)
                pieces.append(nodes.Text(text[end : match.start()]))
                target = f"{page}#{place}"
                pieces.append(
                    nodes.reference(
                        "",
                        match[0],
                        internal=True,
                        refuri=target,
                        reftitle=says,
                        classes=["mq-term"],
                    )
                )
                end = match.end()
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(text[end:])])
    return len(linked)


def _entry(used: str, found: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """The entry of a word as it is used: "Scales" is "scale"."""
    for word in (used, used.removesuffix("s")):
        for name in (word, word[0].lower() + word[1:]):
            if name in found:
                return found[name]
    raise KeyError(used)


def on_resolved(app, doctree: nodes.document, docname: str) -> None:
    if docname in WITHOUT or PAGE not in app.env.all_docs:
        return
    if not hasattr(app, "glossary"):  # all pages link to the same entries
        app.glossary = entries(app.env.get_doctree(PAGE))
    link(doctree, app.glossary, app.builder.get_relative_uri(docname, PAGE))


def setup(app):
    app.connect("doctree-resolved", on_resolved)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
