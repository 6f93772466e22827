"""A block of 32 weights as a GGUF file stores it: 20 bytes, whose bits can be flipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import traitlets

from minqbook.widgets.base import Widget, limited, within
from minqbook.zoo.gguf import BLOCKS, split_blocks

KIND = "Q4_1"  # of block: a scale, a minimum, 32 codes of 4 bits
SIZE = BLOCKS[KIND].itemsize  # 20 bytes
MOST = 256  # blocks in the page: 5 KB


class BlockBytes(Widget):
    """Blocks of the type Q4_1, byte by byte: w = d q + m for 32 weights.

    Bytes 0 and 1 are the scale d as a float16, bytes 2 and 3 the minimum m, both little endian. The
    low half of byte 4 + j is the code q of weight j, its high half that of weight j + 16.

    data: whole blocks, at most 256. block: which one is shown. byte: which of its bytes has its
    bits shown. flipped: bits of the block that are turned over, 8 times the byte plus the bit.

    ``result()`` has what the page computes.

    >>> block = np.array([0.5, -1.0], "<f2").tobytes() + bytes([0x21] + 15 * [0x00])
    >>> w = BlockBytes(block, flipped=[32])  # the lowest bit of byte 4
    >>> w
    BlockBytes(blocks=1, block=0, byte=4, flipped=[32])
    >>> w.result()["before"][[0, 16]], w.result()["weights"][[0, 16]]
    (array([-0.5,  0. ]), array([-1.,  0.]))

    Raises TypeError or ValueError for data that are no whole blocks or too many.
    """

    data = traitlets.Bytes().tag(sync=True)
    blocks = traitlets.Int(1).tag(sync=True)
    block = traitlets.Int(0).tag(sync=True)
    byte = traitlets.Int(4).tag(sync=True)
    flipped = traitlets.List(traitlets.Int()).tag(sync=True)
    shown = ("blocks", "block", "byte", "flipped")
    _limits = limited(byte=(0, SIZE - 1))

    def __init__(
        self,
        data: Any,
        *,
        alt: str = "The 20 bytes of a block, the bits of one of them, and the 32 weights that the "
        "block gives back on their 16 levels.",
        **traits: Any,
    ) -> None:
        if not isinstance(data, bytes | bytearray | memoryview | np.ndarray):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        data = bytes(data)
        if not data or len(data) % SIZE or len(data) > MOST * SIZE:
            raise ValueError(
                f"data has {len(data)} bytes; give 1 to {MOST} whole blocks of {SIZE} bytes each"
            )
        super().__init__(data=data, blocks=len(data) // SIZE, alt=alt, **traits)

    def result(self) -> dict[str, Any]:
        """scale d, minimum m, codes q and weights w with the flipped bits; before, w without."""
        block = np.frombuffer(self.data, np.uint8).reshape(-1, SIZE)[self.block].copy()
        before = _read(block)[-1]
        for bit in self.flipped:
            block[bit // 8] ^= 1 << bit % 8
        scale, minimum, codes, weights = _read(block)
        return {
            "scale": scale,
            "minimum": minimum,
            "codes": codes,
            "weights": weights,
            "before": before,
        }

    @traitlets.validate("block")
    def _check_block(self, proposal: Any) -> int:
        return within(proposal, 0, self.blocks - 1)

    @traitlets.validate("flipped")
    def _check_flipped(self, proposal: Any) -> list[int]:
        bits = proposal.value
        if len(set(bits)) < len(bits) or any(not 0 <= b < 8 * SIZE for b in bits):
            raise ValueError(
                f"flipped must hold different bits from 0 to {8 * SIZE - 1}, not {bits}"
            )
        return bits


def _read(block: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
    """d, m, q and w = d q + m of one block."""
    scales, minimums, (codes,) = split_blocks(block, KIND)
    assert minimums is not None  # Q4_1 has them
    scale, minimum = float(scales[0]), float(minimums[0])
    with np.errstate(invalid="ignore"):
        return scale, minimum, codes, scale * codes + minimum
