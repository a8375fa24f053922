"""
An encoder-decoder for identifiers and answers: BART, T5 or BERT-to-BERT, with or without a copy head.

Shapes: B sources, N passages of a source, L tokens of a passage, S = L or N * L source positions, K rows per source,
R = B * K decoder rows, T decoder tokens, E width, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gr_components.models.seq2seq.copying import CopyConfig, CopyHead, CopyKeys, teacher_categories
from gr_components.models.seq2seq.decoder import MASKED, CrossCache, DecoderCore
from gr_components.models.seq2seq.families import family_of


@dataclass
class Memory:
    """
    Encoded sources.

    :param states_BSE: Encoder states; passages of one source stand one after the other.
    :param mask_BS: True on real tokens.
    :param ids_BS: Source tokens.
    :param copyable_BS: True where the copy head may point.
    :param length: Positions of one passage L; S if there is one passage.
    :param prior_BS: Added to the logits of attention over the positions, at most 0; None for nothing.
    """

    states_BSE: Tensor
    mask_BS: Tensor
    ids_BS: Tensor
    copyable_BS: Tensor
    length: int
    prior_BS: Tensor | None = None

    def select(self, sources_N: Tensor) -> "Memory":
        """
        Return some sources.

        :param sources_N: Source numbers, repeats allowed.
        """
        states, mask, ids, copyable = (
            x.index_select(0, sources_N) for x in (self.states_BSE, self.mask_BS, self.ids_BS, self.copyable_BS)
        )
        prior = None if self.prior_BS is None else self.prior_BS.index_select(0, sources_N)
        return Memory(states, mask, ids, copyable, self.length, prior)


class Seq2SeqModel(nn.Module):
    """
    A Hugging Face encoder-decoder, run through the shared decoder module.

    :param hf: BartForConditionalGeneration, T5ForConditionalGeneration, or an EncoderDecoderModel of two BERTs.
    :param copy: Configuration of a copy head; None for none.
    """

    def __init__(self, hf: Any, copy: CopyConfig | None = None) -> None:
        super().__init__()
        self.hf = hf
        self.family = family_of(hf)
        self.core = DecoderCore(self.family)
        width = hf.get_input_embeddings().weight.shape[1]
        self.copy = CopyHead(width, copy) if copy is not None else None

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids V."""
        return int(self.hf.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def encode(self, ids_BL: Tensor, mask_BL: Tensor, copyable_BL: Tensor | None = None) -> Memory:
        """
        Encode sources.

        :param ids_BL: Source tokens, padded on the right.
        :param mask_BL: True on real tokens.
        :param copyable_BL: True where the copy head may point; real tokens by default.
        """
        states = self.hf.get_encoder()(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        return Memory(
            states, mask_BL, ids_BL, mask_BL if copyable_BL is None else copyable_BL & mask_BL, ids_BL.shape[1]
        )

    def encode_fused(
        self, ids_BNL: Tensor, mask_BNL: Tensor, copyable_BNL: Tensor | None = None, *, chunk: int | None = None,
        prior_BN: Tensor | None = None,
    ) -> Memory:  # fmt: skip
        """
        Encode passages one by one and put the states of a source side by side.

        This is Fusion-in-Decoder (https://arxiv.org/abs/2007.01282).

        :param ids_BNL: Tokens of N passages of each source.
        :param mask_BNL: True on real tokens; a passage may be all padding.
        :param copyable_BNL: True where the copy head may point; real tokens by default.
        :param chunk: Passages to encode at a time; all by default.
        :param prior_BN: Added to the logits of attention to each passage, at most 0; by default all are equal.
        """
        sources, passages, length = ids_BNL.shape
        ids, mask = ids_BNL.reshape(-1, length), mask_BNL.reshape(-1, length)
        # A passage of padding alone still needs one position to attend to; it stays masked for the decoder.
        attended = mask.clone()
        attended[:, 0] = True
        parts = torch.split(torch.arange(ids.shape[0]), chunk or max(1, ids.shape[0]))
        states = torch.cat([self.encode(ids[p], attended[p]).states_BSE for p in parts])
        merged = mask_BNL.reshape(sources, -1)
        copyable = merged if copyable_BNL is None else copyable_BNL.reshape(sources, -1) & merged
        prior = None if prior_BN is None else prior_BN.repeat_interleave(length, dim=1)
        fused = states.reshape(sources, passages * length, -1)
        return Memory(fused, merged, ids_BNL.reshape(sources, -1), copyable, length, prior)

    def project(self, memory: Memory) -> tuple[CrossCache, CopyKeys | None]:
        """
        Compute what every decoder step needs of the sources.

        :param memory: Encoded sources.
        """
        cross = self.core.project_memory(memory.states_BSE, memory.mask_BS)
        keys = None
        if self.copy is not None:
            keys = self.copy.source(memory.states_BSE, memory.ids_BS, memory.copyable_BS, memory.length)
        if memory.prior_BS is not None:
            # Not below what masks a position: half precision would overflow.
            cross = replace(cross, bias_BS=(cross.bias_BS + memory.prior_BS.to(cross.bias_BS)).clamp_min(MASKED))
            if keys is not None:
                keys = replace(keys, bias_BS=(keys.bias_BS + memory.prior_BS.to(keys.bias_BS)).clamp_min(MASKED))
        return cross, keys

    def log_probs(self, memory: Memory, inputs_RT: Tensor, targets_RT: Tensor, real_RT: Tensor) -> Tensor:
        """
        Log-probability of each target token under teacher forcing.

        :param memory: B encoded sources; row r belongs to source r // (R / B).
        :param inputs_RT: Decoder inputs: start tokens, then the targets shifted right.
        :param targets_RT: Target tokens.
        :param real_RT: True on tokens that count.
        :returns: (R, T), float32, 0 where `real_RT` is false.
        """
        return self.teacher_forced(memory, inputs_RT, targets_RT, real_RT)[0]

    def teacher_forced(
        self,
        memory: Memory,
        inputs_RT: Tensor,
        targets_RT: Tensor,
        real_RT: Tensor,
        projected: tuple[CrossCache, CopyKeys | None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Return what `log_probs` does, and the copy head's attention at the first step.

        :param memory: B encoded sources; row r belongs to source r // (R / B).
        :param inputs_RT: Decoder inputs.
        :param targets_RT: Target tokens.
        :param real_RT: True on tokens that count.
        :param projected: What `project` gave for the sources; computed if None.
        :returns: Log-probabilities (R, T), and the log-attention (R, S) of the first token over source positions,
            for an auxiliary loss on where an answer starts; None without a copy head.
        """
        cross, keys = self.project(memory) if projected is None else projected
        matches = extra = None
        if self.copy is not None and keys is not None:
            if self.copy.config.follows:
                matches = teacher_categories(memory.ids_BS, memory.copyable_BS, inputs_RT, memory.length)
            extra = self.copy.read_states(keys, matches)
        states_RTE = self.core(inputs_RT, cross, extra_RTE=extra).states_RTE
        generated = torch.zeros(targets_RT.shape, dtype=torch.float32, device=targets_RT.device)
        # The vocabulary projection is most of the work: only for tokens that count.
        logits_NV = self.family.logits(states_RTE[real_RT])
        chosen = -nn.functional.cross_entropy(logits_NV.float(), targets_RT[real_RT], reduction="none")
        generated = generated.masked_scatter(real_RT, chosen)
        if self.copy is None or keys is None:
            return generated, None
        mixed, log_attention = self.copy.target_log_probs(generated, states_RTE, targets_RT, keys, matches)
        return mixed.masked_fill(~real_RT, 0.0), log_attention[:, 0]

    def passage_relevance(self, memory: Memory, start_token: int, passages: int) -> Tensor:
        """
        How much the decoder attends to each passage before it writes its first token.

        The mean of the pre-softmax cross-attention logits of the first step over layers, heads and a passage's tokens
        (Izacard & Grave, 2021, https://arxiv.org/abs/2012.04584), computed through the mean key of a passage.

        :param memory: Sources from `encode_fused`.
        :param start_token: The decoder's start token.
        :param passages: Number of passages N.
        :returns: (B, N); passages without tokens get minus infinity.
        """
        cross = self.core.project_memory(memory.states_BSE, memory.mask_BS)
        sources = memory.ids_BS.shape[0]
        start = torch.full((sources, 1), start_token, dtype=torch.long, device=memory.ids_BS.device)
        queries = self.core(start, cross).cross_queries_RTHD
        mask_BNL = memory.mask_BS.reshape(sources, passages, -1)
        num_BN = mask_BNL.sum(-1)
        total = torch.zeros(sources, passages, device=memory.states_BSE.device)
        for query_BTHD, keys_BHSD in zip(queries, cross.keys_BHSD, strict=True):
            keys = keys_BHSD.float().reshape(sources, keys_BHSD.shape[1], passages, -1, keys_BHSD.shape[-1])
            mean_BHND = (keys * mask_BNL[:, None, :, :, None]).sum(3) / num_BN.clamp_min(1)[:, None, :, None]
            total += torch.einsum("bhd,bhnd->bn", query_BTHD[:, 0].float(), mean_BHND) / keys_BHSD.shape[1]
        return (total / len(queries)).masked_fill(num_BN == 0, float("-inf"))
