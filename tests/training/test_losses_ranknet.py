"""The six tests of a loss, for DGR's distilled RankNet and for RankNet."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_training.losses.ordering import best_first, ranks
from gr_training.losses.ranknet import distilled_ranknet, logistic_ranknet

ALL = torch.ones(3, 6, dtype=torch.bool)
LABELS = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 2, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]])
HEADS = ["positives", "teacher"]


def scores(seed: int, scale: float = 200.0) -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def naive(s, teacher, labels, mask, *, margin, increment, heads, weighted, head_weight=3.0):
    """One list, the definition word by word."""
    rows = [d for d in range(len(s)) if mask[d]]
    by_teacher = sorted(rows, key=lambda d: -float(teacher[d]))
    negatives = [d for d in by_teacher if labels[d] <= 0]
    orders = [[p, *negatives] for p in rows if labels[p] > 0] if heads == "positives" else [by_teacher]
    losses = []
    for order in orders:
        terms = []
        for i in range(len(order)):
            for j in range(i + 1, len(order)):
                h = max(0.0, float(s[order[j]] - s[order[i]]) + margin + (j - i - 1) * increment)
                terms.append(h * ((head_weight if i == 0 else 1 / (i + 1)) if weighted else 1.0))
        losses.append(sum(terms) / max(1, sum(term > 0 for term in terms)))
    return sum(losses) / len(losses) if losses else 0.0


def test_value_by_hand():
    # All scores equal: hinge = margin. Head pairs 3 * (300, 400), and 300 / 2 for the pair of the negatives.
    labels, teacher = torch.tensor([[1, 0, 0]]), torch.tensor([[0.1, 0.3, 0.2]])
    found = distilled_ranknet(torch.zeros(1, 3), teacher, labels, ALL[:1, :3])
    assert found.tolist() == pytest.approx([(900 + 1200 + 150) / 3])
    plain = distilled_ranknet(torch.zeros(1, 3), teacher, labels, ALL[:1, :3], position_weights=False)
    assert plain.tolist() == pytest.approx([(300 + 400 + 300) / 3])
    flat = distilled_ranknet(torch.zeros(1, 3), teacher, labels, ALL[:1, :3], increment=0, position_weights=False)
    assert flat.tolist() == [300.0]
    base = distilled_ranknet(torch.zeros(1, 3), teacher, labels, ALL[:1, :3], margin=0, head_weight=1.0)
    assert base.tolist() == [100.0], "only the pair two ranks apart is not zero"


def test_margins_of_the_first_row_are_300_400_500_600():
    labels, teacher = torch.tensor([[1, 0, 0, 0, 0]]), torch.tensor([[-9.0, 4.0, 3.0, 2.0, 1.0]])
    found = distilled_ranknet(torch.zeros(1, 5), teacher, labels, ALL[:1, :5])
    rows = [3 * (300 + 400 + 500 + 600), (300 + 400 + 500) / 2, (300 + 400) / 3, 300 / 4]
    assert found.tolist() == pytest.approx([sum(rows) / 10])
    ladder = torch.tensor([[0.0, -300, -600, -900, -1200]])
    assert distilled_ranknet(ladder, teacher, labels, ALL[:1, :5]).tolist() == [0.0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 200), margin=st.floats(0, 400), increment=st.floats(0, 200), heads=st.sampled_from(HEADS),
       weighted=st.booleans())  # fmt: skip
def test_agrees_with_a_naive_loop(seed, margin, increment, heads, weighted):
    s, teacher = scores(seed), scores(seed + 1000)
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed)) > 0.2
    found = distilled_ranknet(s, teacher, LABELS, mask, margin=margin, increment=increment, heads=heads,
                              position_weights=weighted)  # fmt: skip
    for b in range(3):
        wanted = naive(s[b], teacher[b], LABELS[b], mask[b], margin=margin, increment=increment, heads=heads,
                       weighted=weighted)  # fmt: skip
        assert found[b].item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 300), increment=st.floats(1, 100), stretch=st.floats(0.5, 2), heads=st.sampled_from(HEADS))
def test_zero_exactly_where_every_margin_holds(seed, increment, stretch, heads):
    """Scores along the teacher's order at `stretch` times the least distances that suffice."""
    teacher = scores(seed)
    margin = 50.0
    head = (LABELS > 0) if heads == "positives" else torch.zeros_like(ALL)
    rank = ranks(teacher, ~head).double() + (heads == "positives")
    rank = rank.where(~head, 0.0)
    # The pair d ranks apart needs margin + (d - 1) * increment: enough if neighbours are that far apart.
    step = stretch * max(margin, increment)
    s = (-step * rank).requires_grad_()
    loss = distilled_ranknet(s, teacher, LABELS, ALL, margin=margin, increment=increment, heads=heads)
    distance = torch.arange(1, 6).double()
    furthest = [5, 5, 5] if heads == "teacher" else [4, 4, 5]
    for b in range(3):
        needed = (margin + (distance - 1) * increment)[: furthest[b]]
        holds = bool((step * distance[: furthest[b]] >= needed).all())
        assert (loss[b] == 0).item() == holds
    loss.sum().backward()
    assert torch.isfinite(s.grad).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100), distance=st.integers(1, 4), increment=st.floats(1, 200))
