"""A file that keeps the rounded layers, so that a stopped run goes on from there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from minq._work import fingerprint, write_whole
from minq.ptq.rounding import Rounding
from minq.quantizer import Quantizer
from minq.simulate import quantizers


class Store:
    """Rounded layers by name, in a file that is only ever replaced as a whole, or in none.

    Raises:
        ValueError: the file is of another network, other data or other settings.
    """

    def __init__(
        self,
        path: str | Path | None,
        gm: fx.GraphModule,
        batches: Iterable[Iterable[Any]],
        rounding: Rounding,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.layers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        if self.path is None:
            return
        self.settings = {
            "rounding": repr(rounding),
            "network": fingerprint(gm.state_dict().values()),
            "quantizers": fingerprint(map(_settings_of, quantizers(gm).values())),
            "data": fingerprint(v for batch in batches for v in batch),
        }
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            if state.get("settings") != self.settings:
                raise ValueError(
                    f"{self.path} was made with {state.get('settings')}, now asked for "
                    f"{self.settings}; give another file, or the same settings"
                )
            self.layers = state["layers"]

    def get(self, name: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """A weight on its grid, and the ends of its range."""
        return self.layers.get(name)

    def put(self, name: str, value: tuple[Tensor, Tensor, Tensor]) -> None:
        self.layers[name] = value
        if self.path is not None:
            state = {"settings": self.settings, "layers": self.layers}
            write_whole(self.path, lambda part: torch.save(state, part))


def _settings_of(quantizer: Quantizer) -> str:
    return f"{quantizer} {quantizer.estimator}"
