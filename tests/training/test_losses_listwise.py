"""The six tests of a loss, for `listwise_softmax`."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gr_training.losses.listwise import listwise_softmax

ALL = torch.ones(3, 5, dtype=torch.bool)


def scores(seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def labels() -> torch.Tensor:
    return torch.tensor([[1.0, 0, 0, 0, 0], [0, 2.0, 1.0, 0, 0], [0, 0, 0, 0, 1.0]], dtype=torch.float64)


def test_value_by_hand():
    found = listwise_softmax(torch.tensor([[math.log(2.0), 0.0, 0.0]]), torch.tensor([[1, 0, 0]]), ALL[:1, :3])
    assert found.tolist() == pytest.approx([math.log(2.0)])
    two = listwise_softmax(torch.zeros(1, 4), torch.tensor([[1, 3, 0, 0]]), ALL[:1, :4])
    assert two.tolist() == pytest.approx([math.log(4.0)])
    cold = listwise_softmax(torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 0]]), ALL[:1, :2], temperature=0.5)
    assert cold.tolist() == pytest.approx([math.log1p(math.exp(-2.0))])


def test_zero_where_theory_says_zero():
    far = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    assert listwise_softmax(far, torch.tensor([[1, 0, 0]]), ALL[:1, :3]).item() == pytest.approx(0.0, abs=1e-12)
    target = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    entropy = -(target * target.log()).sum().item()
    assert listwise_softmax(target.log(), target, ALL[:1, :3]).item() == pytest.approx(entropy)
    assert listwise_softmax(scores(1)[:1, :3], target, ALL[:1, :3]).item() > entropy


@given(seed=st.integers(0, 200), shift=st.floats(-50, 50), scale=st.sampled_from([1.0, 1e4]))
def test_shift_order_and_padding_change_nothing(seed, shift, scale):
    given_scores, wanted = scores(seed, scale=scale), listwise_softmax(scores(seed, scale=scale), labels(), ALL)
    assert torch.allclose(listwise_softmax(given_scores + shift, labels(), ALL), wanted, atol=1e-7 * scale)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(listwise_softmax(given_scores[:, order], labels()[:, order], ALL), wanted)
    padded = torch.cat([given_scores, torch.full((3, 2), 1e6, dtype=torch.float64)], dim=1)
    more = torch.cat([labels(), torch.ones(3, 2, dtype=torch.float64)], dim=1)
    mask = torch.cat([ALL, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    assert torch.equal(listwise_softmax(padded, more, mask), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(dtype):
    half = scores(3, dtype, scale=100.0)
    found = listwise_softmax(half, labels(), ALL)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), listwise_softmax(half.double(), labels(), ALL), rtol=1e-5)


def test_all_masked_or_without_labels_gives_zero_and_no_gradient():
    given_scores = scores(1).requires_grad_()
    mask = ALL.clone()
    mask[0] = False
    unlabelled = labels()
    unlabelled[1] = 0
    loss = listwise_softmax(given_scores, unlabelled, mask)
    assert loss[:2].tolist() == [0.0, 0.0]
    assert loss[2] > 0
    loss.sum().backward()
    assert given_scores.grad is not None
    assert not given_scores.grad[:2].any()
    assert given_scores.grad[2].abs().min() > 0


def test_gradient():
    mask = ALL.clone()
    mask[1, 3:] = False
    assert torch.autograd.gradcheck(lambda s: listwise_softmax(s, labels(), mask), scores(4).requires_grad_())


def test_agrees_with_a_naive_loop():
    given_scores, given_labels = scores(5), labels()
    for b, loss in enumerate(listwise_softmax(given_scores, given_labels, ALL)):
        row = [math.exp(s) for s in given_scores[b].tolist()]
        target = [label / sum(given_labels[b].tolist()) for label in given_labels[b].tolist()]
        assert loss.item() == pytest.approx(-sum(t * math.log(e / sum(row)) for t, e in zip(target, row, strict=True)))


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        listwise_softmax(scores(1), labels(), ALL, temperature=0)
