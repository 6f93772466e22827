"""GGUF, the files in which language models travel: a header, facts, tensors in blocks of integers.

    "GGUF" | version | counts | facts: name, kind, value | tensors: name, sizes, kind, place | data

The file is read as data only, through a memory map: nothing in it is run, and whatever it says of
sizes and places is checked against its real length before a byte is read or reserved. Numbers are
little-endian. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# What one block holds. 4-bit codes lie two in a byte: weights 0 to 15 in the lower halves, 16 to 31
# in the upper ones.
BLOCKS: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "Q4_0": np.dtype([("scale", "<f2"), ("codes", "u1", 16)]),
    "Q4_1": np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", 16)]),
    "Q8_0": np.dtype([("scale", "<f2"), ("codes", "i1", 32)]),
}
"""The bytes of one block of each kind of tensor that is read here."""

_KINDS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}


class Blocks(NamedTuple):
    """A tensor as it is stored, a row of blocks for each of its rows."""

    scale: NDArray[np.float16]  # (rows, blocks)
    minimum: NDArray[np.float16] | None  # (rows, blocks), for Q4_1
    codes: NDArray[np.integer]  # (rows, blocks, 32)


@dataclass(frozen=True)
class Stored:
    """Where a tensor is and what it is."""

    name: str
    shape: tuple[int, ...]  # as torch and NumPy count: rows first
    kind: str
    start: int
    bytes: int


def weights_in(kind: str) -> int:
    """How many weights one block of this kind holds.

    >>> weights_in("Q4_1"), weights_in("F32")
    (32, 1)
    """
    return 32 if _block(kind).names else 1


def _block(kind: str) -> np.dtype:
    if kind not in BLOCKS:
        raise ValueError(f"blocks of kind {kind!r} are not read here, but {', '.join(BLOCKS)}")
    return BLOCKS[kind]


def split_blocks(raw: NDArray[np.uint8], kind: str) -> Blocks:
    """Bytes (..., rows, bytes of a row) of blocks as scales, minimums and codes.

    >>> block = np.frombuffer(np.float16([0.5, -1.0]).tobytes() + bytes(range(16)), np.uint8)
    >>> scale, minimum, codes = split_blocks(block[None], "Q4_1")
    >>> float(scale[0, 0]), float(minimum[0, 0]), codes[0, 0, :4].tolist()
    (0.5, -1.0, [0, 1, 2, 3])
    """
    if not _block(kind).names:
        raise ValueError(f"{kind} stores numbers one by one, not in blocks with a scale")
    if raw.shape[-1] % _block(kind).itemsize:
        raise ValueError(f"{raw.shape[-1]} bytes are no whole number of blocks of {kind}")
    block = np.ascontiguousarray(raw).view(_block(kind))
    codes = block["codes"]
    if codes.shape[-1] == 16:
        codes = np.concatenate([codes & 15, codes >> 4], -1)
    return Blocks(block["scale"], block["minimum"] if kind == "Q4_1" else None, codes)


def dequantize(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """The weights that bytes stand for, with the scale d and the minimum m of each block:

        Q4_0: w = d (q - 8)     Q4_1: w = d q + m     Q8_0: w = d q     F16, F32: the numbers

    Args:
        raw: (..., bytes of a row), uint8.
        kind: the kind of block.

    Returns:
        (..., weights of a row), float32, every one rounded as float32 arithmetic does.

    Raises:
        ValueError: for another kind, or a row that is no whole number of blocks.

    >>> dequantize(np.float32([[1.0, 2.0]]).view(np.uint8), "F32")
    array([[1., 2.]], dtype=float32)
    """
    if not _block(kind).names:
        if raw.shape[-1] % _block(kind).itemsize:
            raise ValueError(f"{raw.shape[-1]} bytes are no whole number of {kind}")
        return np.ascontiguousarray(raw).view(_block(kind)).astype(np.float32)
    scale, minimum, codes = split_blocks(raw, kind)
    weights = codes.astype(np.float32)
    if kind == "Q4_0":
        weights -= 8
    weights *= scale.astype(np.float32)[..., None]
    if minimum is not None:
        weights += minimum.astype(np.float32)[..., None]
    return weights.reshape(*weights.shape[:-2], -1)


class _Reader:
    """Steps through bytes and never behind their end."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, size: int, what: str) -> memoryview:
        left = len(self.data) - self.at
        if size > left:
            raise ValueError(
                f"this GGUF file is cut off or damaged: {what} needs {size} bytes, {left} are left"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        dtype = np.dtype(code)
        return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()

    def string(self, what: str) -> str:
        raw = bytes(self.take(self.number("<u8", what), what))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} of this GGUF file is no UTF-8: {raw[:40]!r}") from None

    def value(self, kind: int, what: str) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            raise ValueError(f"{what} of this GGUF file is of the unknown kind {kind}")
        inner, count = self.number("<u4", what), self.number("<u8", what)
        if inner in _NUMBERS:
            dtype = np.dtype(_NUMBERS[inner])
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()
        if inner != _STRING:
            raise ValueError(f"{what} of this GGUF file is a list of the unknown kind {inner}")
        return [self.string(what) for _ in range(count)]  # one that lies ends at the file's end


