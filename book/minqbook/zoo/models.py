"""Small networks, one for each family of the paper's tables, and EfficientNet-Lite at any size.

Every one is an ordinary ``nn.Module`` with batch norm still unfolded (the text encoder has layer
norm instead), knows nothing of quantization, and lets ``torch.export`` capture it with a batch size
that stays free.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minqbook.zoo import text


class SamePad(nn.Module):
    """TensorFlow's "same" padding for a convolution with stride: ceil(size / stride) outputs.

    x: (B, C, H, W). Where the padding is odd, the right and the bottom get one zero more.

    >>> SamePad(kernel=3, stride=2)(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 9, 9])
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            p = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
            pads += [p // 2, p - p // 2]
        return F.pad(x, pads)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}"


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, activation: (B, c_in, H, W) to (B, c_out, H', W').

    Padding keeps ceil(H / stride): the convolution's own (kernel - 1) / 2 on each side, or
    TensorFlow's where ``same`` is set and the stride makes a difference.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        same: bool = False,
        eps: float = 1e-5,
    ) -> None:
        same = same and stride > 1
        padding = 0 if same else dilation * (kernel - 1) // 2
        conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=False)
        layers = [SamePad(kernel, stride)] if same else []
        layers += [conv, nn.BatchNorm2d(c_out, eps)]
        super().__init__(*layers, *([activation()] if activation else []))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen by 1x1, filter each channel, narrow by 1x1 without activation.

    The input is added where it has the output's shape.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        expand: int = 6,
        dilation: int = 1,
        **norm,
    ) -> None:
        super().__init__()
        wide, relu6 = c_in * expand, nn.ReLU6
        if expand != 1:
            self.expand = ConvNorm(c_in, wide, 1, activation=relu6, **norm)
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide, activation=relu6, **norm)
        self.project = ConvNorm(wide, c_out, 1, activation=None, **norm)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x) if hasattr(self, "expand") else x
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class Stage(NamedTuple):
    """``repeat`` inverted residuals; the first has the stride and the change of width."""

    channels: int
    repeat: int
    stride: int = 1
    kernel: int = 3
    expand: int = 6


def inverted_residuals(c_in: int, stages: tuple[Stage, ...], **norm) -> tuple[nn.Sequential, int]:
    """The blocks of all stages in a row, and the number of channels they end with."""
    blocks = []
    for channels, repeat, stride, kernel, expand in stages:
        for i in range(repeat):
            step = 1 if i else stride
            blocks.append(InvertedResidual(c_in, channels, kernel, step, expand=expand, **norm))
            c_in = channels
    return nn.Sequential(*blocks), c_in


LITE0 = (
    Stage(16, 1, expand=1),
    Stage(24, 2, stride=2),
    Stage(40, 2, stride=2, kernel=5),
    Stage(80, 3, stride=2),
    Stage(112, 3, kernel=5),
    Stage(192, 4, stride=2, kernel=5),
    Stage(320, 1),
)
"""The seven stages of EfficientNet-Lite0."""


