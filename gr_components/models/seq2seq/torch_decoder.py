"""
The torch implementation of the decoder interface that beam search works with: numpy in, numpy out.

Shapes: B sources, K beams, R = B * K rows, L source tokens, T target tokens, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gr_components.models.seq2seq.copying import CopyKeys, categories, extend_matches
from gr_components.models.seq2seq.decoder import CrossCache
from gr_components.models.seq2seq.model import Memory, Seq2SeqModel

# Rows that are scored by teacher forcing at a time: bounds the (rows, tokens, vocabulary) logits.
_SCORE_ROWS = 256


@dataclass
class TorchSource:
    """Encoded sources and what every step needs of them."""

    memory: Memory
    cross: CrossCache
    keys: CopyKeys | None


@dataclass
class TorchState:
    """The caches of one beam search."""

    source: TorchSource
    rows: int
    past_keys: list[Tensor] | None = None
    past_values: list[Tensor] | None = None
    ids_RS: Tensor | None = None
    matches_RS: Tensor | None = None
    fed: int = 0


class TorchDecoder:
    """
    Runs a `Seq2SeqModel` step by step, without gradients.

    :param model: The model, in evaluation mode, on its device.
    """

    def __init__(self, model: Seq2SeqModel) -> None:
        self.model = model.eval()
        self.vocabulary_size = model.vocabulary_size

    @torch.inference_mode()
    def encode(self, input_ids_BL: npt.NDArray[np.int64], attention_mask_BL: npt.NDArray[np.bool_]) -> TorchSource:
        """
        Encode sources once.

        :param input_ids_BL: Source tokens, padded on the right.
        :param attention_mask_BL: True on real tokens.
        """
        return self.source(self.model.encode(self._tensor(input_ids_BL), self._tensor(attention_mask_BL).bool()))

    @torch.inference_mode()
    def encode_fused(
        self,
        ids_BNL: npt.NDArray[np.int64],
        mask_BNL: npt.NDArray[np.bool_],
        copyable_BNL: npt.NDArray[np.bool_],
        *,
        chunk: int | None = None,
        prior_BN: npt.NDArray[np.float32] | None = None,
    ) -> TorchSource:
        """
        Encode the passages of each source separately and fuse them.

        :param ids_BNL: Tokens of N passages of each source.
        :param mask_BNL: True on real tokens.
        :param copyable_BNL: True where the copy head may point.
        :param chunk: Passages to encode at a time.
        :param prior_BN: Added to the logits of attention to each passage, at most 0.
        """
        tensors = (self._tensor(ids_BNL), self._tensor(mask_BNL).bool(), self._tensor(copyable_BNL).bool())
        prior = None if prior_BN is None else self._tensor(prior_BN)
        return self.source(self.model.encode_fused(*tensors, chunk=chunk, prior_BN=prior))

    @torch.inference_mode()
    def source(self, memory: Memory) -> TorchSource:
        """
        Wrap encoded sources.

        :param memory: What `Seq2SeqModel.encode` or `encode_fused` returned.
        """
        return TorchSource(memory, *self.model.project(memory))

    @torch.inference_mode()
    def relevance(self, source: TorchSource, passages: int, start_token: int) -> npt.NDArray[np.float32]:
        """
        Relevance (B, N) of each passage; see `Seq2SeqModel.passage_relevance`.

        :param source: What `encode_fused` returned.
        :param passages: Number of passages N.
        :param start_token: The decoder's start token.
        """
        return self.model.passage_relevance(source.memory, start_token, passages).float().cpu().numpy()

    def start(self, source: TorchSource, beams: int) -> TorchState:
        """
        Start a search with `beams` rows per source and empty caches.

        :param source: Encoded sources.
        :param beams: Rows per source K.
        """
        state = TorchState(source, source.memory.ids_BS.shape[0] * beams)
        if self.model.copy is not None and self.model.copy.config.follows:
            copyable = torch.where(source.memory.copyable_BS, source.memory.ids_BS, -1)
            state.ids_RS = copyable.repeat_interleave(beams, dim=0)
            state.matches_RS = torch.zeros_like(state.ids_RS)
        return state

    @torch.inference_mode()
    def step(
        self, tokens_R: npt.NDArray[np.int64], rows_R: npt.NDArray[np.int64], state: TorchState
    ) -> npt.NDArray[np.float32]:
        """
        Feed one token to each row.

        :param tokens_R: The token of each row; the first call feeds the start token.
        :param rows_R: Which row of the previous step each row continues; ignored at the first step.
        :param state: The caches, changed in place.
        :returns: Log-probabilities (R, V) of the next token over the full vocabulary.
        """
        model, source = self.model, state.source
        tokens, rows = self._tensor(tokens_R), self._tensor(rows_R)
        first = state.past_keys is None
        category = extra = None
        if state.matches_RS is not None and state.ids_RS is not None:
            if not first:
                # Rows of one source share its tokens, so only the run lengths move with the beams.
                before = state.matches_RS.index_select(0, rows)
                state.matches_RS = extend_matches(before, state.ids_RS, tokens, source.memory.length)
            category = categories(state.matches_RS, state.fed)[:, None]
        if model.copy is not None and source.keys is not None:
            extra = model.copy.read_states(source.keys, category)
        past = (state.past_keys, state.past_values, None if first else rows)
        out = model.core(tokens[:, None], source.cross, *past, extra)
        state.past_keys, state.past_values = out.keys_RHPD, out.values_RHPD
        log_vocabulary = torch.log_softmax(model.family.logits(out.states_RTE).float(), dim=-1)
        if model.copy is not None and source.keys is not None:
            log_vocabulary = model.copy.mix(log_vocabulary, out.states_RTE, source.keys, category)
        state.fed += 1
        return np.ascontiguousarray(log_vocabulary[:, 0].float().cpu().numpy())

    @torch.inference_mode()
    def score(
        self,
        source: TorchSource,
        targets_KT: npt.NDArray[np.int64],
        decoder_start: tuple[int, ...],
        owner_K: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """
        Log-probability of each token of given targets.

        :param source: Encoded sources.
        :param targets_KT: Targets, padded on the right with -1.
        :param decoder_start: Tokens fed before the first target token.
        :param owner_K: Which source each target belongs to.
        :returns: (K, T), 0 at padding.
        """
        scores = np.zeros(targets_KT.shape, dtype=np.float32)
        prefix = len(decoder_start)
        for begin in range(0, len(targets_KT), _SCORE_ROWS):
            chunk = slice(begin, begin + _SCORE_ROWS)
            targets, owner = self._tensor(targets_KT[chunk]), self._tensor(owner_K[chunk])
            start = torch.tensor(decoder_start, device=targets.device).expand(len(targets), -1)
            real = targets >= 0
            filled = targets.clamp_min(0)
            inputs = torch.cat([start, filled[:, :-1]], dim=1)
            # With several start tokens the outputs of all but the last are not scored.
            padding = torch.zeros(len(targets), prefix - 1, dtype=torch.bool, device=targets.device)
            wanted = torch.cat([padding, real], dim=1)
            shifted = torch.cat([start[:, 1:], filled], dim=1)
            own = source.memory.select(owner)
            scores[chunk] = self.model.log_probs(own, inputs, shifted, wanted)[:, prefix - 1 :].float().cpu().numpy()
        return scores

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)