def test_margins_grow_with_rank_distance(seed, distance, increment):
    """The hinge of the pair of head and last passage, with all scores equal, from lists of two lengths."""

    def last_hinge(ranks_between: int) -> float:
        number = ranks_between + 2
        teacher = torch.arange(number, 0, -1).double()[None]
        labels = torch.zeros(1, number)
        labels[0, 0] = 1
        s = torch.zeros(1, number, dtype=torch.float64)
        pairs = distilled_ranknet(s, teacher, labels, torch.ones(1, number, dtype=torch.bool), margin=10.0,
                                  increment=increment, position_weights=False)  # fmt: skip
        count = number * (number - 1) // 2
        fewer = sum((number - 1 - d) * (10 + d * increment) for d in range(ranks_between))
        return pairs.item() * count - fewer

    assert last_hinge(distance) == pytest.approx(10 + distance * increment, rel=1e-6)
    assert last_hinge(distance) > last_hinge(distance - 1)


@pytest.mark.parametrize("heads", HEADS)
def test_finite_with_zero_violations(heads):
    s = (torch.tensor([[6.0, 5, 4, 3, 2, 1], [3, 6, 2, 5, 1, 0], [4, 3, 2, 1, 0, 5]]) * 1e4).requires_grad_()
    loss = distilled_ranknet(s, s.detach() - torch.arange(6), LABELS, ALL, heads=heads)
    assert loss.tolist() == [0.0] * 3
    loss.sum().backward()
    assert s.grad.tolist() == [[0.0] * 6] * 3


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 200), shift=st.floats(-50, 50), scale=st.sampled_from([1.0, 1e5]),
    heads=st.sampled_from(HEADS),
)  # fmt: skip
def test_shift_order_padding_and_the_teachers_scale_change_nothing(seed, shift, scale, heads):
    s, teacher = scores(seed, scale), scores(seed + 1)
    wanted = distilled_ranknet(s, teacher, LABELS, ALL, heads=heads)
    assert torch.allclose(distilled_ranknet(s + shift, teacher, LABELS, ALL, heads=heads), wanted)
    assert torch.equal(distilled_ranknet(s, (teacher / 100).exp(), LABELS, ALL, heads=heads), wanted)
    assert torch.equal(distilled_ranknet(s, 0.01 * teacher - 3, LABELS, ALL, heads=heads), wanted)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    moved = distilled_ranknet(s[:, order], teacher[:, order], LABELS[:, order], ALL, heads=heads)
    assert torch.allclose(moved, wanted)
    more = [torch.cat([x, torch.full((3, 2), fill, dtype=x.dtype)], 1)
            for x, fill in ((s, torch.nan), (teacher, torch.nan), (LABELS, 1), (ALL, False))]  # fmt: skip
    assert torch.allclose(distilled_ranknet(*more, heads=heads), wanted)


def test_the_positive_of_a_list_need_not_please_the_teacher():
    """Positives head their lists whatever the teacher says, and are never compared with each other."""
    teacher = torch.tensor([[-9.0, -5.0, 3.0, 2.0, 1.0, 0.0]])
    s = torch.tensor([[9e4, 1e3, 0.0, -900.0, -1800.0, -2700.0]], dtype=torch.float64)
    assert distilled_ranknet(s, teacher, LABELS[:1], ALL[:1]).tolist() == [0.0]
    assert distilled_ranknet(s, teacher, LABELS[:1], ALL[:1], heads="teacher").item() > 1e4


