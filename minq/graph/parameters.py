"""Parameters by name, and where a network lies."""

from __future__ import annotations

from collections.abc import Container
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def get(gm: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or submodule of that dotted name."""
    path, _, leaf = name.rpartition(".")
    return getattr(gm.get_submodule(path), leaf)


def put(gm: nn.Module, name: str, value: Tensor, *, trained: bool | None = None) -> None:
    """Set the parameter or buffer of that dotted name, or make it; the old tensor stays as it was.

    Args:
        gm: the network, changed. Modules on the way to the name are made where they are missing.
        name: dotted, as ``"layer1.0.weight"``.
        value: copied.
        trained: whether to make a parameter (True) or a buffer (False). By default it becomes
            what it was before, and a parameter where there was nothing.
    """
    path, _, leaf = name.rpartition(".")
    module = gm
    for part in path.split(".") if path else ():
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    old = getattr(module, leaf, None)
    value = value.detach().clone()
    if trained is None and leaf in module._buffers:
        module._buffers[leaf] = value  # as persistent as it was
        return
    gradient = old.requires_grad if trained is None and isinstance(old, Tensor) else True
    trained = trained is not False and value.is_floating_point()
    for kind in (module._parameters, module._buffers, module.__dict__):  # or a plain "bias = None"
        kind.pop(leaf, None)
    if trained:
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=gradient))
    else:
        module.register_buffer(leaf, value)


def unused(gm: nn.Module, name: str) -> str:
    """The name itself, or with a number behind it where it is taken."""
    path, _, leaf = name.rpartition(".")
    numbered = (f"{path}_{k}.{leaf}" if path else f"{leaf}_{k}" for k in count(1))
    return next(n for n in chain([name], numbered) if not taken(gm, n))


def unused_in(names: Container[str], name: str) -> str:
    """The name itself, or with a number behind it where it is one of ``names``."""
    return next(n for n in chain([name], (f"{name}_{k}" for k in count(1))) if n not in names)


def taken(gm: nn.Module, name: str) -> bool:
    """Whether a module, a parameter, a buffer or a method has that name."""
    try:
        return get(gm, name) is not None
    except AttributeError:
        return False


def device_of(module: nn.Module) -> torch.device:
    """Where a network lies: its first parameter or buffer. Without any, the CPU."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def to_device_of(module: nn.Module, data: Any) -> Any:
    """All tensors in ``data``, on the device of the network."""
    device = device_of(module)
    quick = device.type == "cuda"  # on the way back, nothing would wait for the copy to be there
    return tree_map_only(Tensor, lambda t: t.to(device, non_blocking=quick), data)
