"""What a reader learns from: answers written after their start, where they stand, and the loss of both."""

import numpy as np
import pytest
import torch

from gr_training.reading.batches import answer_starts, reader_loss


def test_answer_starts() -> None:
    ids = np.array([[7, 1, 2, 1, 2], [1, 2, 2, 1, 1]])
    context = np.array([[True, True, True, True, False], [False, True, True, True, True]])
    found = answer_starts(ids, context, [1, 2])
    assert np.argwhere(found).tolist() == [[0, 1]]
    assert np.argwhere(answer_starts(ids, context, [1])).tolist() == [[0, 1], [0, 3], [1, 3], [1, 4]]
    assert not answer_starts(ids, context, [1, 2, 1, 2, 2]).any()


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_loss_is_that_of_the_answers_and_of_where_they_start(tiny, kind) -> None:
    model = tiny.model_of(kind).eval()
    generator = torch.Generator().manual_seed(1)
    ids_BNL = torch.randint(10, 40, (2, 2, 7), generator=generator)
    mask_BNL = torch.ones_like(ids_BNL, dtype=torch.bool)
    inputs_BT = torch.randint(10, 40, (2, 3), generator=generator)
    targets_BT = torch.randint(10, 40, (2, 3), generator=generator)
    real_BT = torch.tensor([[False, True, True], [False, True, False]])
    starts_BS = torch.zeros(2, 14, dtype=torch.bool)
    starts_BS[0, [3, 9]] = True  # the answer of the second question stands nowhere
    batch = {"ids_BNL": ids_BNL, "mask_BNL": mask_BNL, "context_BNL": mask_BNL, "inputs_BT": inputs_BT,
             "targets_BT": targets_BT, "real_BT": real_BT, "starts_BS": starts_BS}  # fmt: skip
    memory = model.encode_fused(ids_BNL, mask_BNL, mask_BNL)
    log_probs_BT, log_start_BS = model.teacher_forced(memory, inputs_BT, targets_BT, real_BT)
    written = -sum(log_probs_BT[b, t].item() for b, t in [(0, 1), (0, 2), (1, 1)])
    assert reader_loss(model, batch, 0.0).item() == pytest.approx(written, rel=1e-5)
    assert (log_start_BS is None) == (kind == "bart")
    placed = 0.0 if log_start_BS is None else -np.log(sum(log_start_BS[0, s].exp().item() for s in (3, 9)))
    assert reader_loss(model, batch, 0.5).item() == pytest.approx(written + 0.5 * placed, rel=1e-5)
