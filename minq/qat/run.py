"""Where a training stands: which batch comes next, in how many processes, and a file to go on from.

A training that was stopped and goes on must end with the same bits as one that was not. So the
file keeps, besides network and optimizer, all random numbers: those that the epoch began with, to
draw its batches in the same order again, and those of the moment.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from torch import distributed, fx, nn

from minq._checks import check_count
from minq._work import fingerprint, write_whole
from minq.qat import batchnorm


@dataclass(frozen=True)
class Checkpoint:
    """A file that keeps all there is to keep of a training, so that it can go on from there.

    Args:
        path: of the file.
        every: it is written after so many steps, and at every epoch's end.
    """

    path: str | Path
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            check_count(self.every, "every")


class Run:
    """Where a training stands: the step, and the random numbers that its epoch began with."""

    def __init__(self, gm, optimizer, loader, steps, checkpoint) -> None:
        self.gm, self.optimizer, self.loader = gm, optimizer, loader
        if isinstance(checkpoint, str | Path):
            checkpoint = Checkpoint(checkpoint)
        if not isinstance(checkpoint, Checkpoint | None):
            raise TypeError(f"checkpoint must be a path, or a Checkpoint(), not {checkpoint!r}")
        self.path = None if checkpoint is None else Path(checkpoint.path)
        self.every = steps if checkpoint is None else checkpoint.every or steps
        self.step, self.length = 0, len(loader)
        self.epoch_random: Any = None
        self.random: Any = None
        start = fingerprint(v for pair in gm.state_dict().items() for v in pair)
        self.settings = {"start": start, "optimizer": repr(optimizer), "steps": steps}
        if self.path is not None and self.path.exists():
            self._load()

    def _load(self) -> None:
        try:
            state = torch.load(self.path, weights_only=True)
            settings = state["settings"]
        except (RuntimeError, EOFError, UnpicklingError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is damaged or no checkpoint of a training ({error!r:.80}); "
                "delete it, or give another file"
            ) from None
        if settings != self.settings or len(state["random"]) != world_size():
            raise ValueError(
                f"{self.path} belongs to another training (its start, its optimizer, its number of "
                "steps or of processes differ); delete it, or give another file"
            )
        self.gm.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.epoch_random, self.random = state["random"][rank()]

    def batches(self, epochs: int) -> Iterator[Any]:
        """Those that are left. Those of a begun epoch are drawn again, and passed over."""
        while self.step < epochs * self.length:
            epoch, skip = divmod(self.step, self.length)
            if set_epoch := getattr(getattr(self.loader, "sampler", None), "set_epoch", None):
                set_epoch(epoch)
            if self.random is not None:
                _set_random_state(self.epoch_random if skip else self.random, self.loader)
            if not skip:
                self.epoch_random = _random_state(self.loader)
            batches = iter(self.loader)
            given = sum(1 for _ in islice(batches, skip))
            if skip:  # what the steps drew between these batches is drawn already
                _set_random_state(self.random, self.loader)
            self.random = None
            for batch in batches:
                given += 1
                yield batch
            if given != self.length:
                raise RuntimeError(f"the loader said {self.length} batches and gave {given}")
            self._keep()  # only now: a loader may draw random numbers when it ends

    def done(self) -> None:
        """One more step; keep it where it is time to."""
        self.step += 1
        if self.step % self.every == 0 and self.step % self.length:
            self._keep()

    def _keep(self) -> None:
        if self.path is None:
            return
        state = {
            "settings": self.settings,
            "step": self.step,
            "network": self.gm.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": from_all((self.epoch_random, _random_state(self.loader))),
        }
        if rank() == 0:
            write_whole(self.path, lambda part: torch.save(state, part))


# --- Random numbers -------------------------------------------------------------------------------


def _random_state(loader: Any) -> dict[str, Any]:
    """Where all random numbers stand that a loader or a loss may draw."""
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    state = {
        "torch": torch.get_rng_state(),
        "python": repr(random.getstate()),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    for name, generator in _generators(loader).items():
        state[name] = generator.get_state()
    return state


def _set_random_state(state: Mapping[str, Any], loader: Any) -> None:
    kind, keys, *rest = state["numpy"]
    torch.set_rng_state(state["torch"])
    random.setstate(ast.literal_eval(state["python"]))
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    for name, generator in _generators(loader).items():
        generator.set_state(state[name])


def _generators(loader: Any) -> dict[str, torch.Generator]:
    """The generators of a DataLoader and its sampler."""
    found = {
        "loader": getattr(loader, "generator", None),
        "sampler": getattr(getattr(loader, "sampler", None), "generator", None),
    }
    return {name: g for name, g in found.items() if isinstance(g, torch.Generator)}


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """What is drawn inside does not change what is drawn afterwards."""
    state = _random_state(None)
    try:
        yield
    finally:
        _set_random_state(state, None)


# --- Many processes -------------------------------------------------------------------------------


def rank() -> int:
    """Which of the processes this is."""
    return distributed.get_rank() if together() else 0


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if together() else 1


def together() -> bool:
    """Whether there is a process group, as ``torchrun`` makes one."""
    return distributed.is_available() and distributed.is_initialized()


def share_gradients(gm: fx.GraphModule) -> nn.Module:
    """The network itself, or one that shares gradients with those of the other processes."""
    if world_size() == 1:
        return gm
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(gm)  # which first copies all tensors of the first process


def average_statistics(gm: fx.GraphModule) -> None:
    """Let all processes fold the same batch norms."""
    if together():
        for m in batchnorm.batch_norms(gm).values():
            for v in (m.running_mean, m.running_var):
                distributed.all_reduce(v)
                v /= world_size()


def from_all(state: Any) -> list[Any]:
    """What each process has, in all of them."""
    states = [state]
    if together():
        states *= world_size()
        distributed.all_gather_object(states, state)
    return states
