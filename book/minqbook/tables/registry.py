"""All tables that the book shows, by the names of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minqbook.chip import measure as chip
from minqbook.tables import full_size, hero, llm, minilm, table1, table2, training
from minqbook.tables.files import Table, complete, path_of

TABLES = {
    "fp32": Table(table1.fp32_cells, table1.fp32_cell),
    "ptq": Table(table1.ptq_cells, table1.ptq_cell),
    "hero": Table(hero.hero_cells, hero.hero_cell),
    "best": Table(hero.best_cells, hero.best_cell),
    "rates": Table(table2.rate_cells, table2.rate_cell),
    "qat": Table(table2.qat_cells, table2.qat_cell),
    "length": Table(training.length_cells, training.length_cell),
    "norm": Table(training.norm_cells, training.norm_cell),
    "start": Table(training.start_cells, training.start_cell),
    "rows": Table(full_size.cells, full_size.cell),
    "minilm": Table(minilm.cells, minilm.cell),
    "chip": Table(chip.cells, chip.cell),
    "llm": Table(llm.cells, llm.cell),
}


def measure(table: str, *, limit: int | None = None, path: Path | None = None) -> dict[str, Any]:
    """Measure what is missing of a table, at most ``limit`` cells; see ``files.complete``."""
    return complete(path or path_of(table), table, TABLES[table], limit)
