"""The six tests of a loss, for LTRGR's margin loss, and how its passages are picked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_training.losses.margin import Picks, ltrgr_margin, pick

ALL = torch.ones(3, 6, dtype=torch.bool)
LABELS = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 2, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]])


def scores(seed: int, scale: float = 200.0) -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def picks_of(seed: int, labels: torch.Tensor = LABELS, mask: torch.Tensor = ALL) -> Picks:
    return pick(scores(seed + 1), labels, mask, torch.rand(3, 2, generator=torch.Generator().manual_seed(seed)))


def places(*columns: int) -> Picks:
    return Picks(*(torch.tensor([column]) for column in columns))


def test_value_by_hand():
    given_scores = torch.tensor([[500.0, 400.0, 350.0, 100.0]])
    labels, picks = torch.tensor([[1, 1, 0, 0]]), places(0, 2, 1, 3)
    # 350 - 500 + 300 = 150 and 100 - 400 + 400 = 100.
    assert ltrgr_margin(given_scores, labels, ALL[:1, :4], picks).tolist() == [125.0]
    paper = ltrgr_margin(given_scores, labels, ALL[:1, :4], picks, margin=500, random_extra=0, weights=(1, 1))
    assert paper.tolist() == [350.0 + 200.0]
    assert ltrgr_margin(given_scores, labels, ALL[:1, :4], picks, weights=(1, 0)).tolist() == [150.0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 300), margin=st.floats(0, 400), extra=st.floats(0, 200))
def test_zero_exactly_where_both_margins_hold(seed, margin, extra):
    s, picks = scores(seed), picks_of(seed)
    loss = ltrgr_margin(s, LABELS, ALL, picks, margin=margin, random_extra=extra)
    for b in range(3):
        top = s[b, picks.top_positive_B[b]] - s[b, picks.top_negative_B[b]]
        random = s[b, picks.random_positive_B[b]] - s[b, picks.random_negative_B[b]]
        assert (loss[b] == 0).item() == bool(top >= margin and random >= margin + extra)
    assert (loss >= 0).all()


def test_finite_with_zero_violations():
    s = torch.where(LABELS > 0, 1e4, 0.0).requires_grad_()
    loss = ltrgr_margin(s, LABELS, ALL, picks_of(0))
    assert loss.tolist() == [0.0] * 3
    loss.sum().backward()
    assert s.grad.tolist() == [[0.0] * 6] * 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 200), shift=st.floats(-50, 50), scale=st.sampled_from([1.0, 1e5]))
def test_shift_order_and_padding_change_nothing(seed, shift, scale):
    s, mined = scores(seed, scale), scores(seed + 1)
    draws = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed))
    wanted = ltrgr_margin(s, LABELS, ALL, pick(mined, LABELS, ALL, draws))
    assert torch.allclose(ltrgr_margin(s + shift, LABELS, ALL, pick(mined, LABELS, ALL, draws)), wanted)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    moved = pick(mined[:, order], LABELS[:, order], ALL, draws)
    assert torch.equal(ltrgr_margin(s[:, order], LABELS[:, order], ALL, moved), wanted)
    more = [torch.cat([x, torch.full((3, 2), fill, dtype=x.dtype)], 1)
            for x, fill in ((s, torch.nan), (mined, 1e9), (LABELS, 1), (ALL, False))]  # fmt: skip
    assert torch.equal(ltrgr_margin(more[0], more[2], more[3], pick(more[1], more[2], more[3], draws)), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(dtype):
    half = scores(3).to(dtype)
    found = ltrgr_margin(half, LABELS, ALL, picks_of(3))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), ltrgr_margin(half.double(), LABELS, ALL, picks_of(3)), rtol=1e-5)


def test_lists_without_a_pair_give_zero_and_no_gradient():
    mask, labels, s = ALL.clone(), LABELS.clone(), (0.01 * scores(1)).requires_grad_()
    mask[0], labels[1] = False, 1
    loss = ltrgr_margin(s, labels, mask, picks_of(1, labels, mask))
    assert loss[:2].tolist() == [0.0, 0.0]
    assert loss[2] > 0
    loss.sum().backward()
    assert not s.grad[:2].any()
    assert s.grad[2].any()


def test_gradient():
    s = scores(4).requires_grad_()
    assert ltrgr_margin(s, LABELS, ALL, picks_of(4)).count_nonzero() > 1
    assert torch.autograd.gradcheck(lambda x: ltrgr_margin(x, LABELS, ALL, picks_of(4)), s)


def test_picks():
    labels, mask = torch.tensor([[0, 1, 0, 1, 0, 1, 0]]), torch.tensor([[1, 1, 1, 1, 1, 1, 0]]).bool()
    mined = torch.tensor([[4.0, 1.0, 9.0, 3.0, 5.0, 2.0, 99.0]])
    for draw, positive, negative in ((0.0, 3, 2), (0.5, 5, 4), (0.99, 1, 0)):
        assert pick(mined, labels, mask, torch.tensor([[draw, draw]])) == places(3, 2, positive, negative)


def test_margins_must_not_be_negative():
    with pytest.raises(ValueError, match="must be >= 0, got 50 and -50"):
        ltrgr_margin(scores(1), LABELS, ALL, picks_of(1), margin=50, random_extra=-100)