class GGUF:
    """A GGUF file: its facts in ``metadata``, where each tensor lies in ``tensors``.

    Args:
        path: the file.

    Raises:
        ValueError: for a file that is no GGUF of version 2 or 3, is cut off, or contradicts itself.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        try:
            self.data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        except ValueError as error:
            raise ValueError(f"{path} is empty, no GGUF file") from error
        reader = _Reader(memoryview(self.data.data))
        if bytes(self.data[:4]) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it begins with {bytes(self.data[:4])!r}")
        reader.take(4, "the mark")
        version = reader.number("<u4", "the version")
        if version not in (2, 3):
            raise ValueError(f"{path} is GGUF of version {version}; versions 2 and 3 are read here")
        tensors, facts = (reader.number("<u8", "the header") for _ in range(2))
        self.metadata: dict[str, Any] = {}
        for _ in range(facts):
            key = reader.string("the name of a fact")
            self.metadata[key] = reader.value(reader.number("<u4", key), key)
        found = [self._entry(reader) for _ in range(tensors)]
        step = self.metadata.get("general.alignment", 32)
        if not isinstance(step, int) or step <= 0 or step % 8:
            raise ValueError(f"the alignment of {path} is {step!r}; it must be a multiple of 8")
        data = -(-reader.at // step) * step
        self.tensors = {entry[0]: self._place(*entry, data) for entry in found}
        if len(self.tensors) < len(found):
            raise ValueError(f"{path} has two tensors of one name")

    @staticmethod
    def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
        name = reader.string("the name of a tensor")
        count = reader.number("<u4", name)
        if not 1 <= count <= 4:
            raise ValueError(f"tensor {name!r} of this GGUF file has {count} dimensions, not 1-4")
        sizes = tuple(reader.number("<u8", name) for _ in range(count))
        return name, sizes[::-1], reader.number("<u4", name), reader.number("<u8", name)

    def _place(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, data: int
    ) -> Stored:
        if kind not in _KINDS:
            known = ", ".join(f"{v} ({k})" for k, v in _KINDS.items())
            raise ValueError(f"tensor {name!r} is of kind {kind}, read here are {known}")
        known = _KINDS[kind]
        if shape[-1] % weights_in(known):
            raise ValueError(f"rows of {name!r} have {shape[-1]} weights, no whole blocks: {known}")
        size = prod(shape) // weights_in(known) * BLOCKS[known].itemsize
        if data + offset + size > len(self.data):
            raise ValueError(
                f"this GGUF file is cut off or damaged: tensor {name!r} ends at byte "
                f"{data + offset + size} of {len(self.data)}"
            )
        return Stored(name, shape, known, data + offset, size)

    def _stored(self, name: str) -> Stored:
        if name not in self.tensors:
            some = ", ".join([*self.tensors][:4])
            raise KeyError(f"this GGUF file has no tensor {name!r}; it has {some}, ...")
        return self.tensors[name]

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, (..., bytes of a row), not copied."""
        s = self._stored(name)
        rows = self.data[s.start : s.start + s.bytes]
        return rows.reshape(*s.shape[:-1], s.bytes // max(prod(s.shape[:-1]), 1))

    def blocks(self, name: str) -> Blocks:
        """A quantized tensor's scales, minimums and codes, as they are stored."""
        return split_blocks(self.raw(name), self._stored(name).kind)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor's weights, float32, in torch's order of dimensions."""
        return dequantize(self.raw(name), self._stored(name).kind)
