"""One string from a widget's script and all it imports, and one from its styles.

The scripts are plain ES modules that import each other (``import { linear } from
"./kit/scales.js";``), so a browser or Node can load and test them as they are. A widget must reach
the page as one string, and the page opens from a disk, without a server: so they are joined.
"""

from __future__ import annotations

import functools
import posixpath
import re
from pathlib import Path

HERE = Path(__file__).parent
_IMPORT = re.compile(r'^import\s*\{[^}]*\}\s*from\s*"(\.[\w./]+)";[ \t]*\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|const|let|class)", re.MULTILINE)
TOP_LEVEL = re.compile(
    r"^(?:export )?(?:async )?(?:function\*?|const|let|class) +(\w+)", re.MULTILINE
)
# What a browser does not read: indents, lines of comment, and empty lines.
_UNREAD = re.compile(r"^[ \t]*(?://.*\n|/\*\*(?:.|\n)*?\*/[ \t]*\n|\n)?", re.MULTILINE)


def read(name: str) -> str:
    """The text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def modules(name: str) -> list[str]:
    """The script ``name`` and all it imports, imported ones first.

    >>> modules("kit/question.js")
    ['kit/elements.js', 'kit/format.js', 'kit/question.js']
    """
    found: list[str] = []
    for other in _IMPORT.findall(read(name)):
        imported = posixpath.normpath(posixpath.join(posixpath.dirname(name), other))
        found += [m for m in modules(imported) if m not in found]
    return [*found, name]


@functools.cache
def bundle(name: str) -> str:
    """One ES module from the script ``name`` and all it imports.

    Imports, comments and indents fall away and only ``export default`` of the last script stays.
    All scripts share one scope.

    Raises:
        ValueError: for a name that two scripts declare, an import that renames (``as``), and any
            other form of import and export.
    """
    owner: dict[str, str] = {}
    parts = []
    for module in modules(name):
        source = read(module)
        for declared in TOP_LEVEL.findall(source):
            if owner.setdefault(declared, module) != module:
                raise ValueError(
                    f"{module} and {owner[declared]} both declare {declared}; rename one of them"
                )
        source = _EXPORT.sub("", _IMPORT.sub("", source))
        if left := re.search(r"^(?:import\b|export (?!default )).*", source, re.MULTILINE):
            raise ValueError(
                f"{module}: cannot bundle {left[0]!r}; "
                'use import { a, b } from "./file.js"; and export function / const'
            )
        if module != name and re.search(r"^export default", source, re.MULTILINE):
            raise ValueError(f"{module} has a default export, so it cannot be imported")
        parts.append(_UNREAD.sub("", source))
    return "".join(parts)


def style(name: str) -> str:
    """The style of the kit, and the widget's own ``name``.css where it has one."""
    own = f"{name}.css"
    return read("kit/kit.css") + (read(own) if (HERE / own).exists() else "")
