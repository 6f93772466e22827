"""The eight networks of the paper's tables, at full size, from the libraries where people get them.

    ROWS["resnet18"].build(None)           random weights, as alive as trained ones
    ROWS["resnet18"].build("pretrained")   the library's own weights, which it fetches
    ROWS["resnet18"].build(path)           a .pth or .safetensors file; for BERT, a folder

The table itself can be read without torch, as the page's Python does. Nothing about a network is
changed. Two rows are not what the paper ran: its DeepLabV3 has, as far as we know, a MobileNetV2
backbone, torchvision's has MobileNetV3-Large, the nearest there is; and EfficientDet gives class
and box scores of anchors, without the non-maximum suppression behind them, which is no part of the
network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Row:
    """One row of the tables: a network, what goes into it, and how it is judged.

    name, title: here and in the paper. package: where the network comes from. size: the side of a
    picture, or the length of a sentence. classes: of the library's own head. settings: of
    ``minq.ptq``, where this row needs others than the default ones.
    """

    name: str
    title: str
    task: str  # "classification", "segmentation", "detection" or "glue"
    package: str
    size: int
    classes: int
    make: Callable[..., nn.Module] = field(repr=False)  # (pretrained, classes, size)
    expects: Callable[[], dict[str, Any]] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(
        self,
        weights: str | Path | None = None,
        *,
        classes: int | None = None,
        size: int | None = None,
    ) -> nn.Module:
        """The library's network in evaluation mode.

        weights: None for random ones, always the same; "pretrained" for the library's; or a file,
            for BERT the folder that ``save_pretrained`` wrote. classes: of the head, where they
            differ. size: of the pictures, for EfficientDet's anchors.

        Raises ImportError where the library is missing, FileNotFoundError, and ValueError for a
        file that does not fit the network.
        """
        import torch

        classes, size = classes or self.classes, size or self.size
        if weights is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = self.make(False, classes, size)
                detects = self.task == "detection"  # its size is fixed
                example = self.example(2 if detects else 4, size if detects else min(size, 160))
                return settle(model, example)
        if weights == "pretrained":
            return self.make(True, classes, size).eval()
        path = Path(weights)
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}; give a file, or weights='pretrained'")
        if self.task == "glue":
            return self.make(path, classes, size).eval()
        model = self.make(False, classes, size)
        return load(model, path).eval()

    def example(self, batch: int = 2, size: int | None = None, seed: int = 0) -> Any:
        """Random inputs, as the network is called with them; the same seed gives the same.

        Pictures are noise with large and small structures, of mean 0 and variance 1. Sentences
        differ in length.
        """
        import torch
        from torch.nn import functional

        random, size = torch.Generator().manual_seed(seed), size or self.size
        if self.task == "glue":
            return _sentences(batch, size, random)
        x = torch.randn(batch, 3, size, size, generator=random)
        for side in (3, size // 16 + 2, size // 4 + 2):
            noise = torch.randn(batch, 3, side, side, generator=random)
            for picture, large in zip(x, noise, strict=True):
                picture += functional.interpolate(large[None], (size, size), mode="bilinear")[0]
        return x.div_(x.std())

    @property
    def preprocess(self) -> dict[str, Any]:
        """What the library says that inputs are: mean, std, resize, crop and interpolation.

        For BERT the name of the tokenizer, and the length that it cuts or fills to.
        """
        return self.expects()

    def loss(self, outputs: Any, target: Any) -> Tensor:
        """What training makes small: the library's own loss where it has one.

        outputs: of the network. target: class numbers (batch,) or, for regression with one class,
        real numbers; segmentation: class numbers (batch, height, width), 255 for none; detection:
        {"bbox": [(boxes, 4) as y0 x0 y1 x1, ...], "cls": [(boxes,) from 1, ...]}.
        """
        from torch.nn import functional

        if self.task == "detection":
            return detection_loss(outputs, target)
        if isinstance(outputs, Mapping):
            outputs = outputs["out" if self.task == "segmentation" else "logits"]
        if self.task == "glue" and outputs.shape[-1] == 1:
            return functional.mse_loss(outputs[:, 0], target.to(outputs))
        ignored = 255 if self.task == "segmentation" else -100
        return functional.cross_entropy(outputs, target, ignore_index=ignored)


def settle(model: nn.Module, x: Any) -> nn.Module:
    """Give every batch norm the statistics of what now reaches it; the model ends in eval mode.

    Weights drawn at random, with the statistics 0 and 1 that a new batch norm has, let activations
    die out or explode within a few layers. The mean 1 keeps most ReLUs open: with the mean 0 every
    layer would enlarge what rounding adds, which trained networks do not.
    """
    import torch
    from torch import nn

    norms = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.train().momentum = None  # so that they are those of this one call
        m.reset_running_stats()
        nn.init.ones_(m.bias)
    with torch.no_grad():
        model(**x) if isinstance(x, Mapping) else model(x)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    return model.eval()


def load(model: nn.Module, path: Path) -> nn.Module:
    """Load a .pth or .safetensors file, which is read as data only."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state.get("model", state))
        model.load_state_dict(state)
    except Exception as error:
        raise ValueError(
            f"{path} does not hold the weights of {type(model).__name__}: {str(error):.300}; "
            "give the library's own file, and classes= where its head differs"
        ) from error
    return model


