"""What it costs to quantize a language model: seconds and peak memory of ``minq.ptq``.

    python tests/bench/bench_decoder.py [--layers 4 30] [--rounding gptq nearest] [--threads 2]

A decoder of SmolLM2-135M's shape with random weights (width 576, MLP 1536, 9 heads that share 3
keys and values, 49,152 tokens, embeddings tied; 30 layers are all of it), from transformers.
Weights of 4 bits in groups of 32, activations in float, on 64 sequences of 256 tokens. Each run is
a process of its own, so that its peak is its own; "before" is the peak with the model, before it is
quantized. Beside the time on the clock stands the processor's, which other programs on the machine
disturb less.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from bench_ptq import peak, timed
from torch import nn

import minq
from minq.ptq import GPTQ, Nearest

ROUNDINGS = {
    "gptq": GPTQ(),
    "nearest": Nearest(correct_bias=False),
    "corrected": Nearest(),  # to nearest, biases corrected on the data
}


def decoder(layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def cost(layers: int, rounding: str, sequences: int, tokens: int, batch: int) -> None:
    model = decoder(layers)
    data = torch.randint(49152, (sequences, tokens), generator=torch.Generator().manual_seed(1))
    size, before = sum(p.numel() for p in model.parameters()) / 1e6, peak()
    with tempfile.TemporaryDirectory() as folder:
        _, clock, processor = timed(
            lambda: minq.ptq(
                model, [{"input_ids": x} for x in data.split(batch)], weights=4, per_channel=True,
                group_size=32, activations=None, equalize=False, rounding=ROUNDINGS[rounding],
                checkpoint=Path(folder) / "layers", progress=False,
            )
        )  # fmt: skip
    print(
        f"  {layers:2d} layers {size:6.1f} M parameters {rounding:10s} {clock:7.1f} s "
        f"({processor:6.1f} s cpu), peak {peak():5.0f} MiB, {before:.0f} MiB before"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="*", default=[4, 30])
    parser.add_argument("--rounding", nargs="*", default=["gptq", "nearest"], choices=ROUNDINGS)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    sizes = options.sequences, options.tokens, options.batch
    if options.one:
        cost(options.layers[0], options.rounding[0], *sizes)
        return
    print(f"minq.ptq, W4 in groups of 32, {sizes[0]} sequences of {sizes[1]} tokens")
    for layers in options.layers:
        for rounding in options.rounding:
            sys.stdout.flush()
            run = ["--one", "--layers", str(layers), "--rounding", rounding]
            for name in ("sequences", "tokens", "batch", "threads"):
                run += [f"--{name}", str(getattr(options, name))]
            subprocess.run([sys.executable, __file__, *run], check=True)


if __name__ == "__main__":
    main()
