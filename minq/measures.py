"""What a language model lost: its perplexity, and how far its answers moved from another's.

Both are read from logits: log p(v) = logits[v] - log(sum exp(logits)). All sums are in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minq._checks import check_count


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """D(p || q) = sum over v of p(v) (log p(v) - log q(v)), in nats, of each token.

    0 where the answers are the same, else positive: what coding words of p costs with q's code,
    beyond what it costs with p's own.

    Args:
        reference: logits of p, (..., V), of the exact model.
        logits: logits of q, the same shape, of the quantized one.

    Returns:
        (...), float64; its mean is the usual figure.

    Raises:
        ValueError: for shapes that differ.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> round(kl_divergence(p.log(), q.log()).item(), 4)  # log(2) / 2 + log(2/3) / 2
    0.1438
    """
    if reference.shape != logits.shape:
        raise ValueError(
            f"reference {tuple(reference.shape)} and logits {tuple(logits.shape)} differ in shape"
        )
    log_p, log_q = (t.double().log_softmax(-1) for t in (reference, logits))
    # A word that p excludes costs nothing, whatever q says of it.
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1).clamp(min=0)


@torch.no_grad()
def token_losses(model: nn.Module, tokens: Tensor, batch: int = 4) -> Tensor:
    """-log p(token t+1 | tokens 1 to t), in nats, of every token that has one before it.

    Args:
        model: tokens (B, T) to logits (B, T, V), in eval mode; each row sees only what is before.
        tokens: (N, T), int64, T at least 2.
        batch: rows computed at once; the logits of no more are kept.

    Returns:
        (N, T - 1), float64.

    Raises:
        ValueError: for tokens of another shape, or logits that are not one row a token.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be (rows, at least 2), not {tuple(tokens.shape)}")
    losses = []
    for rows in tokens.split(check_count(batch, "batch")):
        logits = model(rows)
        if logits.shape[:-1] != rows.shape:
            raise ValueError(
                f"the model gave {tuple(logits.shape)} for tokens {tuple(rows.shape)}; it must "
                "give logits, one row for each token"
            )
        # One text at a time: float64 logits of a large vocabulary fill memory.
        pairs = zip(logits[:, :-1], rows[:, 1:], strict=True)
        losses.append(
            torch.stack([F.cross_entropy(y.double(), t, reduction="none") for y, t in pairs])
        )
    return torch.cat(losses)


def perplexity(model: nn.Module, tokens: Tensor, batch: int = 4) -> float:
    """exp of the mean of -log p(next token): among how many words the model seems to choose.

    As many as there are (V) where it knows nothing, 1 where it is always sure and right.

    Args:
        model, tokens, batch: as in ``token_losses``.

    Returns:
        The perplexity. The first token of each row is read, not predicted.

    >>> even = lambda tokens: torch.zeros(*tokens.shape, 10)
    >>> round(perplexity(even, torch.tensor([[1, 2, 3]])), 6)
    10.0
    """
    return token_losses(model, tokens, batch).mean().exp().item()
