"""Our decoder as transformers has it, with the same weights."""

import pytest

THEIRS = {"words": "embed_tokens", "attention.output": "self_attn.o_proj"} | {
    **{f"attention.{k}": f"self_attn.{k[0]}_proj" for k in ("query", "key", "value")},
    **{"norm1": "input_layernorm", "norm2": "post_attention_layernorm"},
}


def llama(model):
    """transformers' network of the same weights."""
    transformers = pytest.importorskip("transformers")
    s = model.sizes
    config = transformers.LlamaConfig(
        vocab_size=s.vocabulary, hidden_size=s.width, intermediate_size=s.hidden,
        num_hidden_layers=s.layers, num_attention_heads=s.heads, num_key_value_heads=s.shared,
        max_position_embeddings=s.longest, rms_norm_eps=s.epsilon, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": s.base}, use_cache=False,
    )  # fmt: skip
    other = transformers.LlamaForCausalLM(config).eval()
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in THEIRS.items():
            name = name.replace(ours, theirs)
        if "mlp" in name:
            name = name.replace(".weight", "_proj.weight")
        state[name if name == "head.weight" else f"model.{name}"] = value
    state["lm_head.weight"] = state.pop("head.weight")
    other.load_state_dict(state)
    return other
