"""A file that keeps the rounded layers, so that a stopped run goes on from there.

It only ever grows: first the settings, then each layer as it is done, so that writing the last of
many layers costs no more than the first. A layer that was being written when the run was stopped is
cut off. Nothing of it stays in memory.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from minq._work import fingerprint
from minq.ptq.rounding import Rounding
from minq.quantizer import Quantizer
from minq.simulate import quantizers

_SIZE = 8
"""Bytes in front of each record that say how long it is."""


class Store:
    """Rounded layers by name, in a file or in none.

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
        self.places: dict[str, int] = {}  # where the record of a layer begins
        if self.path is None:
            return
        settings = {
            "rounding": repr(rounding),
            "network": fingerprint(gm.state_dict().values()),
            "quantizers": fingerprint(map(_settings_of, quantizers(gm).values())),
            "data": fingerprint(v for batch in batches for v in batch),
        }
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(settings)
            return
        made_with = self._read_places()
        if made_with != settings:
            raise ValueError(
                f"{self.path} was made with {made_with}, now asked for {settings}; give another "
                "file, or the same settings"
            )

    def get(self, name: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """A weight on its grid, and the ends of its range."""
        if (place := self.places.get(name)) is None:
            return None
        return self._read(place)["layer"]

    def put(self, name: str, value: tuple[Tensor, Tensor, Tensor]) -> None:
        if self.path is not None:
            self.places[name] = self._append({"name": name, "layer": value})

    def _append(self, record: dict[str, Any]) -> int:
        assert self.path is not None
        buffer = io.BytesIO()
        torch.save(record, buffer)
        with self.path.open("ab") as file:
            place = file.tell()
            file.write(buffer.tell().to_bytes(_SIZE, "little") + buffer.getbuffer())
        return place

    def _read(self, place: int) -> Any:
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(place)
            size = int.from_bytes(file.read(_SIZE), "little")
            return torch.load(io.BytesIO(file.read(size)), weights_only=True)

    def _read_places(self) -> Any:
        """The settings; what is left of a last record that is not whole is cut off."""
        assert self.path is not None
        end, place, settings = self.path.stat().st_size, 0, None
        while place < end:
            with self.path.open("rb") as file:
                file.seek(place)
                following = place + _SIZE + int.from_bytes(file.read(_SIZE), "little")
            if following > end:
                break
            try:
                record = self._read(place)
            except (RuntimeError, pickle.UnpicklingError):
                break
            if place == 0:
                settings = record
            else:
                self.places[record["name"]] = place
            place = following
        if settings is not None:
            with self.path.open("r+b") as file:
                file.truncate(place)
        return settings


def _settings_of(quantizer: Quantizer) -> str:
    return f"{quantizer} {quantizer.estimator}"
