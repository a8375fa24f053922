"""The six tests of a loss, for `sequence_nll`."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gr_training.losses.sequence import sequence_nll

REAL = torch.tensor([[True, True, True], [True, False, False]])


def logits(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


TARGETS = torch.tensor([[1, 4, 6], [0, 2, 3]])


def loss_of(values: torch.Tensor, smoothing: float = 0.0, real: torch.Tensor = REAL) -> torch.Tensor:
    log_p = torch.log_softmax(values, dim=-1)
    chosen = log_p.gather(-1, TARGETS[..., None])[..., 0]
    return sequence_nll(chosen, real, smoothing=smoothing, uniform_RT=log_p.mean(-1))


def test_value_by_hand():
    given = torch.tensor([[math.log(0.5), math.log(0.25), -9.0]])
    assert sequence_nll(given, REAL[1:].logical_or(torch.tensor([False, True, False]))).tolist() == [
        pytest.approx([math.log(2), math.log(4), 0.0])
    ]
    smooth = sequence_nll(given, REAL[:1], smoothing=0.1, uniform_RT=torch.full((1, 3), -2.0))
    assert smooth[0, 0].item() == pytest.approx(0.9 * math.log(2) + 0.1 * 2.0)


def test_zero_where_theory_says_zero():
    assert sequence_nll(torch.zeros(2, 3), REAL).sum() == 0
    uniform = torch.zeros(2, 3, 7, dtype=torch.float64)
    assert torch.allclose(loss_of(uniform, 0.3)[REAL], torch.tensor(math.log(7.0), dtype=torch.float64))


@given(seed=st.integers(0, 100), shift=st.floats(-50, 50), scale=st.sampled_from([1.0, 1e4]))
def test_shifted_logits_order_and_padding_change_nothing(seed, shift, scale):
    wanted = loss_of(logits(seed, scale), 0.1)
    assert torch.allclose(loss_of(logits(seed, scale) + shift, 0.1), wanted, atol=1e-6 * scale)
    log_p = torch.log_softmax(logits(seed, scale), dim=-1).gather(-1, TARGETS[..., None])[..., 0]
    plain = sequence_nll(log_p, REAL)
    assert torch.equal(sequence_nll(log_p[[1, 0]], REAL[[1, 0]]), plain[[1, 0]])
    more = torch.cat([log_p, torch.full((2, 2), -math.inf, dtype=torch.float64)], dim=1)
    padded = sequence_nll(more, torch.cat([REAL, torch.zeros(2, 2, dtype=torch.bool)], dim=1))
    assert torch.equal(padded[:, :3], plain)
    assert not padded[:, 3:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32(dtype):
    half = -torch.rand(2, 3, generator=torch.Generator().manual_seed(1)).to(dtype) * 50
    found = sequence_nll(half, REAL)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), sequence_nll(half.double(), REAL), rtol=1e-6)


def test_all_masked_gives_zero_and_no_gradient():
    given_log_p = torch.full((2, 3), -math.inf, dtype=torch.float64, requires_grad=True)
    loss = sequence_nll(given_log_p, torch.zeros_like(REAL), smoothing=0.1, uniform_RT=given_log_p)
    assert loss.sum() == 0
    loss.sum().backward()
    assert given_log_p.grad is not None
    assert not given_log_p.grad.any()


def test_gradient():
    assert torch.autograd.gradcheck(lambda x: loss_of(x, 0.1), logits(3).requires_grad_())


def test_agrees_with_cross_entropy():
    for smoothing in (0.0, 0.1):
        wanted = F.cross_entropy(logits(2).transpose(1, 2), TARGETS, reduction="none", label_smoothing=smoothing)
        assert torch.allclose(loss_of(logits(2), smoothing)[REAL], wanted[REAL])


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), got 1"):
        sequence_nll(torch.zeros(2, 3), REAL, smoothing=1)
    with pytest.raises(ValueError, match="needs uniform_RT"):
        sequence_nll(torch.zeros(2, 3), REAL, smoothing=0.1)
