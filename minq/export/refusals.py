"""Why a model cannot be captured, in words that name the thing and the way out."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

_ADVICE = (
    (
        r"data-dependent|DataDependent|data dependent|_local_scalar_dense|unbacked",
        "Its forward chooses its path, or a shape, by the values of tensors. Let it compute both "
        "and pick with torch.where, or make the shape depend on shapes alone.",
    ),
    (
        r"DynamicCache|past_key_values|StaticCache|EncoderDecoderCache|[^\w]Cache\b",
        "It returns or takes a cache of keys and values; call it without: "
        "model.config.use_cache = False, or use_cache=False among the inputs.",
    ),
    (
        r"[Ss]parse",
        "It works with sparse tensors, which have no quantized form; call .to_dense() on them.",
    ),
    (
        r"[Uu]nsupported (input|output) type|Unexpected (input|output) type|not a pytree|"
        r"[Ii]nput type which is not a known|only tensors, lists",
        "What a model takes and returns must be tensors in tuples, lists, dicts or named tuples; "
        "a dataclass is one more after torch.export.register_dataclass(TheClass).",
    ),
)


class CaptureError(ValueError):
    """The model could not be turned into a graph."""


def refuse(model: nn.Module) -> None:
    """Raise for models that ``torch.export`` or quantization cannot take, before they are tried."""
    from minq.quantizer import Quantizer

    name = type(model).__name__
    if any(isinstance(m, Quantizer) for m in model.modules()):
        raise CaptureError(
            f"{name} has quantizers already, and is no graph that minq.ptq or minq.qat returned; "
            "give the full-precision model, or the quantized network itself"
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"its part {path}" if path else "it"
            raise CaptureError(
                f"{name} cannot be captured: {part} is a TorchScript module, traced or scripted, "
                "which torch.export does not follow; give the Python module it was made from"
            )
        if type(module).__module__.startswith("torchvision.models.detection") and not path:
            if hasattr(module, "backbone") and hasattr(module, "transform"):
                raise CaptureError(
                    f"{name} is a detector: it resizes pictures and sorts boxes in Python, by the "
                    "values of tensors. Quantize model.backbone, where nearly all is computed, on "
                    "batches of pictures, and put it back: model.backbone = minq.ptq(...)"
                )
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout != torch.strided:
            raise CaptureError(
                f"{name} cannot be captured: {path} is a sparse tensor, which has no quantized "
                "form; call .to_dense() on it"
            )


def why(model: nn.Module, error: Exception) -> str:
    """What kept ``torch.export`` from following the model, where, and what to do."""
    text = f"{type(error).__name__}: {error}"
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    said = f"torch.export could not follow {type(model).__name__}: {reason}"
    if where := _place(error):
        said += f" ({where})"
    if operator := _custom(text):
        advice = (
            f"{operator} is an operator of your own that does not say what shapes it gives; tell "
            f"it by @torch.library.register_fake({operator!r}). It stays in float then."
        )
    else:
        fits = (advice for pattern, advice in _ADVICE if re.search(pattern, text))
        advice = next(fits, "torch.export.export(model, example, strict=False) says more.")
    return f"{said}\n{advice}"


def _custom(text: str) -> str | None:
    """The operator that has no fake kernel, where the error says so."""
    if not re.search(r"fake impl|Meta|meta kernel|UnsupportedOperator|FakeTensor", text):
        return None
    names = re.findall(r"\b(?!aten|prim|torch\b)([A-Za-z_]\w*)(?:::|\.)(\w+)(?:\.default)?", text)
    for namespace, name in names:
        if hasattr(getattr(torch.ops, namespace, None), name):
            return f"{namespace}::{name}"
    return None


def _place(error: BaseException) -> str:
    """The last line of the model's own code on the way to the error."""
    here = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(here) and "contextlib" not in f.filename]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def refuse_operators(gm: fx.GraphModule) -> None:
    """Raise for operators that hold a choice, or whole loops."""
    for node in gm.graph.nodes:
        target: Any = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            name = target.__name__
            raise CaptureError(
                f"the model uses torch.{name}, which holds graphs of its own: which of them runs, "
                "or how often, depends on values, and cannot be quantized. Let forward compute "
                "both ways and pick with torch.where, or quantize the parts"
                if name in ("cond", "while_loop")
                else f"the model uses the higher-order operator {name}, which holds a graph of its "
                "own that cannot be quantized; write the computation out in forward"
            )
