"""The eight small networks: their weights, their data, their accuracy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from minq import graph
from minq._checks import check_count
from minqbook.zoo import metrics, models
from minqbook.zoo.data import scenes
from minqbook.zoo.text import reviews

NAMES = tuple(models.BUILDERS)
"""resnet_basic, resnet_bottleneck, mobilenet_v2, inception, efficientnet_lite, segmenter, ..."""

METRICS = dict.fromkeys(NAMES, "top-1") | {"segmenter": "mIoU", "detector": "AP50"}
"""What ``evaluate`` measures for each, in percent."""

WEIGHTS = Path(__file__).parent / "weights"


def check_name(name: str) -> str:
    """``name`` if there is such a network."""
    if name not in NAMES:
        raise ValueError(f"there is no small network {name!r}; there are {', '.join(NAMES)}")
    return name


def load(name: str, path: str | Path | None = None) -> nn.Module:
    """A trained small network, in eval mode.

    path: another weights file than the one shipped. It is read as numbers only; nothing in it can
    run. Raises ValueError for an unknown name or a file that is damaged or not this network's,
    FileNotFoundError where there is none.

    >>> load("mobilenet_v2")(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    model = models.build(check_name(name))
    tensors, _ = _read(name, path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"the file does not hold the weights of {name}: {str(error).splitlines()[1].strip()}; "
            f"train it again with: python -m minqbook.zoo.train {name}"
        ) from None
    return model.eval()


def info(name: str, path: str | Path | None = None) -> dict[str, str]:
    """What the weights file says of itself: command, seed, epochs, versions, metric, accuracy."""
    return _read(check_name(name), path)[1]


def _read(name: str, path: str | Path | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"{error}; install it with: pip install safetensors") from error
    path = Path(path or WEIGHTS / f"{name}.safetensors")
    again = f"train it again with: python -m minqbook.zoo.train {name}"
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path.name}; {again}")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is damaged or no safetensors file ({error}); {again}"
        ) from None


def labelled(name: str, count: int, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and what to find in them: classes, masks (N, 48, 48) or boxes (N, 3, 5)."""
    if check_name(name) == "text_encoder":
        return reviews(count, split, seed)
    if name in ("segmenter", "detector"):
        images, _, masks, boxes = scenes(count, split, seed, size=48, digits=3)
        return images, masks if name == "segmenter" else boxes
    return scenes(count, split, seed)[:2]


def test_set(name: str, count: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and answers that the network has not seen; their digits, photos, sentences neither.

    >>> images, classes = test_set("inception", 10)
    >>> images.shape, classes.shape
    (torch.Size([10, 3, 32, 32]), torch.Size([10]))
    """
    return labelled(name, count, "test", seed)


setattr(test_set, "__test__", False)  # noqa: B010  a name that pytest would take for a test


def calibration_set(name: str, count: int = 256, seed: int = 0) -> Tensor:
    """Inputs without answers, from the digits, photos and sentences of training."""
    return labelled(name, count, "train", seed)[0]


def validation_set(name: str, count: int = 1000) -> tuple[Tensor, Tensor]:
    """Inputs and answers to choose settings by: new scenes of the digits and photos of training."""
    return labelled(name, count, "train", 2**30)


class TrainingBatches:
    """Labelled batches to train on, made when they are asked for: (inputs, answers).

    As many as ``count``, other ones for each ``seed``, and the same again in the next epoch.

    >>> batches = TrainingBatches("resnet_basic", count=2, batch=4)
    >>> len(batches), [tuple(x.shape) for x, _ in batches]
    (2, [(4, 3, 32, 32), (4, 3, 32, 32)])
    """

    def __init__(self, name: str, count: int, batch: int = 64, seed: int = 0) -> None:
        self.name, self.count = check_name(name), check_count(count, "count")
        self.batch, self.seed = check_count(batch, "batch"), seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        if not 0 <= k < self.count:
            raise IndexError(f"there are {self.count} batches, no number {k}")
        x, answers = labelled(self.name, self.batch, "train", 2**29 + self.seed * 2**20 + k)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)  # convolutions are faster
        return x, answers


@torch.no_grad()
def evaluate(
    model: nn.Module,
    name: str,
    data: tuple[Tensor, Tensor] | None = None,
    batch: int = 250,
) -> float:
    """``METRICS[name]`` in percent, of any model with that network's inputs and outputs.

    data: inputs and answers; the default is ``test_set(name)``. The model is used as it is, and on
    its device: put it into eval mode first.
    """
    check_name(name)
    inputs, answers = test_set(name) if data is None else data
    if len(inputs) != len(answers) or not len(inputs):
        raise ValueError(f"{len(inputs)} inputs and {len(answers)} answers; one answer for each")
    batches = inputs.split(check_count(batch, "batch"))
    if isinstance(model, nn.Module):
        batches = graph.to_device_of(model, batches)
    outputs = [tree_map_only(Tensor, Tensor.cpu, model(x)) for x in batches]
    if name == "segmenter":
        count = outputs[0].shape[1]
        pairs = zip(outputs, answers.split(batch), strict=True)
        return metrics.mean_iou(sum(metrics.confusion(y.argmax(1), t, count) for y, t in pairs))
    if name == "detector":
        found = torch.cat([metrics.detections(*y) for y in outputs])
        return metrics.average_precision(found, answers)
    return metrics.top1(torch.cat(outputs), answers)