class EfficientNetLite(nn.Module):
    """EfficientNet without squeeze-and-excite, ReLU6 for swish: (B, 3, H, W) to (B, classes).

    The defaults are EfficientNet-Lite0 (4.65 M parameters, 224x224 pictures). Padding is
    TensorFlow's and epsilon is 1e-3, as its weights were trained with.

    >>> net = EfficientNetLite()
    >>> sum(p.numel() for p in net.parameters())
    4652008
    """

    def __init__(
        self,
        stem: int = 32,
        stages: tuple[Stage, ...] = LITE0,
        head: int = 1280,
        classes: int = 1000,
        *,
        stem_stride: int = 2,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        norm: dict[str, Any] = {"same": True, "eps": eps}
        self.stem = ConvNorm(3, stem, 3, stem_stride, activation=nn.ReLU6, **norm)
        self.blocks, width = inverted_residuals(stem, stages, **norm)
        self.head = ConvNorm(width, head, 1, activation=nn.ReLU6, **norm)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(x.mean((2, 3)))


class ResNet(nn.Module):
    """A residual network, basic or bottleneck blocks: (B, 3, 32, 32) to (B, classes).

    widths: of the 3x3 convolutions of each stage, which halves the picture but for the first.
    """

    def __init__(
        self, *, bottleneck: bool, widths: tuple[int, ...], repeat: int = 2, classes: int = 10
    ) -> None:
        super().__init__()
        block, growth = (Bottleneck, 4) if bottleneck else (BasicBlock, 1)
        c_in = widths[0]
        self.stem = ConvNorm(3, c_in, 3, 2)
        blocks = []
        for i, width in enumerate(widths):
            for j in range(repeat):
                blocks.append(block(c_in, width, 2 if i and not j else 1))
                c_in = width * growth
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(c_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


class _Residual(nn.Module):
    """relu(body(x) + shortcut(x)); the shortcut is x itself, or a 1x1 convolution to its shape."""

    def __init__(self, body: nn.Module, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and c_in == c_out
        self.body = body
        self.shortcut = nn.Identity() if same else ConvNorm(c_in, c_out, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class BasicBlock(_Residual):
    """Two 3x3 convolutions, as in ResNet18."""

    def __init__(self, c_in: int, width: int, stride: int = 1) -> None:
        body = nn.Sequential(
            ConvNorm(c_in, width, 3, stride), ConvNorm(width, width, 3, activation=None)
        )
        super().__init__(body, c_in, width, stride)


class Bottleneck(_Residual):
    """1x1, 3x3, 1x1 to four times the width, as in ResNet50."""

    def __init__(self, c_in: int, width: int, stride: int = 1) -> None:
        body = nn.Sequential(
            ConvNorm(c_in, width, 1),
            ConvNorm(width, width, 3, stride),
            ConvNorm(width, 4 * width, 1, activation=None),
        )
        super().__init__(body, c_in, 4 * width, stride)


class MobileNetV2(nn.Module):
    """Inverted residuals between a 3x3 stem and a 1x1 head: (B, 3, 32, 32) to (B, classes)."""

    def __init__(
        self, stem: int, stages: tuple[Stage, ...], head: int = 192, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(3, stem, 3, 2, activation=nn.ReLU6)
        self.blocks, width = inverted_residuals(stem, stages)
        self.head = ConvNorm(width, head, 1, activation=nn.ReLU6)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))


class InceptionBlock(nn.Module):
    """Four ways side by side, concatenated: 1x1; 3x3; 3x3 twice; average pool. 4 * width out."""

    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        eps = 1e-3
        narrow = 2 * width // 3
        self.one = ConvNorm(c_in, width, 1, eps=eps)
        self.three = nn.Sequential(
            ConvNorm(c_in, narrow, 1, eps=eps), ConvNorm(narrow, width, 3, eps=eps)
        )
        self.twice = nn.Sequential(
            ConvNorm(c_in, narrow, 1, eps=eps),
            ConvNorm(narrow, narrow, 3, eps=eps),
            ConvNorm(narrow, width, 3, eps=eps),
        )
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNorm(c_in, width, 1, eps=eps))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.twice(x), self.pool(x)], 1)


