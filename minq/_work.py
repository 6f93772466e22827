"""Long work: files that are there as a whole or not at all, fingerprints, progress bars."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write beside ``path``, then move the finished file there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save(part)
    part.replace(path)


def fingerprint(values: Iterable[Any]) -> str:
    """16 letters that differ where a tensor or a word differs."""
    import torch

    digest = hashlib.sha256()
    for v in values:
        if isinstance(v, torch.Tensor):
            v = v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(v.data if isinstance(v, np.ndarray) else repr(v).encode())
    return digest.hexdigest()[:16]


class Bar:
    """A progress bar where one is wanted: by default on a terminal."""

    def __init__(self, total: int, unit: str, show: bool | None, done: int = 0) -> None:
        self.bar = None
        if sys.stderr.isatty() if show is None else show:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, unit=unit, initial=done)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, text: str) -> None:
        """One more is done; ``text`` stands behind the bar."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
