"""What the project's texts say, and the code in them."""

import re
import textwrap

from nbformat import read

SEEN = {"", "python", "sh", "text", "bash", "js"}


def prose(path):
    """What a reader reads: a file's text, or that of a notebook's cells that are no code."""
    if path.suffix == ".md":
        return path.read_text("utf-8")
    cells = read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def blocks(path, *languages):
    """The fenced blocks of these languages, without their indent."""
    fence = re.compile(r"^( *)(`{3,})([^\s`]*)[^\n]*\n(.*?)^ *\2 *$", re.S | re.M)
    found = [(m[3], textwrap.dedent(m[4])) for m in fence.finditer(prose(path))]
    # A directive of the book holds text, and may hold blocks of its own.
    inner = [
        (m[3], textwrap.dedent(m[4]))
        for kind, body in found
        if kind.startswith("{")
        for m in fence.finditer(body)
    ]
    found += inner
    assert all(kind in SEEN or kind.startswith("{") for kind, _ in found), path
    return [body for kind, body in found if kind in languages]
