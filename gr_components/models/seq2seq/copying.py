"""
The copy (pointer-generator) head: a distribution over source positions, mixed with the vocabulary's.

A decoder whose cross-attention starts from nothing cannot learn to copy from a few thousand examples; a pointer
distribution (See et al., 2017, https://arxiv.org/abs/1704.04368) can. Pretrained BART and T5 do without.

Shapes: B sources, R rows (R = B * K), S source positions, T tokens, E width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gr_components.models.seq2seq.decoder import MASKED

# Categories of a source position with respect to what was generated: unrelated, continues a part, continues all of it.
_UNRELATED, _FULL, _PARTIAL = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """
    What the copy head looks at.

    :param previous_state: Whether a position's key also sees the state before it, so that the head learns what an
        answer follows.
    :param position_bias: Whether each position has a learned prior of being copied.
    :param continuation: Whether positions that continue what was generated get a learned bonus.
    :param selective_read: Whether the decoder's input also has the source states around the positions that continue
        what was generated (Gu et al., 2016, https://arxiv.org/abs/1603.06393), so that it knows where it stands and
        whether what is being copied goes on.
    :param initial_gate: Initial log-odds of copying against generating.
    """

    previous_state: bool = False
    position_bias: bool = False
    continuation: bool = False
    selective_read: bool = False
    initial_gate: float = -1.0

    @property
    def follows(self) -> bool:
        """Whether it matters which positions continue what was generated."""
        return self.continuation or self.selective_read


@dataclass
class CopyKeys:
    """
    The source side of the copy head, computed once per source.

    :param keys_BSE: Key of each position.
    :param bias_BS: Additive prior; a large negative number where nothing may be copied.
    :param ids_BS: Token at each position.
    :param read_BSE: What the decoder is fed where it stands at a position; None without `selective_read`.
    """

    keys_BSE: Tensor
    bias_BS: Tensor
    ids_BS: Tensor
    read_BSE: Tensor | None = None

    def select(self, sources_N: Tensor) -> "CopyKeys":
        """
        Return the keys of some sources.

        :param sources_N: Source numbers, repeats allowed.
        """
        tensors = (self.keys_BSE, self.bias_BS, self.ids_BS, self.read_BSE)
        return CopyKeys(*(None if x is None else x.index_select(0, sources_N) for x in tensors))  # type: ignore[arg-type]


class CopyHead(nn.Module):
    """
    Pointer distribution and mixing gate.

    :param width: Width E of encoder and decoder states.
    :param config: What it looks at.
    """

    def __init__(self, width: int, config: CopyConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.gate = nn.Linear(width, 1)
        self.previous = nn.Linear(width, width) if config.previous_state else None
        self.position = nn.Linear(width, 1) if config.position_bias else None
        self.continuation = nn.Parameter(torch.tensor([0.0, 4.0, 1.0])) if config.continuation else None
        self.read = nn.Linear(2 * width, width) if config.selective_read else None
        self._scale = 2.0 * width**-0.5
        for layer in (self.query, self.key, self.previous, self.read):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.03)
        nn.init.constant_(self.gate.bias, config.initial_gate)
        if self.position is not None:
            nn.init.zeros_(self.position.weight)

    def source(self, states_BSE: Tensor, ids_BS: Tensor, copyable_BS: Tensor, length: int) -> CopyKeys:
        """
        Prepare the source side.

        :param states_BSE: Encoder states.
        :param ids_BS: Source tokens.
        :param copyable_BS: True where a token may be copied.
        :param length: Positions of one passage; what precedes a passage is not seen by its first position.
        """
        keys = self.key(states_BSE)
        passages = states_BSE.reshape(-1, length, states_BSE.shape[-1])
        before_BSE = functional.pad(passages, (0, 0, 1, 0))[:, :-1].reshape(states_BSE.shape)
        if self.previous is not None:
            keys = keys + self.previous(before_BSE)
        read = None if self.read is None else self.read(torch.cat([states_BSE, before_BSE], dim=-1))
        bias = torch.zeros(ids_BS.shape, dtype=torch.float32, device=ids_BS.device)
        if self.position is not None:
            bias = bias + self.position(states_BSE)[..., 0].float()
        return CopyKeys(keys, bias.masked_fill(~copyable_BS, MASKED), ids_BS, read)

    def read_states(self, keys: CopyKeys, category_RTS: Tensor | None) -> Tensor | None:
        """
        Return what the decoder is fed besides each token's embedding: the mean over the positions where it may stand.

        :param keys: The source side.
        :param category_RTS: Continuation categories.
        :returns: (R, T, E), zero where nothing was copied; None without `selective_read`.
        """
        if keys.read_BSE is None or category_RTS is None:
            return None
        standing_RTS = (category_RTS == _FULL).to(keys.read_BSE.dtype)
        rows, new, positions = standing_RTS.shape
        weights = standing_RTS / standing_RTS.sum(-1, keepdim=True).clamp_min(1)
        grouped = weights.reshape(keys.read_BSE.shape[0], -1, positions)
        return torch.matmul(grouped, keys.read_BSE).reshape(rows, new, -1)

    def log_attention(self, states_RTE: Tensor, keys: CopyKeys, category_RTS: Tensor | None) -> Tensor:
        """
        Log-probabilities over source positions.

        :param states_RTE: Decoder output states.
        :param keys: The source side.
        :param category_RTS: Continuation categories from `categories`; None if the configuration has no use for them.
        :returns: (R, T, S), float32, normalised over S.
        """
        sources = keys.ids_BS.shape[0]
        rows, new, width = states_RTE.shape
        query = self.query(states_RTE).reshape(sources, rows // sources * new, width)
        scores = torch.matmul(query, keys.keys_BSE.transpose(1, 2)).float() * self._scale + keys.bias_BS[:, None]
        scores = scores.reshape(rows, new, -1)
        if self.continuation is not None and category_RTS is not None:
            scores = scores + self.continuation.float()[category_RTS]
        return torch.log_softmax(scores, dim=-1)

    def log_gates(self, states_RTE: Tensor) -> tuple[Tensor, Tensor]:
        """
        Log-probabilities of copying and of generating, each (R, T), float32.

        :param states_RTE: Decoder output states.
        """
        gate = self.gate(states_RTE)[..., 0].float()
        return functional.logsigmoid(gate), functional.logsigmoid(-gate)

    def mix(
        self, log_vocabulary_RTV: Tensor, states_RTE: Tensor, keys: CopyKeys, category_RTS: Tensor | None
    ) -> Tensor:
        """
        Log-probabilities over the vocabulary of the mixture.

        :param log_vocabulary_RTV: The generator's log-probabilities.
        :param states_RTE: Decoder output states.
        :param keys: The source side.
        :param category_RTS: Continuation categories.
        :returns: (R, T, V), float32, normalised over V.
        """
        copy_RTS = self.log_attention(states_RTE, keys, category_RTS).exp()
        log_copy_RT, log_generate_RT = self.log_gates(states_RTE)
        mixed = log_vocabulary_RTV.float() + log_generate_RT[..., None]
        rows, new = log_copy_RT.shape
        ids = keys.ids_BS.repeat_interleave(rows // keys.ids_BS.shape[0], dim=0)[:, None].expand(rows, new, -1)
        # A token may stand at several positions: sum their mass, then mix in log space at these tokens alone.
        mass_RTV = torch.zeros_like(mixed).scatter_add_(-1, ids, copy_RTS)
        log_mass = mass_RTV.gather(-1, ids).log() + log_copy_RT[..., None]
        return mixed.scatter(-1, ids, torch.logaddexp(mixed.gather(-1, ids), log_mass))

    def target_log_probs(
        self, log_generated_RT: Tensor, states_RTE: Tensor, targets_RT: Tensor, keys: CopyKeys, matches: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """
        Mixture log-probability of given tokens, without the whole vocabulary.

        :param log_generated_RT: The generator's log-probability of each target.
        :param states_RTE: Decoder output states.
        :param targets_RT: Target tokens.
        :param keys: The source side.
        :param matches: Continuation categories (R, T, S).
        :returns: The mixture's log-probabilities (R, T), and the log-attention (R, T, S).
        """
        log_attention = self.log_attention(states_RTE, keys, matches)
        per_source = targets_RT.shape[0] // keys.ids_BS.shape[0]
        hit_RTS = keys.ids_BS.repeat_interleave(per_source, dim=0)[:, None] == targets_RT[..., None]
        copied = torch.logsumexp(log_attention.masked_fill(~hit_RTS, MASKED), dim=-1)
        log_copy, log_generate = self.log_gates(states_RTE)
        return torch.logaddexp(log_copy + copied, log_generate + log_generated_RT), log_attention


def extend_matches(matches_RS: Tensor, ids_RS: Tensor, token_R: Tensor, length: int) -> Tensor:
    """
    Update, for each position, how many of the last generated tokens stand directly before it.

    :param matches_RS: Lengths before the token.
    :param ids_RS: Source tokens of each row.
    :param token_R: The token just generated.
    :param length: Positions of one passage; runs end with their passage.
    """
    runs = torch.where(ids_RS == token_R[:, None], matches_RS + 1, 0).reshape(-1, length)
    return functional.pad(runs, (1, 0))[:, :-1].reshape(matches_RS.shape)


def categories(matches_RS: Tensor, generated: int) -> Tensor:
    """
    Classify positions: unrelated, continuing everything generated so far, or continuing a part of it.

    :param matches_RS: Lengths from `extend_matches`.
    :param generated: Number of tokens generated so far.
    """
    if generated == 0:
        return torch.zeros_like(matches_RS)
    full = torch.full_like(matches_RS, _FULL)
    partial = torch.where(matches_RS > 0, _PARTIAL, _UNRELATED)
    return torch.where(matches_RS >= generated, full, partial)


def teacher_categories(ids_BS: Tensor, copyable_BS: Tensor, inputs_RT: Tensor, length: int) -> Tensor:
    """
    Categories for every step of a given target.

    :param ids_BS: Source tokens.
    :param copyable_BS: True where a token may be copied; a run never leaves these positions.
    :param inputs_RT: Decoder inputs; the first is the start token.
    :param length: Positions of one passage.
    :returns: (R, T, S), int64.
    """
    rows, new = inputs_RT.shape
    per_source = rows // ids_BS.shape[0]
    # Tokens that may not be copied match nothing: -1 is no token.
    ids_RS = torch.where(copyable_BS, ids_BS, -1).repeat_interleave(per_source, dim=0)
    matches = torch.zeros_like(ids_RS)
    out = [categories(matches, 0)]
    for t in range(1, new):
        matches = extend_matches(matches, ids_RS, inputs_RT[:, t], length)
        out.append(categories(matches, t))
    return torch.stack(out, dim=1)
