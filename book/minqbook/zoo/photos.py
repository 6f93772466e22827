"""Real photos that scikit-learn and scikit-image ship, read as files: no import, no download."""

from __future__ import annotations

import functools
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Generator, Tensor

_PIP_NAME = {"sklearn": "scikit-learn", "skimage": "scikit-image"}

PHOTOS = (
    ("sklearn", "datasets/images", "china.jpg"),
    ("sklearn", "datasets/images", "flower.jpg"),
    ("skimage", "data", "astronaut.png"),
    ("skimage", "data", "chelsea.png"),
    ("skimage", "data", "coffee.png"),
    ("skimage", "data", "hubble_deep_field.jpg"),
    ("skimage", "data", "ihc.png"),
    ("skimage", "data", "motorcycle_left.png"),  # its right twin shows the same from a step aside
    ("skimage", "data", "retina.jpg"),
    ("skimage", "data", "rocket.jpg"),
)
"""Package, folder and file of each colour photo."""


def generator(seed: int, stream: str = "") -> Generator:
    """Random numbers that depend on the seed, and on the stream that they are drawn for."""
    import torch

    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be a whole number, not {seed!r}")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be from 0 to 2**31 - 1, not {seed}")
    # torch's generator looks at 32 bits of its seed, so both go into these.
    return torch.Generator().manual_seed(zlib.crc32(f"{stream} {seed}".encode()))


def folder(package: str, inside: str) -> Path:
    """A folder of an installed package that need not be imported for it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = _PIP_NAME.get(package, package)
        raise ImportError(f"{name} brings the pictures; install it with: pip install {name}")
    return Path(spec.submodule_search_locations[0], *inside.split("/"))


def read(path: Path, *, middle: float = 1.0, size: int | None = None) -> np.ndarray:
    """The pixels of a picture: (height, width, 3), uint8.

    With ``size``, its middle square, ``middle`` times its shorter side, resized to (size, size).
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"{error}; install it with: pip install pillow") from error
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.name} is not in this version of its package; "
            "try: pip install --upgrade scikit-learn scikit-image"
        ) from None
    if size:
        (w, h), side = image.size, round(middle * min(image.size))
        x, y = (w - side) // 2, (h - side) // 2
        image = image.crop((x, y, x + side, y + side)).resize((size, size), Image.BICUBIC)
    return np.array(image)


@functools.cache
def parts(cut: float, *, right: bool) -> list[Tensor]:
    """The left ``cut`` of every photo's width, or the rest of it: (3, height, width), uint8."""
    import torch

    pieces = []
    for package, inside, name in PHOTOS:
        photo = torch.from_numpy(read(folder(package, inside) / name)).permute(2, 0, 1)
        column = round(cut * photo.shape[2])
        pieces.append(photo[:, :, column:] if right else photo[:, :, :column])
    return pieces
