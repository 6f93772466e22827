"""The files of the tables: one record a line, measured cell by cell, and never half written."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import minq
from minq._work import write_whole

_BESIDE = Path(__file__).parents[2] / "results"
RESULTS = _BESIDE if _BESIDE.is_dir() else Path("results")
"""The book's results; for an installed package, a folder "results" where it runs."""

Cell = dict[str, Any]


class Table(NamedTuple):
    """What is measured: the cells that there are, and what gives the numbers of one."""

    cells: Callable[[], Iterator[Cell]]
    measure: Callable[[Cell], dict[str, Any]]


def path_of(table: str) -> Path:
    """Where the results of a table are."""
    return RESULTS / f"{table}.json"


def read(path: Path) -> dict[str, Any]:
    """The file; without one, no records."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {"records": []}


def complete(
    path: Path,
    name: str,
    table: Table,
    limit: int | None = None,
    *,
    command: str = "",
    versions: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Measure the cells that a file does not have, and keep each as it comes.

    Args:
        path: the file; it need not be there yet.
        name: of the table, for the command that the file says it was made with.
        table: its cells, and how they are measured.
        limit: stop after so many cells.
        command: that the file says it was made with (default: this package, and ``name``).
        versions: of what else the numbers depend on.

    Returns:
        What is in the file then.
    """
    import torch  # only to measure: the page's Python reads what was measured

    result = read(path)
    keys = list(next(iter(table.cells())))
    done = {tuple(r[k] for k in keys) for r in result["records"]}
    todo = [c for c in table.cells() if tuple(c[k] for k in keys) not in done][:limit]
    for number, cell in enumerate(todo, 1):
        start = time.perf_counter()
        record = cell | table.measure(cell)
        print(f"{number}/{len(todo)} {time.perf_counter() - start:6.1f} s  {record}", flush=True)
        result["records"].append(record)
        result |= {
            "command": command or f"python -m minqbook.tables {name}",
            "versions": {"minq": minq.__version__, "torch": torch.__version__.partition("+")[0]}
            | (versions or {}),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "date": datetime.date.today().isoformat(),
        }
        write(path, result)
    return result


def write(path: Path, result: dict[str, Any]) -> None:
    """One record a line, and the file is replaced as a whole."""
    head = {k: v for k, v in result.items() if k != "records"}
    lines = ",\n  ".join(json.dumps(r) for r in result["records"])
    text = json.dumps(head, indent=1)[:-2] + f',\n "records": [\n  {lines}\n ]\n}}\n'
    write_whole(path, lambda part: part.write_text(text))
