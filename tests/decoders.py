"""Small language models of every common kind, with random weights, and tokens for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, TOKENS = 100, 32, 4, 12


class Causal(nn.Module):
    """Attention as nanoGPT writes it: one layer for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        b, t, c = x.size()
        q, k, v = (
            u.view(b, t, HEADS, c // HEADS).transpose(1, 2) for u in self.qkv(x).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(b, t, c))


class Block(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.attention = norm(WIDTH), norm(WIDTH), Causal()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Nano(nn.Module):
    """Tied embeddings, learned positions, and logits capped as Gemma's."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks = nn.Sequential(Block(norm), Block(norm))
        self.norm, self.head = norm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids):
        place = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.blocks(self.tokens(input_ids) + self.places(place))
        return 30 * torch.tanh(self.head(self.norm(x)) / 30)


def made_of(name: str, **change: Any) -> nn.Module:
    """A model of transformers."""
    import transformers

    usual = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "use_cache": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**usual | change)
    kind = "ForConditionalGeneration" if name == "T5" else "ForCausalLM"
    kind = "LMHeadModel" if name == "GPT2" else kind
    return getattr(transformers, name + kind)(config)


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "nanoGPT": lambda: Nano(nn.LayerNorm),
    "nanoGPT, RMS norm": lambda: Nano(nn.RMSNorm),
    "GPT-2": lambda: made_of(
        "GPT2", n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=64, n_inner=64
    ),
    "Llama": lambda: made_of("Llama", tie_word_embeddings=True),
    "Mistral": lambda: made_of("Mistral", sliding_window=4),
    "Qwen2": lambda: made_of("Qwen2"),
    "Gemma 2": lambda: made_of("Gemma2", head_dim=8, sliding_window=4),
    "T5": lambda: made_of("T5", d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=HEADS),
}


def model_of(name: str) -> nn.Module:
    """The network, its weights as large as those of a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DECODERS[name]().eval()
        if name != "T5":
            for p in model.parameters():
                if p.ndim > 1 and not isinstance(model, Nano):
                    p.data.mul_(4)
    return model


def tokens(name: str, samples: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    """What the network is called with."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(3, VOCABULARY, (samples, TOKENS), generator=g)
    return {"input_ids": x} | ({"decoder_input_ids": x[:, 3:].flip(1)} if name == "T5" else {})


def logits_of(answer: Any) -> torch.Tensor:
    if isinstance(answer, torch.Tensor):
        return answer
    return answer["logits"] if isinstance(answer, dict) else getattr(answer, "logits", answer[0])
