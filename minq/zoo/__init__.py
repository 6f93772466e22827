"""Networks and data that the book runs on."""

from minq.zoo.pretrained import efficientnet_lite0_weights

__all__ = ["efficientnet_lite0_weights"]