class Inception(nn.Module):
    """Inception blocks with max-pooling between them: (B, 3, 32, 32) to (B, classes)."""

    def __init__(self, stem: int, widths: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, stem, 3, 2, eps=1e-3), ConvNorm(stem, 2 * stem, 3, eps=1e-3)
        )
        c_in, blocks = 2 * stem, []
        for width in widths:
            blocks += [nn.MaxPool2d(3, 2, 1), InceptionBlock(c_in, width)]
            blocks += [InceptionBlock(4 * width, width)]
            c_in = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(c_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


class Segmenter(nn.Module):
    """DeepLab-like: (B, 3, 48, 48) to logits (B, classes, 48, 48).

    A MobileNetV2 whose last blocks are dilated instead of strided; parallel dilated depthwise
    convolutions and the picture's mean (atrous spatial pyramid); the finer features of an early
    block joined in; bilinear upsampling.
    """

    def __init__(self, pyramid: int = 32, classes: int = 11) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, 2, activation=nn.ReLU6)
        self.early, c = inverted_residuals(16, (Stage(16, 1, expand=1),))
        self.middle, c = inverted_residuals(
            c, (Stage(24, 2, stride=2, expand=4), Stage(32, 2, expand=4))
        )
        self.late = nn.Sequential(*(InvertedResidual(c, c, expand=4, dilation=2) for _ in range(2)))
        self.branches = nn.ModuleList(
            [
                ConvNorm(c, pyramid, 1),
                *(
                    nn.Sequential(ConvNorm(c, c, 3, groups=c, dilation=d), ConvNorm(c, pyramid, 1))
                    for d in (2, 4, 6)
                ),
            ]
        )
        self.mean = ConvNorm(c, pyramid, 1)
        self.join = ConvNorm(5 * pyramid, pyramid, 1)
        self.fine = ConvNorm(16, 16, 1)
        self.refine = nn.Sequential(
            ConvNorm(pyramid + 16, pyramid + 16, 3, groups=pyramid + 16),
            ConvNorm(pyramid + 16, pyramid, 1),
        )
        self.classifier = nn.Conv2d(pyramid, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(self.stem(x))
        y = self.late(self.middle(early))
        mean = self.mean(y.mean((2, 3), keepdim=True)).expand(-1, -1, y.shape[2], y.shape[3])
        y = self.join(torch.cat([*(branch(y) for branch in self.branches), mean], 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = self.refine(torch.cat([y, self.fine(early)], 1))
        return F.interpolate(
            self.classifier(y), scale_factor=2, mode="bilinear", align_corners=False
        )


class _Separable(nn.Sequential):
    """3x3 depthwise, then 1x1: EfficientDet's convolution."""

    def __init__(self, width: int) -> None:
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        super().__init__(depthwise, ConvNorm(width, width, 1, activation=nn.ReLU6))


class Detector(nn.Module):
    """EfficientDet-like, without anchors: (B, 3, 48, 48) to class logits and distances.

    A backbone, features at strides 4, 8 and 16 that are joined from coarse to fine and back
    (BiFPN), and heads at strides 4 and 8. Each of their 12 * 12 + 6 * 6 = 180 points answers

    class logits (B, 180, classes), one sigmoid each
    distances (B, 180, 4) from the point to the box's left, top, right, bottom, in strides, >= 0
    """

    STRIDES = (4, 8)

    def __init__(self, width: int = 48, classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, 2, activation=nn.ReLU6)
        self.fine, c4 = inverted_residuals(16, (Stage(12, 1, expand=1), Stage(24, 2, stride=2)))
        self.middle, c8 = inverted_residuals(c4, (Stage(40, 2, stride=2),))
        self.coarse, c16 = inverted_residuals(c8, (Stage(56, 1, stride=2),))
        self.narrow = nn.ModuleList(ConvNorm(c, width, 1, activation=None) for c in (c4, c8, c16))
        self.down8, self.down4 = _Separable(width), _Separable(width)  # coarse to fine
        self.up8 = _Separable(width)  # and back
        self.heads = nn.ModuleList(
            nn.Sequential(_Separable(width), _Separable(width)) for _ in "48"
        )
        self.classes = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in "48")
        self.distances = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in "48")
        for conv in self.classes:
            nn.init.constant_(conv.bias, -4.0)  # most points see no digit
        for conv in self.distances:
            nn.init.constant_(conv.bias, 2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        p4, p8, p16 = (f(x) for f, x in zip(self.narrow, (fine, middle, coarse), strict=True))
        mid = self.down8(p8 + F.interpolate(p16, scale_factor=2, mode="nearest"))
        p4 = self.down4(p4 + F.interpolate(mid, scale_factor=2, mode="nearest"))
        p8 = self.up8(p8 + mid + F.max_pool2d(p4, 3, 2, 1))
        features = [head(p) for head, p in zip(self.heads, (p4, p8), strict=True)]
        logits = [conv(f) for conv, f in zip(self.classes, features, strict=True)]
        distances = [F.relu(conv(f)) for conv, f in zip(self.distances, features, strict=True)]
        return (
            torch.cat([y.flatten(2) for y in logits], 2).transpose(1, 2),
            torch.cat([y.flatten(2) for y in distances], 2).transpose(1, 2),
        )


class Attention(nn.Module):
    """Multi-head self-attention, written out: (B, T, width) to the same.

    hidden: (B, T), true for tokens that no token looks at, such as padding.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in "qkvo")
        # A word first looks for the same word elsewhere; training takes it from there, much sooner.
        self.key.load_state_dict(self.query.state_dict())

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        q, k, v = (
            f(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        weights = torch.softmax(scores, 3)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """BERT's layer: attention and a two-layer perceptron, each added, then layer norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.attention(x, hidden))
        return self.norm2(x + self.mlp(x))


class TextEncoder(nn.Module):
    """BERT-like: tokens (B, T <= length), int64, to logits (B, classes).

    The first token's last state goes through a tanh layer ("pooler") to the classifier. Padding is
    an ordinary token.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 3,
        hidden: int = 192,
        classes: int = 4,
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden) for _ in range(layers)))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.layers(self.norm(self.words(tokens) + self.positions(places)))
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


_MOBILE = (
    Stage(12, 1, expand=1),
    Stage(16, 2, stride=1, expand=4),
    Stage(24, 3, stride=2),
    Stage(40, 3, stride=2),
)
_LITE = (
    Stage(12, 1, expand=1),
    Stage(20, 2, stride=2),
    Stage(32, 2, kernel=5),
    Stage(48, 3, stride=2, kernel=5),
)


BUILDERS = {
    "resnet_basic": lambda: ResNet(bottleneck=False, widths=(16, 32, 64)),
    "resnet_bottleneck": lambda: ResNet(bottleneck=True, widths=(12, 24, 48)),
    "mobilenet_v2": lambda: MobileNetV2(16, _MOBILE),
    "inception": lambda: Inception(16, (16, 32)),
    "efficientnet_lite": lambda: EfficientNetLite(16, _LITE, head=160, classes=10),
    "segmenter": Segmenter,
    "detector": Detector,
    "text_encoder": lambda: TextEncoder(len(text.VOCABULARY), text.LENGTH),
}
"""The eight small networks."""


def build(name: str) -> nn.Module:
    """A small network by its name, with random weights, in training mode."""
    if name not in BUILDERS:
        raise ValueError(f"there is no network {name!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[name]()