def test_only_the_student_has_a_gradient():
    s, teacher = scores(1).requires_grad_(), scores(2).requires_grad_()
    (distilled_ranknet(s, teacher, LABELS, ALL) + logistic_ranknet(s, teacher, ALL)).sum().backward()
    assert s.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(dtype):
    half, teacher = scores(3).to(dtype), scores(4)
    found = distilled_ranknet(half, teacher, LABELS, ALL)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), distilled_ranknet(half.double(), teacher, LABELS, ALL), rtol=1e-5)
    found = logistic_ranknet(half, teacher, ALL, temperature=100)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), logistic_ranknet(half.double(), teacher, ALL, temperature=100), rtol=1e-5)


def test_lists_without_a_pair_give_zero_and_no_gradient():
    mask, labels, s = ALL.clone(), LABELS.clone(), scores(1).requires_grad_()
    mask[0], labels[1] = False, 1
    loss = distilled_ranknet(s, scores(2), labels, mask)
    assert loss[:2].tolist() == [0.0, 0.0], "all masked; only positives"
    assert loss[2] > 0
    assert distilled_ranknet(s, scores(2), 0 * labels, ALL).tolist() == [0.0] * 3, "no positives"
    loss.sum().backward()
    assert not s.grad[:2].any()
    assert s.grad[2].any()


def test_gradient():
    s, teacher, mask = scores(4).requires_grad_(), scores(5), ALL.clone()
    mask[1, 4:] = False
    for heads in HEADS:
        assert distilled_ranknet(s, teacher, LABELS, mask, heads=heads).all()
        assert torch.autograd.gradcheck(lambda x, h=heads: distilled_ranknet(x, teacher, LABELS, mask, heads=h), s)
    assert torch.autograd.gradcheck(lambda x: logistic_ranknet(x, teacher, mask, temperature=100), s)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="got margin=-1"):
        distilled_ranknet(scores(1), scores(2), LABELS, ALL, margin=-1)
    with pytest.raises(ValueError, match="heads='both'"):
        distilled_ranknet(scores(1), scores(2), LABELS, ALL, heads="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        logistic_ranknet(scores(1), scores(2), ALL, temperature=0)


# RankNet


def test_ranknet_by_hand():
    found = logistic_ranknet(torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[2.0, 1.0]]), ALL[:1, :2])
    assert found.tolist() == pytest.approx([math.log(4.0)])
    assert logistic_ranknet(torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]]), ALL[:1, :3]).tolist() == pytest.approx(
        [math.log(2.0)]
    )


def test_ranknet_is_zero_far_apart_in_the_teachers_order_and_without_pairs():
    teacher = torch.tensor([[3.0, 2.0, 1.0]])
    assert logistic_ranknet(1e4 * teacher, teacher, ALL[:1, :3]).item() == 0.0
    assert logistic_ranknet(-1e4 * teacher, teacher, ALL[:1, :3]).item() == pytest.approx(4e4 / 3)
    assert logistic_ranknet(teacher, 0 * teacher, ALL[:1, :3]).item() == 0.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 200), shift=st.floats(-50, 50), scale=st.sampled_from([1.0, 1e5]))
def test_ranknet_agrees_with_a_naive_loop_in_any_order_and_with_padding(seed, shift, scale):
    s, teacher = scores(seed, scale), scores(seed + 1).round(decimals=-2)
    found = logistic_ranknet(s + shift, teacher, ALL, temperature=50)
    for b in range(3):
        terms = [max(x, 0) + math.log1p(math.exp(-abs(x))) for i in range(6) for j in range(6)
                 if teacher[b, i] > teacher[b, j] for x in [float(s[b, j] - s[b, i]) / 50]]  # fmt: skip
        assert found[b].item() == pytest.approx(sum(terms) / max(1, len(terms)), rel=1e-6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(logistic_ranknet(s[:, order] + shift, teacher[:, order], ALL, temperature=50), found)
    more = [torch.cat([x, torch.full((3, 2), fill, dtype=x.dtype)], 1)
            for x, fill in ((s + shift, torch.nan), (teacher, 1e9), (ALL, False))]  # fmt: skip
    assert torch.allclose(logistic_ranknet(*more, temperature=50), found)


def test_ranknet_all_masked():
    s = scores(1).requires_grad_()
    loss = logistic_ranknet(s, scores(2), ~ALL)
    assert loss.tolist() == [0.0] * 3
    loss.sum().backward()
    assert not s.grad.any()


def test_ranks():
    values = torch.tensor([[3.0, 9.0, 3.0, 99.0, -5.0]])
    mask = torch.tensor([[True, True, True, False, True]])
    assert ranks(values, mask).tolist() == [[1, 0, 2, 4, 3]]
    assert best_first(values, mask).tolist() == [[1, 0, 2, 4, 3]]
