"""Packages whose modules and names load on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def lazily(
    package: str, home: dict[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    home: {module: "the names that it gives to the package"}. A module of a subpackage, "ptq.debug",
    only gives names.
    """
    module_of = {name: module for module, names in home.items() for name in names.split()}
    names = [*(module for module in home if "." not in module), *module_of]

    def load(name: str) -> Any:
        if name in home:
            return import_module(f"{package}.{name}")
        if name in module_of:
            return getattr(import_module(f"{package}.{module_of[name]}"), name)
        raise AttributeError(f"{package} has no {name!r}; it has {', '.join(names)}")

    return names, load, lambda: sorted([*vars(sys.modules[package]), *names])


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Let ``package(...)`` be ``function(...)``: ``minq.ptq`` is a function that has modules.

    A function beside a package of its name would be overwritten by whoever imports the package.
    """
    kind = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})
    sys.modules[package].__class__ = kind
