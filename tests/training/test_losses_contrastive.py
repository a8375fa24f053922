"""The six tests of a loss, for `in_batch_contrastive`."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gr_training.losses.contrastive import in_batch_contrastive

ALL = torch.ones(3, 6, dtype=torch.bool)
OWN = torch.tensor([0, 2, 4])


def scores(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def test_value_by_hand():
    found = in_batch_contrastive(torch.tensor([[math.log(3.0), 0.0, 0.0]]), torch.tensor([0]), ALL[:1, :3])
    assert found.tolist() == pytest.approx([math.log(5 / 3)])
    cold = in_batch_contrastive(torch.tensor([[0.1, 0.0]]), torch.tensor([0]), ALL[:1, :2], temperature=0.05)
    assert cold.tolist() == pytest.approx([math.log1p(math.exp(-2.0))])


def test_zero_where_theory_says_zero():
    lonely = torch.zeros(1, 6, dtype=torch.bool)
    lonely[0, 2] = True
    assert in_batch_contrastive(scores(1)[:1], torch.tensor([2]), lonely).item() == 0.0
    far = torch.tensor([[80.0, 0.0]], dtype=torch.float64)
    assert in_batch_contrastive(far, torch.tensor([0]), ALL[:1, :2]).item() == pytest.approx(0.0, abs=1e-12)


@given(seed=st.integers(0, 200), shift=st.floats(-50, 50), scale=st.sampled_from([1.0, 1e4]))
def test_shift_order_and_passages_that_are_left_out_change_nothing(seed, shift, scale):
    wanted = in_batch_contrastive(scores(seed, scale), OWN, ALL)
    assert torch.allclose(in_batch_contrastive(scores(seed, scale) + shift, OWN, ALL), wanted, atol=1e-7 * scale)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    place = torch.argsort(order)
    assert torch.allclose(in_batch_contrastive(scores(seed, scale)[:, order], place[OWN], ALL), wanted)
    more = torch.cat([scores(seed, scale), torch.full((3, 2), 1e6, dtype=torch.float64)], dim=1)
    allowed = torch.cat([ALL, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    assert torch.equal(in_batch_contrastive(more, OWN, allowed), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(dtype):
    half = scores(2, 100.0).to(dtype)
    found = in_batch_contrastive(half, OWN, ALL)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), in_batch_contrastive(half.double(), OWN, ALL), rtol=1e-5)


def test_a_row_of_padding_gives_zero_and_no_gradient():
    given_scores = scores(1).requires_grad_()
    allowed = ALL.clone()
    allowed[1] = False
    loss = in_batch_contrastive(given_scores, OWN, allowed)
    assert loss[1] == 0
    assert (loss[[0, 2]] > 0).all()
    loss.sum().backward()
    assert given_scores.grad is not None
    assert not given_scores.grad[1].any()
    assert given_scores.grad[0].abs().min() > 0


def test_gradient():
    allowed = ALL.clone()
    allowed[0, 3] = allowed[2, 5] = False
    assert torch.autograd.gradcheck(lambda s: in_batch_contrastive(s, OWN, allowed), scores(3).requires_grad_())


def test_agrees_with_cross_entropy_and_a_naive_loop():
    assert torch.allclose(in_batch_contrastive(scores(4), OWN, ALL), F.cross_entropy(scores(4), OWN, reduction="none"))
    allowed = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    allowed[torch.arange(3), OWN] = True
    for b, loss in enumerate(in_batch_contrastive(scores(4), OWN, allowed)):
        terms = [math.exp(s) for s, ok in zip(scores(4)[b].tolist(), allowed[b].tolist(), strict=True) if ok]
        assert loss.item() == pytest.approx(-math.log(math.exp(scores(4)[b, OWN[b]].item()) / sum(terms)))


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be > 0, got -1"):
        in_batch_contrastive(scores(1), OWN, ALL, temperature=-1)
