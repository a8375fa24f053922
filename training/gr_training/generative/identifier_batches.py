"""
Sources with their identifiers as padded tensors, and the likelihood of the identifiers.

Shapes: B sources, L source tokens, R rows (R / B identifiers of each source), T identifier tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from gr_components.decoding.grammar import QUERY, Grammar, marker_grammar, reserved_grammar
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.tokenization import TextTokenizer, pad
from gr_training.config import STRICT_KEYS, checked_dataclass
from gr_training.fitting import Count
from gr_training.generative.pairs import Pair, Target
from gr_training.likelihood import token_log_probs
from gr_training.loop import LossSum
from gr_training.losses.sequence import sequence_nll


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class GrammarConfig:
    """
    The identifier grammar of a model that has none yet.

    :param layout: `reserved` (WordPiece, built here) or `markers` (BART, as published).
    :param body_tokens: Longest body n-gram that is searched.
    :param title_tokens: Longest title, stop included.
    :param query_tokens: Longest pseudo-query, stop included.
    """

    layout: Literal["reserved", "markers"] = "reserved"
    body_tokens: Count = 10
    title_tokens: Count = 24
    query_tokens: Count = 24


def grammar_for(config: GrammarConfig, tokenizer: TextTokenizer, info: dict[str, Any], *, query_view: bool) -> Grammar:
    """
    Return the grammar that a model says it has, or make the configured one; without the query view if none is wanted.

    :param config: For a model without a grammar.
    :param tokenizer: The model's tokenizer.
    :param info: The model's `gr_model.json`.
    :param query_view: Whether pseudo-queries are among the identifiers.
    """
    if info.get("grammar"):
        known = Grammar.from_dict(info["grammar"])
        if query_view:
            return known
        return replace(known, views=tuple(view for view in known.views if view.name != QUERY))
    if config.layout == "markers":
        return marker_grammar(tokenizer, query_view=query_view)
    return reserved_grammar(
        tokenizer, query_view=query_view, body_tokens=config.body_tokens, title_tokens=config.title_tokens,
        query_tokens=config.query_tokens,
    )  # fmt: skip


class IdentifierBatches:
    """
    Pads pairs of source and identifiers.

    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    """

    def __init__(self, tokenizer: TextTokenizer, grammar: Grammar) -> None:
        self._grammar, self._tokenizer = grammar, tokenizer
        special = tokenizer.special
        first, last = special.get("cls", special.get("bos")), special.get("sep", special.get("eos"))
        self._first = [] if first is None else [first]
        self._last = [] if last is None else [last]

    def groups(self, pairs: Sequence[Pair], num_short: int) -> list[dict[str, Any]]:
        """
        Pad pairs.

        :param pairs: All with the same number of identifiers.
        :param num_short: How many of these, from the first, are short; the others are padded apart from them.
        :returns: Groups; each has sources `ids_BL`, `mask_BL` and `blocks` of targets, a block with the same number of
            rows for each source.
        """
        if self._grammar.layout == "reserved":
            # One encoding of the source serves all views.
            blocks = [
                [t for p in pairs for t in p.targets[:num_short]],
                [t for p in pairs for t in p.targets[num_short:]],
            ]
            return [self._group([pair.source for pair in pairs], "", [block for block in blocks if block])]
        groups = []
        for view in self._grammar.views:
            chosen = [(pair.source, target) for pair in pairs for target in pair.targets if target.view == view]
            if chosen:
                groups.append(self._group([s for s, _ in chosen], view.source_suffix, [[t for _, t in chosen]]))
        return groups

    def sources(self, sources: Sequence[list[int]], suffix: str = "") -> dict[str, torch.Tensor]:
        """
        Pad encoder inputs.

        :param sources: Tokens of each source, without special tokens; cut to what the grammar allows.
        :param suffix: Text after each source (`View.source_suffix`).
        :returns: `ids_BL`, `mask_BL`.
        """
        tail = [*(self._tokenizer.encode([suffix])[0] if suffix else []), *self._last]
        room = self._grammar.max_source - len(self._first) - len(tail)
        ids_BL, mask_BL = pad([[*self._first, *source[:room], *tail] for source in sources], self._tokenizer.pad_id)
        return {"ids_BL": torch.from_numpy(ids_BL), "mask_BL": torch.from_numpy(mask_BL)}

    def block(self, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
        """
        Pad decoder inputs and targets.

        :param targets: One identifier for each row; one without tokens makes a row of padding.
        :returns: `inputs_RT`, `targets_RT`, `real_RT` (true on the identifier's own tokens).
        """
        pad_id = self._tokenizer.pad_id
        inputs_RT, _ = pad([[*t.view.decoder_start, *t.tokens[:-1]] for t in targets], pad_id)
        targets_RT, real_RT = pad([[*t.view.decoder_start[1:], *t.tokens] for t in targets], pad_id)
        for row, target in enumerate(targets):
            real_RT[row, : len(target.view.decoder_start) - 1] = False
        arrays = {"inputs_RT": inputs_RT, "targets_RT": targets_RT, "real_RT": real_RT}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _group(self, sources: Sequence[list[int]], suffix: str, blocks: Sequence[list[Target]]) -> dict[str, Any]:
        return {**self.sources(sources, suffix), "blocks": [self.block(block) for block in blocks]}


def identifier_loss(model: Seq2SeqModel, groups: Sequence[dict[str, Any]], smoothing: float = 0.0) -> LossSum:
    """
    Negative log-likelihood of identifiers, summed over tokens.

    :param model: An encoder-decoder.
    :param groups: From `IdentifierBatches.groups`.
    :param smoothing: Label smoothing; only for models without a copy head.
    """
    totals, count = [], torch.zeros((), device=model.device)
    for group in groups:
        memory = model.encode(group["ids_BL"], group["mask_BL"])
        for block in group["blocks"]:
            log_probs_RT, uniform_RT = token_log_probs(model, memory, block, with_uniform=bool(smoothing))
            loss_RT = sequence_nll(log_probs_RT, block["real_RT"], smoothing=smoothing, uniform_RT=uniform_RT)
            totals.append(loss_RT.sum())
            count += block["real_RT"].sum()
    return LossSum(torch.stack(totals).sum(), count)
