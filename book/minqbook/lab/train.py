"""python -m minqbook.lab.train: train the network of the lab, and write ``given.json``.

Three convolutions with batch norm and ReLU, and one that reads the whole picture, on the 8 x 8
digits that come with scikit-learn. Afterwards each channel is scaled by a factor of its own, which
the layer behind it undoes: the function stays, and the weights get as uneven as those of mobile
networks are by themselves. That is what the lab has to repair.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from minqbook.lab import EPSILON, FILE, GREYS
from minqbook.zoo.data import glyphs

SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning "
    "Repository, CC BY 4.0; as scikit-learn has it"
)
CHANNELS = (1, 8, 16, 24)
SPREAD = 3.0
"""The largest factor of a channel; 1 / SPREAD is the smallest."""


def network() -> nn.Sequential:
    """The network as PyTorch has it, with random weights."""
    parts: list[nn.Module] = []
    for k, (before, after) in enumerate(zip(CHANNELS, CHANNELS[1:], strict=False)):
        parts += [nn.Conv2d(before, after, 3, stride=1 + (k > 0), padding=1, bias=False),
                  nn.BatchNorm2d(after, eps=EPSILON), nn.ReLU()]  # fmt: skip
    return nn.Sequential(*parts, nn.Conv2d(CHANNELS[-1], 10, 2), nn.Flatten())


def batch(images: torch.Tensor) -> torch.Tensor:
    """Digits moved by up to a pixel, with a little noise: what is trained on."""
    shift = torch.randint(-1, 2, (2,)).tolist()
    return images.roll(shift, (2, 3)) + 0.05 * torch.randn_like(images)


def train(steps: int = 1500) -> nn.Sequential:
    """The network, trained."""
    torch.manual_seed(0)
    images, labels = glyphs("train")
    model = network()
    adam = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 2e-3 * (1 + math.cos(math.pi * step / steps))
        some = torch.randint(len(images), (128,))
        loss = F.cross_entropy(model(batch(images[some])), labels[some])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()


@torch.no_grad()
def spread(model: nn.Sequential) -> None:
    """Scale every channel by a factor of its own, and let the layer behind it undo that."""
    random = np.random.default_rng(7)
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
    for norm, reader in zip(norms, convolutions[1:], strict=True):
        size = torch.tensor(random.uniform(-1, 1, len(norm.weight)) * math.log(SPREAD))
        factor = size.exp().float()
        norm.weight *= factor
        norm.bias *= factor
        reader.weight /= factor[:, None, None]


def text(values: torch.Tensor) -> dict:
    """Float32 numbers, as JSON holds them."""
    data = values.detach().numpy().astype("<f4")
    return {"shape": list(data.shape), "data": base64.b64encode(data.tobytes()).decode()}


def pictures(split: str, count: int) -> dict:
    """Digits as letters, one for each pixel, and what they say."""
    images, labels = glyphs(split)
    random = np.random.default_rng(0)
    picked = np.sort(random.permutation(len(images))[:count])
    levels = (images[picked, 0] * 16).round().int().flatten(1).tolist()
    digits = "".join(str(int(v)) for v in labels[picked])
    return {"images": ["".join(GREYS[v] for v in row) for row in levels], "digits": digits}


def main() -> None:
    """Train and write."""
    model = train()
    spread(model)
    layers = []
    for part in model:
        if isinstance(part, nn.Conv2d):
            layers.append({"weight": text(part.weight), "stride": part.stride[0],
                           "padding": part.padding[0]})  # fmt: skip
            if part.bias is not None:
                layers[-1]["bias"] = text(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            norm = (part.weight, part.bias, part.running_mean, part.running_var)
            layers[-1]["norm"] = [text(v) for v in norm]
    found: dict[str, Any] = {"source": SOURCE, "layers": layers}
    found |= {"train": pictures("train", 500), "test": pictures("test", 400)}
    FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
