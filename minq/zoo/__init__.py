"""Networks and data that the book runs on."""

from minq.zoo.pretrained import (
    STRIDE_2,
    efficientnet_lite0,
    efficientnet_lite0_weights,
    same_convolution,
)

__all__ = ["STRIDE_2", "efficientnet_lite0", "efficientnet_lite0_weights", "same_convolution"]
