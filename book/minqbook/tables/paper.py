"""What the paper reports: one copy of its numbers, for the chapters and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def paper_tables() -> dict[str, Any]:
    """Tables 6 ("ptq") and 10 ("qat") of the paper, and the metric of each row.

    >>> paper_tables()["ptq"]["ResNet18"]["per-tensor"]["W8A8"]
    69.6
    """
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def paper_cell(title: str, table: str, bits: str, per_channel: bool) -> float | None:
    """One number of the paper, None where it has none. FP32 stands in both tables.

    >>> paper_cell("ResNet18", "qat", "W4A4", True), paper_cell("ResNet18", "fp32", "FP32", False)
    (68.83, 69.68)
    """
    row = paper_tables()["ptq" if table == "fp32" else table].get(title, {})
    return row.get("per-channel" if per_channel else "per-tensor", {}).get(bits, row.get(bits))
