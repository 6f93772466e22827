"""python -m minqbook.zoo.train NAME: train a small network and write its weights.

An interrupted training goes on where its last epoch ended, with the same result, bit for bit, as
one that was not: every batch is made from the seed and its number, and the learning rate follows
from that number.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

import minq
from minq._checks import check_count
from minq._work import write_whole
from minqbook.zoo import metrics, models, small

EPOCH = 160  # batches; each of them is new, so the name only says how often progress is kept


class Recipe(NamedTuple):
    """How a network is trained: AdamW, the rate rising for a tenth of the time, then a cosine."""

    epochs: int
    rate: float = 4e-3
    decay: float = 0.02
    batch: int = 128


RECIPES = {
    "resnet_basic": Recipe(30, batch=64),
    "resnet_bottleneck": Recipe(26, batch=64),
    "mobilenet_v2": Recipe(18),
    "inception": Recipe(36, batch=64),
    "efficientnet_lite": Recipe(16),
    "segmenter": Recipe(10, batch=64),
    "detector": Recipe(14, batch=64),
    "text_encoder": Recipe(32, rate=1e-3, batch=64),
}


def rate(step: int, steps: int, highest: float) -> float:
    """The learning rate of a step: from 0 up in a tenth of the steps, down to 0 by a cosine.

    >>> [round(rate(i, 100, 1.0), 2) for i in (0, 9, 54, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    warm = max(steps // 10, 1)
    if step < warm:
        return highest * (step + 1) / warm
    return highest * (1 + math.cos(math.pi * (step + 1 - warm) / (steps - warm))) / 2


def detection_loss(outputs: tuple[Tensor, Tensor], boxes: Tensor) -> Tensor:
    """Focal loss of the classes and, where a digit is, generalized-IoU loss of its box.

    boxes: (N, K, 5), class -1 for none. A point answers for the box nearest to it whose middle is
    within one stride, and whose longer side is under 17 pixels at stride 4, above at stride 8.
    """
    logits, distances = outputs
    centres, strides = metrics.points(48, models.Detector.STRIDES)
    middle = (boxes[..., :2] + boxes[..., 2:4]) / 2
    side = (boxes[..., 2:4] - boxes[..., :2]).amax(2)
    away = (centres[None, :, None] - middle[:, None]).abs().amax(3)  # (N, P, K)
    fits = (side < 17)[:, None] == (strides == models.Detector.STRIDES[0])[None]
    away[~(fits & (away < strides[None]) & (boxes[:, None, :, 4] >= 0))] = torch.inf
    nearest, which = away.min(2)
    target = boxes.gather(1, which[..., None].expand(-1, -1, 5))
    hit = nearest.isfinite()
    wanted = torch.zeros_like(logits)
    wanted[hit] = F.one_hot(target[hit][:, 4].long(), logits.shape[2]).float()
    answered = metrics.boxes_of(distances, centres, strides)
    loss = sigmoid_focal_loss(logits, wanted, alpha=-1, gamma=1.5, reduction="sum")
    loss = loss + generalized_box_iou_loss(answered[hit], target[hit][:, :4], reduction="sum")
    return loss / hit.sum().clamp(min=1)


def loss_of(name: str) -> Callable[..., Tensor]:
    """The function of outputs and answers that training makes small."""
    return detection_loss if name == "detector" else F.cross_entropy


class _Training:
    """A network while it trains: what its checkpoint keeps."""

    def __init__(self, recipe: Recipe, settings: dict[str, Any], checkpoint: Path) -> None:
        self.recipe, self.settings, self.checkpoint = recipe, settings, checkpoint
        with torch.random.fork_rng():
            torch.manual_seed(settings["seed"])
            model = models.build(settings["name"])
        self.model = model.to(memory_format=torch.channels_last)  # twice as fast
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=recipe.decay)
        self.loss = loss_of(settings["name"])
        self.step, self.seconds, self.since = 0, 0.0, time.monotonic()
        if checkpoint.is_file():
            self._resume(torch.load(checkpoint, weights_only=True))

    def _resume(self, kept: dict[str, Any]) -> None:
        if kept["settings"] != self.settings:
            raise ValueError(
                f"{self.checkpoint.name} belongs to another training ({kept['settings']}, not "
                f"{self.settings}); delete it, or write elsewhere with --out"
            )
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step, self.seconds = kept["step"], kept["seconds"]

    def keep(self) -> None:
        """Write the checkpoint, whole or not at all."""
        kept = {"settings": self.settings, "step": self.step, "seconds": self.elapsed}
        kept |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_whole(self.checkpoint, partial(torch.save, kept))

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.seconds + time.monotonic() - self.since

    def advance(self) -> float:
        """Take one step on the next batch, which the seed and its number make; gives the loss."""
        name, steps, batch = (self.settings[k] for k in ("name", "steps", "batch"))
        first = 2**20 * (self.settings["seed"] + 1) + self.step
        x, answers = small.labelled(name, batch, "train", first)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        loss = self.loss(self.model(x), answers)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, steps, self.recipe.rate)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()


def train(
    name: str,
    *,
    epochs: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    epoch_batches: int = EPOCH,
    batch: int | None = None,
    progress: bool = False,
    stop_after: int | None = None,
) -> nn.Module:
    """Train a small network, and write its weights with their accuracy.

    Args:
        name: one of ``minqbook.zoo.NAMES``.
        epochs: how long; by default as its recipe says.
        seed: draws the first weights and all data.
        out: the weights file; by default the one that ``minqbook.zoo.load`` reads. Beside it lies a
            checkpoint while training lasts; if one with the same settings is there, training goes
            on from it.
        epoch_batches: how often progress is kept.
        batch: samples in a step; by default as the recipe says.
        progress: show a bar.
        stop_after: leave after so many batches, as an interruption would.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: for an unknown name, a count below 1, and a checkpoint of another training.
        RuntimeError: if the loss is no longer a number.
    """
    recipe = RECIPES[small.check_name(name)]
    epochs = check_count(recipe.epochs if epochs is None else epochs, "epochs")
    steps = epochs * check_count(epoch_batches, "epoch_batches")
    out = Path(out or small.WEIGHTS / f"{name}.safetensors")
    batch = check_count(recipe.batch if batch is None else batch, "batch")
    settings = {"name": name, "seed": seed, "steps": steps, "batch": batch}
    training = _Training(recipe, settings, out.with_suffix(".checkpoint"))
    bar = _bar(training) if progress else None
    while training.step < steps:
        if training.step == stop_after:
            return training.model.eval()
        loss = training.advance()
        if bar:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if training.step % epoch_batches == 0:
            if not math.isfinite(loss):
                raise RuntimeError(f"the loss of {name} is {loss}; train with another seed")
            training.keep()
    if bar:
        bar.close()
    return _write(training, out, epochs)


def _bar(training: _Training) -> Any:
    from tqdm import tqdm

    name, steps = training.settings["name"], training.settings["steps"]
    return tqdm(total=steps, initial=training.step, desc=name, mininterval=5)


def _write(training: _Training, out: Path, epochs: int) -> nn.Module:
    """The weights, with what they are worth and how they were made, in place of the checkpoint."""
    from safetensors.torch import save

    name, seed, steps, batch = (training.settings[k] for k in ("name", "seed", "steps", "batch"))
    model = training.model.to(memory_format=torch.contiguous_format).eval()
    facts = {
        "network": name,
        "command": f"python -m minqbook.zoo.train {name} --epochs {epochs} --seed {seed}",
        "seed": str(seed),
        "epochs": str(epochs),
        "scenes": str(steps * batch),
        "metric": small.METRICS[name],
        "accuracy": f"{small.evaluate(model, name):.2f}",
        "minutes": f"{training.elapsed / 60:.1f}",
        "versions": f"minq {minq.__version__}, torch {torch.__version__}, "
        f"python {platform.python_version()}",
    }
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    write_whole(out, lambda path: path.write_bytes(save(tensors, facts)))
    training.checkpoint.unlink(missing_ok=True)
    return model


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m minqbook.zoo.train", description=__doc__)
    parser.add_argument("name", choices=small.NAMES)
    parser.add_argument("--epochs", type=int, help=f"of {EPOCH} batches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the processor; all by default")
    parser.add_argument("--out", type=Path, help="the weights file to write")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    out = {"epochs": chosen.epochs, "seed": chosen.seed, "out": chosen.out}
    train(chosen.name, progress=True, **out)
    path = chosen.out or small.WEIGHTS / f"{chosen.name}.safetensors"
    facts = small.info(chosen.name, path)
    print(f"{path.name}: {facts['metric']} {facts['accuracy']} % in {facts['minutes']} minutes")


if __name__ == "__main__":
    main()
