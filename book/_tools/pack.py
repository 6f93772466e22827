"""Files as scripts: gzip in base64, in pieces, since a page on a disk can load nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
from pathlib import Path

PIECE = 3 * 2**18
"""Bytes of one script's piece; in base64, a megabyte."""


def pack(name: str, content: bytes, folder: Path) -> list:
    """Write ``name``.HASH.0.js, ``name``.HASH.1.js, ..., if they are not there.

    Returns:
        The hash, the number of scripts, the bytes of the content, and those of the scripts.
    """
    stem = f"{name}.{hashlib.sha256(content).hexdigest()[:12]}"
    first = folder / f"{stem}.0.js"  # written last
    if not first.exists():
        squeezed = gzip.compress(content, 9, mtime=0)
        pieces = [squeezed[at : at + PIECE] for at in range(0, len(squeezed), PIECE)]
        for number, piece in reversed(list(enumerate(pieces))):
            text = f'minqPart("{stem}",{number},"{base64.b64encode(piece).decode()}");\n'
            draft = folder / f"{stem}.draft"
            draft.write_text(text, "ascii")
            draft.replace(folder / f"{stem}.{number}.js")
    sizes = [path.stat().st_size for path in folder.glob(f"{stem}.*.js")]
    return [stem.rpartition(".")[2], len(sizes), len(content), sum(sizes)]
