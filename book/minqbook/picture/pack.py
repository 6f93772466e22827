"""Files as scripts: gzip in base64, in pieces, since a page on a disk can load nothing else."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

PIECE = 3 * 2**18
"""Bytes of one script's piece; in base64, a megabyte."""


def pack(name: str, content: bytes, folder: Path) -> list[int]:
    """Write ``name``.0.js, ``name``.1.js, ... for ``widgets/picture/parts.js``.

    Returns:
        The number of scripts, the bytes of the content, and those of its gzip.
    """
    squeezed = gzip.compress(content, 6, mtime=0)
    pieces = [squeezed[at : at + PIECE] for at in range(0, len(squeezed), PIECE)]
    for number, piece in enumerate(pieces):
        text = f'minqPart("{name}",{number},"{base64.b64encode(piece).decode()}");\n'
        (folder / f"{name}.{number}.js").write_text(text, "ascii")
    return [len(pieces), len(content), len(squeezed)]
