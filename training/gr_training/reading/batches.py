"""
A batch that teaches a reader, and its loss: questions with passages, and the answers to write.

Shapes: B questions, N passages of each, L tokens of a passage, S = N * L source positions, T decoder tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.readers.layout import ReaderLayout, pad_inputs
from gr_components.tokenization import pad


def reader_batch(
    layout: ReaderLayout, rows: Sequence[Sequence[tuple[list[int], int, int]]], answers: Sequence[Sequence[int]],
    pad_id: int,
) -> dict[str, Tensor]:  # fmt: skip
    """
    Pad inputs and answers, and find where the answers start.

    :param layout: Of the model.
    :param rows: For each of B questions its N passages, as `layout.assemble` gives them.
    :param answers: Token ids of B answers, at least one each.
    :param pad_id: The padding token.
    :returns: `ids_BNL`, `mask_BNL`, `context_BNL`, `inputs_BT`, `targets_BT`, `real_BT` and `starts_BS`, which is true
        where an answer starts.
    """
    inputs = pad_inputs(rows, pad_id)
    start = list(layout.answer_start)
    inputs_BT, real_BT = pad([[*start, *answer] for answer in answers], pad_id)
    targets_BT, _ = pad([[*start[1:], *answer, layout.stop] for answer in answers], pad_id)
    real_BT[:, : len(start) - 1] = False
    starts_BNL = np.zeros_like(inputs.context_BNL)
    for b, answer in enumerate(answers):
        starts_BNL[b] = answer_starts(inputs.ids_BNL[b], inputs.context_BNL[b], answer)
    arrays = {
        "ids_BNL": inputs.ids_BNL, "mask_BNL": inputs.mask_BNL, "context_BNL": inputs.context_BNL,
        "inputs_BT": inputs_BT, "targets_BT": targets_BT, "real_BT": real_BT,
        "starts_BS": starts_BNL.reshape(len(answers), -1),
    }  # fmt: skip
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def answer_starts(
    ids_NL: npt.NDArray[np.int64], context_NL: npt.NDArray[np.bool_], answer: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """
    Return where an answer stands in contexts: True at its first token.

    :param ids_NL: Source tokens.
    :param context_NL: True on context tokens.
    :param answer: Token ids, at least one.
    """
    found_NL = np.ones_like(context_NL)
    for offset, token in enumerate(answer):
        here_NL = np.zeros_like(context_NL)
        here_NL[:, : ids_NL.shape[1] - offset] = ((ids_NL == token) & context_NL)[:, offset:]
        found_NL &= here_NL
    return found_NL


def reader_loss(model: Seq2SeqModel, batch: Mapping[str, Tensor], start_weight: float) -> Tensor:
    """
    Return the negative log-likelihood of all answers, in nats, and with a copy head that of where they start.

    :param model: The reader.
    :param batch: From `reader_batch`.
    :param start_weight: Weight of the second part; questions whose answer stands nowhere do not count there.
    """
    memory = model.encode_fused(batch["ids_BNL"], batch["mask_BNL"], batch["context_BNL"])
    log_probs_BT, log_start_BS = model.teacher_forced(memory, batch["inputs_BT"], batch["targets_BT"], batch["real_BT"])
    total = -log_probs_BT.sum()
    if log_start_BS is None or not start_weight:
        return total
    starts_BS = batch["starts_BS"]
    mass_B = torch.logsumexp(log_start_BS.masked_fill(~starts_BS, -1e4), dim=-1)
    return total - start_weight * mass_B.masked_fill(~starts_BS.any(-1), 0.0).sum()
