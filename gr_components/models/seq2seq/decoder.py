"""
The decoder step module: one forward for training, beam search, scoring and export, with explicit cache tensors.

Two things make it faster than repeating the encoder's output for every beam: cross-attention keys and values are
computed once per source, and the K decoder rows of a source are the rows of ONE attention over them.

Shapes: B sources, K rows of each, R = B * K rows (row r belongs to source r // K), S source positions, T new tokens,
P cached tokens, H heads, D width of a head, E width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gr_components.models.seq2seq.families import DecoderFamily

# Finite, so that a row without any allowed position gives a flat distribution instead of NaN; within float16's range
# also when a position bias is added.
MASKED = -3e4


@dataclass
class CrossCache:
    """
    Projected memory, once per source.

    :param keys_BHSD: Keys, one tensor per layer.
    :param values_BHSD: Values, one tensor per layer.
    :param bias_BS: 0 on positions that may be attended, a large negative number on padding.
    """

    keys_BHSD: list[Tensor]
    values_BHSD: list[Tensor]
    bias_BS: Tensor

    def select(self, sources_N: Tensor) -> "CrossCache":
        """
        Return the cache of some sources.

        :param sources_N: Source numbers, repeats allowed.
        """
        keys = [k.index_select(0, sources_N) for k in self.keys_BHSD]
        values = [v.index_select(0, sources_N) for v in self.values_BHSD]
        return CrossCache(keys, values, self.bias_BS.index_select(0, sources_N))


@dataclass
class DecoderOutput:
    """
    What one forward returns.

    :param states_RTE: Output states; `family.logits` maps them to the vocabulary.
    :param keys_RHPD: Self-attention keys of all tokens so far, one tensor per layer.
    :param values_RHPD: Self-attention values, likewise.
    :param cross_queries_RTHD: Scaled cross-attention queries, one per layer (for the passage relevance of FiD).
    """

    states_RTE: Tensor
    keys_RHPD: list[Tensor]
    values_RHPD: list[Tensor]
    cross_queries_RTHD: list[Tensor]


class DecoderCore(nn.Module):
    """
    Runs a family's decoder with explicit caches.

    :param family: The adapter; its modules stay registered in the Hugging Face model, not here.
    """

    def __init__(self, family: DecoderFamily) -> None:
        super().__init__()
        self.family = family

    def project_memory(self, states_BSE: Tensor, mask_BS: Tensor) -> CrossCache:
        """
        Project encoder states to every layer's cross-attention keys and values.

        :param states_BSE: Encoder states.
        :param mask_BS: True on real positions.
        """
        keys, values = [], []
        for index in range(self.family.num_layers):
            key, value = self.family.memory_projections(index)
            keys.append(self._heads(key(states_BSE)))
            values.append(self._heads(value(states_BSE)))
        bias_BS = torch.zeros(mask_BS.shape, dtype=keys[0].dtype, device=states_BSE.device).masked_fill(
            ~mask_BS, MASKED
        )
        return CrossCache(keys, values, bias_BS)

    def forward(
        self,
        ids_RT: Tensor,
        cross: CrossCache,
        past_keys: list[Tensor] | None = None,
        past_values: list[Tensor] | None = None,
        rows_R: Tensor | None = None,
        extra_RTE: Tensor | None = None,
    ) -> DecoderOutput:
        """
        Feed T tokens to every row.

        :param ids_RT: Token ids.
        :param cross: The sources' projected memory.
        :param past_keys: Cached keys (R', H, P, D) per layer; None at the start.
        :param past_values: Cached values, likewise.
        :param rows_R: Which cached row each row continues; None if rows are in place.
        :param extra_RTE: Added to the embeddings; None for nothing.
        """
        family = self.family
        new = ids_RT.shape[1]
        past = 0 if past_keys is None else past_keys[0].shape[2]
        bias = self._self_bias(past, new, cross.bias_BS)
        x_RTE = family.embed(ids_RT, past)
        if extra_RTE is not None:
            x_RTE = x_RTE + extra_RTE.to(x_RTE.dtype)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        cross_queries: list[Tensor] = []
        for index in range(family.num_layers):

            def attend_self(query: Tensor, key: Tensor, value: Tensor, index: int = index) -> Tensor:
                key_RHPD, value_RHPD = self._heads(key), self._heads(value)
                if past_keys is not None and past_values is not None:
                    before_k, before_v = past_keys[index], past_values[index]
                    if rows_R is not None:
                        before_k, before_v = before_k.index_select(0, rows_R), before_v.index_select(0, rows_R)
                    key_RHPD = torch.cat([before_k, key_RHPD], dim=2)
                    value_RHPD = torch.cat([before_v, value_RHPD], dim=2)
                keys.append(key_RHPD)
                values.append(value_RHPD)
                return self._merge(self._attend(self._heads(query), key_RHPD, value_RHPD, bias))

            def attend_cross(query: Tensor, index: int = index) -> Tensor:
                return self._cross(query, cross, index, cross_queries)

            x_RTE = family.layer(index, x_RTE, attend_self, attend_cross)
        return DecoderOutput(family.finish(x_RTE), keys, values, cross_queries)

    def _cross(self, query_RTE: Tensor, cross: CrossCache, index: int, queries: list[Tensor]) -> Tensor:
        sources = cross.bias_BS.shape[0]
        rows, new, width = query_RTE.shape
        merged = self._heads(query_RTE.reshape(sources, rows // sources * new, width))
        queries.append(
            merged.transpose(1, 2).reshape(rows, new, self.family.num_heads, -1) * self.family.attention_scale
        )
        attended = self._attend(
            merged, cross.keys_BHSD[index], cross.values_BHSD[index], cross.bias_BS[:, None, None, :]
        )
        return self._merge(attended).reshape(rows, new, width)

    def _self_bias(self, past: int, new: int, like: Tensor) -> Tensor | None:
        bias = self.family.position_bias(past, new)
        if new > 1:
            later_TS = torch.ones(new, past + new, dtype=torch.bool, device=like.device).triu(past + 1)
            causal = torch.zeros(new, past + new, dtype=like.dtype, device=like.device).masked_fill(later_TS, MASKED)
            bias = causal if bias is None else bias + causal
        return bias

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        family = self.family
        drop = family.attention_dropout if self.training else 0.0
        if query.device.type != "cpu":
            mask = None if bias is None else bias.to(query.dtype)
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=drop, scale=family.attention_scale
            )
        # On CPUs the backward of scaled_dot_product_attention costs a third of a training step; plain products do not.
        scores = torch.matmul(query * family.attention_scale, key.transpose(-1, -2))
        if bias is not None:
            scores = scores + bias
        weights = torch.softmax(scores, dim=-1, dtype=scores.dtype)
        return torch.matmul(functional.dropout(weights, drop, self.training), value)

    def _heads(self, x_RTE: Tensor) -> Tensor:
        return x_RTE.reshape(x_RTE.shape[0], x_RTE.shape[1], self.family.num_heads, -1).transpose(1, 2)

    @staticmethod
    def _merge(x_RHTD: Tensor) -> Tensor:
        rows, heads, new, size = x_RHTD.shape
        return x_RHTD.transpose(1, 2).reshape(rows, new, heads * size)
