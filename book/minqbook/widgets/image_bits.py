"""A picture in fewer bits: what is kept, what is lost, and how many bytes it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minqbook.widgets.base import Widget, limited

MOST = 256 * 256 * 3  # bytes in the page
SUBJECTS = {"flower": "Photo of a flower", "china": "Photo of a temple", "digit": "A digit"}


def sample_image(name: str) -> np.ndarray:
    """A small real picture from scikit-learn: "flower", "china" (128, 128, 3) or "digit" (8, 8).

    uint8. The photos are cropped to a square and averaged over 3 x 3 pixels.
    """
    if name not in SUBJECTS:
        raise ValueError(f"image must be an array or one of {', '.join(SUBJECTS)}, not {name!r}")
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the picture {name!r} comes with scikit-learn; install it with: "
            "pip install scikit-learn pillow; or pass your own array"
        ) from error
    if name == "digit":
        return _as_uint8(datasets.load_digits().images[0] / 16)
    photo = datasets.load_sample_image(f"{name}.jpg").astype(float)  # (427, 640, 3)
    top, left = (photo.shape[0] - 384) // 2, (photo.shape[1] - 384) // 2
    square = photo[top : top + 384, left : left + 384]
    return np.rint(square.reshape(128, 3, 128, 3, 3).mean((1, 3))).astype(np.uint8)


class ImageBits(Widget):
    """Drag the bits from 8 to 1 and watch the picture, its error and its size.

    image: uint8 or float in [0, 1], (H, W) or (H, W, 3), at most 256 x 256 pixels in colour; or the
    name of a sample, "flower", "china" or "digit". bits: 1 to 8. channels: for each channel,
    whether it is quantized (the others stay at 8 bits). gain: 1, 4 or 16, how much the error is
    amplified. The grid is unsigned and covers 0 to 255.

    >>> ImageBits(np.eye(4), bits=2)
    ImageBits(bits=2, shape=[4, 4, 1], channels=[True])

    Raises TypeError or ValueError for other dtypes, shapes, sizes or values.
    """

    pixels = traitlets.Bytes().tag(sync=True)
    shape = traitlets.List(traitlets.Int()).tag(sync=True)
    bits = traitlets.Int(3).tag(sync=True)
    channels = traitlets.List(traitlets.Bool()).tag(sync=True)
    gain = traitlets.Enum([1, 4, 16], 4).tag(sync=True)
    subject = traitlets.Unicode("A picture").tag(sync=True)
    shown = ("bits", "shape", "channels")
    _limits = limited(bits=(1, 8, ", the bits of a pixel"))

    def __init__(
        self,
        image: Any = "flower",
        *,
        bits: int = 3,
        channels: Any = None,
        alt: str = "A picture, the same picture with fewer bits per value, and the error; a slider "
        "sets the bits.",
        **traits: Any,
    ) -> None:
        if isinstance(image, str):
            traits = {"subject": SUBJECTS.get(image, image), **traits}
            image = sample_image(image)
        self.image = _as_uint8(image)
        shape = [*self.image.shape, 1][:3]
        if channels is None:
            channels = [True] * shape[2]
        if len(channels) != shape[2]:
            raise ValueError(
                f"channels needs {shape[2]} times True or False, one a channel, not {channels!r}"
            )
        super().__init__(
            pixels=self.image.tobytes(),
            shape=shape,
            bits=bits,
            channels=list(channels),
            alt=alt,
            **traits,
        )


def _as_uint8(image: Any) -> np.ndarray:
    """(H, W) or (H, W, 3) as uint8; floats must lie in [0, 1]."""
    if hasattr(image, "detach"):  # a torch tensor
        image = image.detach().cpu().numpy()
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(
            f"image must be (height, width) or (height, width, 3), not {image.shape}; "
            "move channels to the end with np.moveaxis(image, 0, -1)"
        )
    if image.size == 0:
        raise ValueError(f"image is empty, shape {image.shape}; at least one pixel is needed")
    if image.size > MOST:
        raise ValueError(
            f"image has {image.size:,} values, at most {MOST:,} travel with the page; "
            "shrink it, e.g. image[::2, ::2]"
        )
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"image must be uint8 or floats in [0, 1], not {image.dtype}")
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            "a float image must lie in [0, 1] without NaN; scale it first, e.g. image / image.max()"
        )
    return np.rint(image * 255).astype(np.uint8)
