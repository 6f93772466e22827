"""The pictures that stand ready: digit scenes that no network was trained on, and photos."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np

from minqbook import zoo
from minqbook.picture.networks import NETWORKS
from minqbook.zoo import photos

COUNT, SCENES = 1500, (12, 824, 3, 826)
"""Of so many test scenes, these: two that are easy, and two on which INT4 errs."""

PHOTOS = (
    ("a cat", "skimage", "data", "chelsea.png"),
    ("a cup of coffee", "skimage", "data", "coffee.png"),
    ("a rocket", "skimage", "data", "rocket.jpg"),
    ("a flower", "sklearn", "datasets/images", "flower.jpg"),
)
"""What each shows, and where it is."""


class Sample(NamedTuple):
    alt: str
    pixels: np.ndarray  # (size, size, 3), uint8, as the network sees it


def samples(kind: str) -> list[Sample]:
    """The pictures for networks of a kind, "digit" or "photo"."""
    if kind == "digit":
        images, labels = zoo.test_set("resnet_basic", COUNT)
        pixels = np.moveaxis(np.rint(images.numpy() * 63.75 + 127.5).astype(np.uint8), 1, -1)
        return [Sample(f"a {labels[i]} on a photo", pixels[i]) for i in SCENES]
    network = NETWORKS["efficientnet_lite0"]
    return [
        Sample(
            alt,
            photos.read(
                photos.folder(package, inside) / file, middle=network.middle, size=network.size
            ),
        )
        for alt, package, inside, file in PHOTOS
    ]


def address(sample: Sample) -> str:
    """A small picture as a data address: exact for a digit, a thumbnail for a photo."""
    from PIL import Image

    picture, file = Image.fromarray(sample.pixels), io.BytesIO()
    if picture.width <= 32:
        picture.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(file, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
