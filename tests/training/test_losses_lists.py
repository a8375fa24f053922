"""The six tests of a loss, for the list-wise losses that copy a teacher or labels, and for their targets."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_training.losses.lambda_loss import lambda_loss
from gr_training.losses.listwise import list_mle, listwise_infonce, listwise_kl
from gr_training.losses.regression import margin_mse
from gr_training.losses.targets import positives_first, rank_grades

ALL = torch.ones(3, 5, dtype=torch.bool)
LABELS = torch.tensor([[1, 0, 0, 1, 0], [0, 2, 0, 0, 0], [0, 0, 0, 0, 1]])
GRADES = torch.tensor([[3, 0, 1, 1, 0], [0, 2, 1, 0, 0], [4, 3, 2, 1, 0]])

Loss = Callable[..., torch.Tensor]


def scores(seed: int, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def grades_of(labels: torch.Tensor) -> torch.Tensor:
    return 2 * labels


# Each: scores, teacher, labels, mask -> loss_B.
LOSSES: dict[str, Loss] = {
    "list_mle": lambda s, t, labels, mask, **o: list_mle(s, t, mask, **o),
    "kl": lambda s, t, labels, mask, **o: listwise_kl(s, t, mask, teacher_temperature=0.7, **o),
    "infonce": lambda s, t, labels, mask, **o: listwise_infonce(s, labels, mask, **o),
    "lambda": lambda s, t, labels, mask, **o: lambda_loss(s, grades_of(labels), mask, **o),
    "margin_mse": lambda s, t, labels, mask, **o: margin_mse(s, t, labels, mask, **o),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Loss:
    return LOSSES[request.param]


def every(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return scores(seed), scores(seed + 1000)


# Values by hand


def test_list_mle_by_hand():
    s = torch.tensor([[math.log(1.0), math.log(2.0), math.log(3.0)]])
    found = list_mle(s, torch.tensor([[5.0, 9.0, 1.0]]), ALL[:1, :3])
    assert found.tolist() == pytest.approx([-math.log(2 / 6) - math.log(1 / 4)])


def test_kl_by_hand():
    s, t = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert listwise_kl(s, t, ALL[:1, :2]).tolist() == pytest.approx([wanted])
    assert listwise_kl(s, 5 * t, ALL[:1, :2], teacher_temperature=5.0).tolist() == pytest.approx([wanted])
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert listwise_kl(4 * t, s, ALL[:1, :2], temperature=4.0).tolist() == pytest.approx([reverse])


def test_infonce_by_hand():
    s = torch.tensor([[math.log(3.0), math.log(2.0), 0.0, 0.0]])
    found = listwise_infonce(s, torch.tensor([[1, 1, 0, 0]]), ALL[:1, :4])
    assert found.tolist() == pytest.approx([0.5 * (math.log(5 / 3) + math.log(4 / 2))])
    assert listwise_infonce(7 * s, torch.tensor([[1, 1, 0, 0]]), ALL[:1, :4], temperature=7.0).tolist() == (
        pytest.approx(found.tolist())
    )


def test_lambda_loss_by_hand():
    # Grades 2 and 1; the one with grade 1 leads by log 3. Best DCG: 3 / 1 + 1 / log2(3).
    s, ideal = torch.tensor([[0.0, math.log(3.0)]]), 3 + 1 / math.log2(3)
    rank, bound = 1 - 1 / math.log2(3), 1 / math.log2(2) - 1 / math.log2(3)
    wanted = (3 - 1) / ideal * (rank + 10 * bound) * math.log2(4)
    assert lambda_loss(s, torch.tensor([[2, 1]]), ALL[:1, :2]).tolist() == pytest.approx([wanted])
    plain = (3 - 1) / ideal * rank * math.log2(4)
    assert lambda_loss(s, torch.tensor([[2, 1]]), ALL[:1, :2], mu=0.0).tolist() == pytest.approx([plain])


def test_margin_mse_by_hand():
    s, t = torch.tensor([[5.0, 3.0, 1.0]]), torch.tensor([[9.0, 8.0, 2.0]])
    # Margins 2 and 4 against 1 and 7.
    assert margin_mse(s, t, torch.tensor([[1, 0, 0]]), ALL[:1, :3]).tolist() == [(1 + 9) / 2]
    assert margin_mse(10 * s, t, torch.tensor([[1, 0, 0]]), ALL[:1, :3], temperature=10).tolist() == [(1 + 9) / 2]


# Zero where theory says zero


def test_zero_in_the_limit_or_exactly():
    far = torch.tensor([[5.0, 4, 3, 2, 1]] * 3, dtype=torch.float64)
    assert list_mle(1e3 * far, far, ALL).tolist() == [0.0] * 3
    assert list_mle(1e3 * far, -far, ALL).min() > 1e3
    assert list_mle(scores(0)[:, :1], scores(1)[:, :1], ALL[:, :1]).tolist() == [0.0] * 3
    assert listwise_infonce(torch.where(LABELS > 0, 1e3, 0.0), LABELS, ALL).tolist() == [0.0] * 3
    assert lambda_loss(1e3 * far, rank_grades(far, ALL), ALL).tolist() == [0.0] * 3
    assert lambda_loss(scores(0), 0 * GRADES + 2, ALL).tolist() == [0.0] * 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_zero_exactly_where_student_and_teacher_agree_up_to_a_constant(seed, shift, scale):
    t = scores(seed)
    assert listwise_kl(scale * t + shift, t, ALL, temperature=scale).abs().max() < 1e-9
    assert margin_mse(scale * t + shift, t, LABELS, ALL, temperature=scale).abs().max() < 1e-18 * 1e4
    assert (listwise_kl(scores(seed + 1), t, ALL) > 1e-6).all()
    assert (margin_mse(scores(seed + 1), t, LABELS, ALL) > 1e-6).all()


# Invariance, masks, precision, gradients: the same for all


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 200), shift=st.floats(-50, 50), scale=st.sampled_from([1.0, 1e4]),
    name=st.sampled_from([*LOSSES]),
)  # fmt: skip
def test_shift_order_and_padding_change_nothing(seed, shift, scale, name):
    loss, (s, t) = LOSSES[name], every(seed)
    s = s * scale
    wanted = loss(s, t, LABELS, ALL)
    assert (wanted >= 0).all()
    assert torch.allclose(loss(s + shift, t, LABELS, ALL), wanted, atol=1e-7 * scale)
    assert torch.allclose(loss(s, t + shift, LABELS, ALL), wanted, atol=1e-7 * scale)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(loss(s[:, order], t[:, order], LABELS[:, order], ALL), wanted)
    for fill in (1e6, math.nan, math.inf):
        more = [torch.cat([x, torch.full((3, 2), value, dtype=x.dtype)], 1)
                for x, value in ((s, fill), (t, fill), (LABELS, 1), (ALL, False))]  # fmt: skip
        more[0] = more[0].requires_grad_()
        padded = loss(*more)
        assert torch.allclose(padded, wanted)
        padded.sum().backward()
        assert torch.isfinite(more[0].grad).all()
        assert not more[0].grad[:, 5:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(loss, dtype):
    s, t = every(3)
    half, t = (50 * s).to(dtype), t.float()
    found = loss(half, t, LABELS, ALL, temperature=50.0)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), loss(half.double(), t, LABELS, ALL, temperature=50.0), rtol=1e-4)


def test_all_masked_gives_zero_and_no_gradient(loss):
    s, t = every(1)
    mask, s = ALL.clone(), s.requires_grad_()
    mask[0] = False
    found = loss(s, t, LABELS, mask)
    assert found[0] == 0
    assert (found[1:] > 0).all()
    found.sum().backward()
    assert torch.isfinite(s.grad).all()
    assert not s.grad[0].any()
    assert s.grad[1:].any(dim=1).all()


@pytest.mark.parametrize("name", ["infonce", "lambda", "margin_mse"])
def test_lists_of_one_kind_give_zero(name):
    s, t = every(1)
    s = s.requires_grad_()
    for labels in (torch.zeros_like(LABELS), torch.ones_like(LABELS)):
        found = LOSSES[name](s, t, labels, ALL)
        assert found.tolist() == [0.0] * 3
        found.sum().backward()
        assert not s.grad.any()


def test_gradient(loss):
    s, t = every(4)
    mask = ALL.clone()
    mask[1, 3:] = False
    assert loss(s, t, LABELS, mask).all()
    assert torch.autograd.gradcheck(lambda x: loss(x, t, LABELS, mask), s.requires_grad_())


def test_the_gradient_is_the_students_unless_the_teacher_is_joined(loss):
    s, t = every(2)
    s, t = s.requires_grad_(), t.requires_grad_()
    loss(s, t, LABELS, ALL).sum().backward()
    assert s.grad.any()
    assert t.grad is None


def test_a_joined_teacher_gets_a_gradient():
    s, t = scores(1), scores(2)
    kl = lambda teacher: listwise_kl(s, teacher, ALL, teacher_temperature=2.0, detach_teacher=False)  # noqa: E731
    mse = lambda teacher: margin_mse(s, teacher, LABELS, ALL, detach_teacher=False)  # noqa: E731
    for joined in (kl, mse):
        teacher = t.clone().requires_grad_()
        assert torch.autograd.gradcheck(joined, teacher)
        joined(teacher).sum().backward()
        assert teacher.grad.any()


# Naive loops


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 200))
def test_agree_with_naive_loops(seed):
    (s_BD, t_BD), labels_BD = every(seed), LABELS
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) > 0.2
    found = {name: loss(s_BD, t_BD, labels_BD, mask) for name, loss in LOSSES.items()}
    found["lambda"] = lambda_loss(s_BD, GRADES, mask)
    for b in range(3):
        rows = [d for d in range(5) if mask[b, d]]
        s, t, labels = s_BD[b].tolist(), t_BD[b].tolist(), labels_BD[b].tolist()
        wanted = dict.fromkeys(LOSSES, 0.0)
        for place, d in enumerate(order := sorted(rows, key=lambda d: -t[d])):
            wanted["list_mle"] += math.log(sum(math.exp(s[e]) for e in order[place:])) - s[d]
        total_s, total_t = (sum(math.exp(x[d] / h) for d in rows) for x, h in ((s, 1), (t, 0.7)))
        for d in rows:
            q = math.exp(t[d] / 0.7) / total_t
            wanted["kl"] += q * (math.log(q) - s[d] + math.log(total_s))
        good, bad = [d for d in rows if labels[d] > 0], [d for d in rows if labels[d] <= 0]
        if good and bad:
            rest = sum(math.exp(s[d]) for d in bad)
            wanted["infonce"] = sum(math.log((math.exp(s[d]) + rest) / math.exp(s[d])) for d in good) / len(good)
            errors = [((s[g] - s[n]) - (t[g] - t[n])) ** 2 for g in good for n in bad]
            wanted["margin_mse"] = sum(errors) / len(errors)
        wanted["lambda"] = naive_lambda({d: s[d] for d in rows}, {d: GRADES[b, d].item() for d in rows})
        for name, value in wanted.items():
            assert found[name][b].item() == pytest.approx(value, rel=1e-6, abs=1e-6), name


def naive_lambda(s: dict[int, float], grades: dict[int, int], mu: float = 10.0) -> float:
    ideal = sum((2**g - 1) / math.log2(2 + i) for i, g in enumerate(sorted(grades.values(), reverse=True)))
    rank = {d: 1 + place for place, d in enumerate(sorted(s, key=lambda d: -s[d]))}
    total = 0.0
    for i in s:
        for j in s:
            if grades[i] > grades[j]:
                gain = (2 ** grades[i] - 2 ** grades[j]) / ideal
                far = abs(rank[i] - rank[j])
                swap = abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j]))
                bound = abs(1 / math.log2(1 + far) - 1 / math.log2(2 + far))
                total += gain * (swap + mu * bound) * math.log2(1 + math.exp(s[j] - s[i]))
    return total


def test_settings_out_of_range(loss):
    s, t = every(1)
    with pytest.raises(ValueError, match=r"temperature must be > 0.*0"):
        loss(s, t, LABELS, ALL, temperature=0)
    with pytest.raises(ValueError, match="mu=-1"):
        lambda_loss(s, GRADES, ALL, mu=-1)


# Targets


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 200), gap=st.floats(0, 3))
def test_positives_first(seed, gap):
    t, mask = scores(seed), torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) > 0.2
    found = positives_first(t, LABELS, mask, gap=gap)
    assert torch.isfinite(found).all()
    for b in range(3):
        good, bad = mask[b] & (LABELS[b] > 0), mask[b] & (LABELS[b] <= 0)
        assert torch.equal(found[b][bad], t[b][bad])
        if good.any():
            raised = found[b][good] - t[b][good]
            assert torch.allclose(raised, raised[:1])
            if bad.any():
                lead = found[b][good].min() - found[b][bad].max()
                assert lead >= gap - 1e-9
                agreed = t[b][good].min() - t[b][bad].max() >= gap
                assert (raised[0] == 0).item() == bool(agreed)
            else:
                assert raised[0] == 0


def test_rank_grades():
    teacher, mask = torch.tensor([[0.1, 9.0, 5.0, 99.0], [1.0, 1.0, 1.0, 1.0]]), ALL[:2, :4].clone()
    mask[0, 3] = False
    mask[1, 1:] = False
    assert rank_grades(teacher, mask).tolist() == [[0, 4, 2, 0], [4, 0, 0, 0]]
    assert rank_grades(teacher, mask, highest=1.0)[0].tolist() == [0, 1, 0.5, 0]