def _sentences(batch: int, length: int, random: Generator) -> dict[str, Tensor]:
    """Words of BERT's vocabulary between its two marks, a second part, and room behind it."""
    import torch

    ids = torch.randint(1000, 30000, (batch, length), generator=random)
    ends = torch.randint(length // 2, length + 1, (batch,), generator=random)
    ends[0], place = length, torch.arange(length)
    ids[:, 0], mask = 101, place < ends[:, None]
    ids[place == ends[:, None] - 1] = 102
    second = (place >= ends[:, None] // 2) & mask
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.long(),
        "token_type_ids": second.long(),
    }


# --- The libraries --------------------------------------------------------------------------------


def library(name: str) -> Any:
    """A module of a package that only these rows need."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; pip install -r requirements-models.txt") from error


def _torchvision(name: str, weights: str = "IMAGENET1K_V1", **settings: Any) -> dict[str, Any]:
    """How torchvision makes a network, and what it expects."""

    def models() -> Any:
        return library("torchvision.models")

    def make(pretrained: bool, classes: int, size: int) -> nn.Module:
        given = models().get_model_weights(name)[weights] if pretrained else None
        rest = {} if given or "weights_backbone" not in settings else {"weights_backbone": None}
        own = {k: v for k, v in settings.items() if k != "weights_backbone" and not given}
        return models().get_model(name, weights=given, num_classes=classes, **rest, **own)

    def expects() -> dict[str, Any]:
        t = models().get_model_weights(name)[weights].transforms()
        crop = getattr(t, "crop_size", None)
        return _pixels(t.mean, t.std, t.resize_size[0], crop and crop[0], t.interpolation.value)

    return {"package": "torchvision", "make": make, "expects": expects}


def _timm(name: str) -> dict[str, Any]:
    def make(pretrained: bool, classes: int, size: int) -> nn.Module:
        return library("timm").create_model(name, pretrained=pretrained, num_classes=classes)

    def expects() -> dict[str, Any]:
        c = library("timm").get_pretrained_cfg(name)
        side = c.input_size[-1]
        return _pixels(c.mean, c.std, int(side / c.crop_pct), side, c.interpolation)

    return {"package": "timm", "make": make, "expects": expects}


def _effdet(name: str) -> dict[str, Any]:
    def make(pretrained: bool, classes: int, size: int) -> nn.Module:
        return library("effdet").create_model(
            name,
            pretrained=pretrained,
            pretrained_backbone=False,
            num_classes=classes,
            image_size=(size, size),
        )

    def expects() -> dict[str, Any]:
        size = library("effdet").get_efficientdet_config(name).image_size
        c = library("effdet.data.input_config").resolve_input_config({}, {"image_size": size})
        return _pixels(c["mean"], c["std"], c["input_size"][-1], None, c["interpolation"])

    return {"package": "effdet", "make": make, "expects": expects}


def _bert(name: str, length: int) -> dict[str, Any]:
    def make(source: bool | Path, classes: int, size: int) -> nn.Module:
        bert = library("transformers").BertForSequenceClassification
        if source:
            return bert.from_pretrained(name if source is True else source, num_labels=classes)
        # A new configuration is that of bert-base-uncased.
        return bert(library("transformers").BertConfig(num_labels=classes))

    def expects() -> dict[str, Any]:
        return {"tokenizer": name, "length": length}

    return {"package": "transformers", "make": make, "expects": expects}


def _pixels(mean, std, resize, crop, interpolation) -> dict[str, Any]:
    return {
        "mean": tuple(mean),
        "std": tuple(std),
        "resize": resize,
        "crop": crop,
        "interpolation": interpolation,
    }


def detection_loss(outputs: Any, target: Mapping[str, Any]) -> Tensor:
    """effdet's loss. The anchors are those of pictures that give outputs of this size."""
    import torch

    classes, boxes = outputs
    effdet, anchors = library("effdet"), library("effdet.anchors")
    config = effdet.get_efficientdet_config("tf_efficientdet_d1")
    config.image_size = tuple(side << config.min_level for side in classes[0].shape[-2:])
    grid = anchors.Anchors.from_config(config)
    config.num_classes = classes[0].shape[1] // (config.num_scales * len(config.aspect_ratios))
    labeler = anchors.AnchorLabeler(grid, config.num_classes, match_threshold=0.5)
    with torch.no_grad():
        labels = labeler.batch_label_anchors(target["bbox"], target["cls"])
    return library("effdet.loss").DetectionLoss(config)(classes, boxes, *labels)[0]


ROWS = {
    row.name: row
    for row in (
        Row("resnet18", "ResNet18", "classification", size=224, classes=1000,
            **_torchvision("resnet18")),
        Row("resnet50", "ResNet50", "classification", size=224, classes=1000,
            **_torchvision("resnet50")),
        Row("mobilenet_v2", "MobileNetV2", "classification", size=224, classes=1000,
            **_torchvision("mobilenet_v2")),
        Row("inception_v3", "InceptionV3", "classification", size=299, classes=1000,
            # as torchvision itself builds it for its weights
            **_torchvision("inception_v3", transform_input=True, init_weights=True)),
        Row("efficientnet_lite0", "EfficientNet lite", "classification", size=224, classes=1000,
            **_timm("efficientnet_lite0")),
        Row("deeplab_v3", "DeeplabV3", "segmentation", size=513, classes=21,
            **_torchvision("deeplabv3_mobilenet_v3_large", "COCO_WITH_VOC_LABELS_V1",
                           weights_backbone=None, aux_loss=True)),
        Row("efficientdet_d1", "EfficientDet-D1", "detection", size=640, classes=90,
            **_effdet("tf_efficientdet_d1")),
        Row("bert_base", "BERT-base", "glue", size=128, classes=2,
            **_bert("bert-base-uncased", 128)),
    )
}  # fmt: skip
"""The rows in the order of the paper's tables."""
