"""The functions of the steps before: yours from ``myquant.py``, the book's where that has none.

    from minqbook.lab.mine import quantize

So a step can be done, and marked, without all steps before it. ``whose()`` says what is yours.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from minqbook.lab import solutions
from minqbook.lab.kept import NAME

_own: dict[tuple[Path, float], ModuleType] = {}
"""What was read, by file and by when it was written; there before the file has run to its end."""


def _yours() -> ModuleType:
    path = Path(NAME).resolve()
    key = path, path.stat().st_mtime if path.exists() else 0.0
    if key not in _own:
        _own[key] = ModuleType("myquant")
        try:
            if path.exists():
                exec(compile(path.read_text("utf-8"), NAME, "exec"), _own[key].__dict__)
        except BaseException:
            del _own[key]
            raise
    return _own[key]


def __getattr__(name: str) -> Any:
    for module in (_yours(), solutions):
        if name in solutions.__all__ and hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"the lab has no function {name!r}; it has {', '.join(solutions.__all__)}")


def whose(*names: str) -> str:
    """Which functions are yours, and which the book's.

    >>> whose("quantize")
    "quantize: the book's"
    """
    yours = vars(_yours())
    groups: dict[str, list[str]] = {"yours": [], "the book's": []}
    for name in names:
        groups["yours" if name in yours else "the book's"].append(name)
    return "; ".join(f"{', '.join(found)}: {who}" for who, found in groups.items() if found)
