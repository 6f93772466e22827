"""The reader's own picture, read by real networks in FP32, INT8 and INT4 in the page."""

from __future__ import annotations

import json
from typing import Any

import traitlets

from minqbook.picture import STORED
from minqbook.widgets.base import Widget


class OwnPicture(Widget):
    """Choose, drop, take or draw a picture, and see what three forms of a network answer.

    The page runs the files that ``minqbook.picture`` makes, if it was built with onnxruntime-web;
    nothing is loaded before the reader asks for it, and no picture leaves the page. Until then, and
    in a page built without, it shows stored answers on pictures that stand ready.

    network: "resnet_basic" or "mobilenet_v2", which read digits, or "efficientnet_lite0", which
    knows the 1,000 classes of ImageNet. sample: which of the pictures is shown first, from 0.

    >>> OwnPicture(network="mobilenet_v2")
    OwnPicture(network='mobilenet_v2', sample=0)

    Raises ValueError for a sample that is not there, TraitError for another network.
    """

    stored = traitlets.Dict().tag(sync=True)
    network = traitlets.Enum(
        ["resnet_basic", "mobilenet_v2", "efficientnet_lite0"], "resnet_basic"
    ).tag(sync=True)
    sample = traitlets.Int(0).tag(sync=True)
    shown = ("network", "sample")

    def __init__(
        self,
        *,
        network: str = "resnet_basic",
        alt: str = "A picture and what a network answers, in FP32, INT8 and INT4 side by side: the "
        "likeliest classes, the size of each file, milliseconds, and the signal over the error "
        "between its layers.",
        **traits: Any,
    ) -> None:
        stored = json.loads(STORED.read_text("utf-8"))
        super().__init__(stored=stored, network=network, alt=alt, **traits)

    @traitlets.validate("sample")
    def _check_sample(self, proposal: Any) -> int:
        count = len(self.stored["networks"][self.network]["answers"])
        if not 0 <= proposal.value < count:
            raise ValueError(f"sample must be from 0 to {count - 1}, not {proposal.value}")
        return proposal.value
