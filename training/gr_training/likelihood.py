"""Log-probabilities of target tokens under teacher forcing."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gr_components.models.seq2seq.model import Memory, Seq2SeqModel


def token_log_probs(
    model: Seq2SeqModel, memory: Memory, block: Mapping[str, Tensor], *, with_uniform: bool = False
) -> tuple[Tensor, Tensor | None]:
    """
    Return the log-probability of each target token and, for label smoothing, the vocabulary's mean log-probability.

    :param model: An encoder-decoder.
    :param memory: B encoded sources.
    :param block: `inputs_RT`, `targets_RT`, `real_RT`; row r belongs to source r // (R / B).
    :param with_uniform: Whether the mean is wanted; only for models without a copy head.
    :returns: Two float32 (R, T), 0 where `real_RT` is false; None in place of a mean that is not wanted.
    """
    inputs_RT, targets_RT, real_RT = block["inputs_RT"], block["targets_RT"], block["real_RT"]
    if not with_uniform:
        return model.log_probs(memory, inputs_RT, targets_RT, real_RT), None
    cross, _ = model.project(memory)
    states_NE = model.core(inputs_RT, cross).states_RTE[real_RT]
    log_p_NV = torch.log_softmax(model.family.logits(states_NE).float(), dim=-1)
    empty_RT = torch.zeros(targets_RT.shape, dtype=torch.float32, device=targets_RT.device)
    chosen_N = log_p_NV.gather(1, targets_RT[real_RT][:, None])[:, 0]
    return empty_RT.masked_scatter(real_RT, chosen_N), empty_RT.masked_scatter(real_RT, log_p_NV.mean(-1))
