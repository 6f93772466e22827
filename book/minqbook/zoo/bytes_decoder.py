"""A decoder of 200,000 parameters that reads bytes, for machines without the large one.

    python -m minqbook.zoo.bytes_decoder        trains it again: minutes on one core

It learned from the calibration part of ``prose`` alone: it chooses among 7 bytes, not 256, and
writes no sense.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from minq._work import write_whole
from minqbook.zoo.decoder import Decoder, Sizes
from minqbook.zoo.speeches import prose, token_rows

SIZES = Sizes(
    vocabulary=256, width=64, hidden=176, layers=4, heads=4, shared=2, longest=1024, base=1000.0
)
WEIGHTS = Path(__file__).parent / "weights" / "small_decoder.safetensors"
_STEPS, _ROWS, _LENGTH, _RATE, _SEED = 300, 16, 128, 4e-3, 0


class Bytes:
    """Each byte of a text is a token: as much of a tokenizer as ``generate`` needs.

    >>> Bytes().encode("Hi").ids, Bytes().decode([72, 105])
    ([72, 105], 'Hi')
    """

    def encode(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(ids=list(text.encode()))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def token_to_id(self, word: str) -> int | None:
        """There are no words that end a text."""
        return None


def small_decoder() -> Decoder:
    """The small decoder with its trained weights, in eval mode: bytes (B, T) to logits (B, T, 256).

    >>> small_decoder()(torch.tensor([[72, 105]])).shape
    torch.Size([1, 2, 256])
    """
    from safetensors.torch import load_file

    model = Decoder(SIZES)
    state = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    model.load_state_dict(state | {"head.weight": state["words.weight"]})
    return model.eval()


def train(steps: int = _STEPS) -> Decoder:
    """AdamW on random rows, the rate rising for a tenth of the steps, then falling to 0."""
    torch.manual_seed(_SEED)
    model = Decoder(SIZES)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, 0, 0.02 if name == "words.weight" else p.shape[1] ** -0.5)
    text = torch.tensor(Bytes().encode(prose("calibration")).ids)
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _RATE, total_steps=steps, pct_start=0.1, anneal_strategy="cos"
    )
    for step in range(steps):
        starts = torch.randint(len(text) - _LENGTH, (_ROWS, 1))
        rows = text[starts + torch.arange(_LENGTH + 1)]
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{step}: {loss.item():.3f} nats a byte", flush=True)
    return model.eval()


if __name__ == "__main__":
    from safetensors.torch import save_file

    import minq

    model = train()
    state = {n: p.detach().half() for n, p in model.named_parameters()}
    write_whole(WEIGHTS, lambda path: save_file(state, path))
    rows = token_rows(Bytes(), prose(), 256, 32)  # type: ignore[arg-type]
    print(f"perplexity of a byte it has not seen: {minq.perplexity(small_decoder(), rows):.2f}")
