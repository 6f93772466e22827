"""Perplexity and KL divergence: against SciPy, PyTorch, and what must hold of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

import minq

seeds = st.integers(0, 2**32)


def logits(seed, *shape):
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seeds)
def test_divergence_is_scipys(seed):
    p, q = logits(seed, 2, 5, 17)
    want = entropy(p.double().softmax(-1).numpy(), q.double().softmax(-1).numpy(), axis=-1)
    torch.testing.assert_close(
        minq.kl_divergence(p, q), torch.from_numpy(want), rtol=1e-9, atol=1e-12
    )


@given(seeds, st.floats(-50, 50))
def test_divergence_knows_answers_not_logits(seed, shift):
    p, q = logits(seed, 2, 3, 9).double()
    found = minq.kl_divergence(p, q)
    assert (found >= 0).all() and not minq.kl_divergence(p, p).any()
    torch.testing.assert_close(minq.kl_divergence(p + shift, q - shift), found, rtol=0, atol=1e-10)


def test_divergence_of_excluded_words():
    p = torch.tensor([0.0, 0.0, -math.inf])
    q = torch.tensor([0.0, -math.inf, 0.0])
    assert minq.kl_divergence(p, torch.zeros(3)).item() == pytest.approx(math.log(1.5))
    assert minq.kl_divergence(p, q).item() == math.inf


class Table(torch.nn.Module):
    """The next word by the last one alone."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, tokens):
        return self.table[tokens]


@given(seeds, st.integers(1, 5))
def test_losses_are_those_of_the_next_token(seed, batch):
    table = logits(seed, 7, 7)
    tokens = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(seed))
    losses = minq.token_losses(Table(table), tokens, batch)
    want = -table.double().log_softmax(-1)[tokens[:, :-1], tokens[:, 1:]]
    torch.testing.assert_close(losses, want)
    mean = F.cross_entropy(table[tokens[:, :-1]].flatten(0, 1), tokens[:, 1:].flatten())
    found = minq.perplexity(Table(table), tokens, batch)
    assert found == pytest.approx(mean.exp().item(), rel=1e-5) and found >= 1


@given(seeds)
def test_no_model_beats_the_source(seed):
    """In the mean over what p may say, q's loss is p's and the divergence."""
    p, q = logits(seed, 2, 1, 11).double()
    loss = lambda t: -(p.softmax(-1) * t.log_softmax(-1)).sum()  # noqa: E731
    gap = loss(q) - loss(p)
    assert minq.kl_divergence(p, q).item() == pytest.approx(gap.item(), abs=1e-9)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: minq.kl_divergence(torch.zeros(2, 3), torch.zeros(3)), "differ in shape"),
        (lambda: minq.perplexity(Table(torch.zeros(3, 3)), torch.zeros(5, dtype=int)), "rows"),
        (lambda: minq.perplexity(Table(torch.zeros(3, 3)), torch.zeros(5, 1, dtype=int)), "rows"),
        (lambda: minq.perplexity(lambda t: t[:, 0], torch.zeros(2, 5, dtype=int)), "one row for"),
    ],
)
def test_it_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()
