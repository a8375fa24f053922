"""
Log-probabilities, with gradient, of many identifiers ("keys") of each question.

Questions have different numbers of keys, of different lengths, and share them between passages. So each distinct key is
scored once; the keys of a question are sorted by length and cut into packets of a fixed number of rows, and packets of
all questions of about the same length are scored together. A question is encoded once (`reserved` grammar) or once for
each view (`markers`), and its cross-attention keys and values are computed once, for all of its packets.

Shapes: B questions, K keys of each, P packets, G rows of a packet, L source tokens, T key tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gr_components.decoding.grammar import Grammar, View
from gr_components.models.seq2seq.copying import CopyKeys
from gr_components.models.seq2seq.decoder import CrossCache
from gr_components.models.seq2seq.model import Memory, Seq2SeqModel
from gr_components.tokenization import TextTokenizer
from gr_training.generative.identifier_batches import IdentifierBatches
from gr_training.generative.pairs import Target
from gr_training.gradient_cache import cached

Key = tuple[str, Sequence[int]]

# Rows of one question that are scored side by side. More of them waste more rows of padding; fewer repeat more of the
# question's keys and values.
_PACKET = 8
# Packets whose lengths differ by less than this factor share a block when memory does not matter.
_SPREAD = 1.3


class KeyBatches:
    """
    Pads questions with their keys.

    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    """

    def __init__(self, tokenizer: TextTokenizer, grammar: Grammar) -> None:
        self._grammar, self._padded = grammar, IdentifierBatches(tokenizer, grammar)

    def make(self, sources: Sequence[list[int]], keys: Sequence[Sequence[Key]]) -> dict[str, Any]:
        """
        Pad a batch.

        :param sources: Tokens of B questions, without special tokens.
        :param keys: For each question its keys: the name of a view, and tokens as they are generated (stop token
            included, index prefix excluded).
        :returns: Tensors and lists of numbers, for `key_log_probs`.
        :raises ConfigError: If the grammar lacks a view.
        """
        for name in {name for own in keys for name, _ in own}:
            self._grammar.view(name)
        width = max(map(len, keys), default=0)
        parts: list[tuple[View | None, list[list[int]]]]
        if self._grammar.layout == "reserved":
            parts = [(None, [list(range(len(own))) for own in keys])]
        else:
            parts = [
                (view, [[k for k, (name, _) in enumerate(own) if name == view.name] for own in keys])
                for view in self._grammar.views
            ]
        groups = [self._group(view, sources, keys, chosen, width) for view, chosen in parts if any(chosen)]
        return {"groups": groups, "shape": [len(keys), width]}

    def _group(
        self, view: View | None, sources: Sequence[list[int]], keys: Sequence[Sequence[Key]],
        chosen: Sequence[Sequence[int]], width: int,
    ) -> dict[str, Any]:  # fmt: skip
        used = [b for b, own in enumerate(chosen) if own]
        packets: list[tuple[int, int, list[tuple[Target, int]]]] = []
        for row, b in enumerate(used):
            targets = [
                (Target(self._grammar.view(keys[b][k][0]), list(keys[b][k][1])), b * width + k) for k in chosen[b]
            ]
            packets += [(_length(packet[-1][0]), row, packet) for packet in _packets(targets)]
        packets.sort(key=lambda packet: packet[0])
        # Padding rows go to a slot of their own behind all others.
        rows = [[*own, *[(_empty(own[0][0].view), len(keys) * width)] * (_PACKET - len(own))] for _, _, own in packets]
        return {
            **self._padded.sources([sources[b] for b in used], view.source_suffix if view else ""),
            **self._padded.block([target for own in rows for target, _ in own]),
            "slots_R": torch.tensor([slot for own in rows for _, slot in own]),
            "owners_P": torch.tensor([row for _, row, _ in packets]),
            "lengths": [length for length, _, _ in packets],
        }


def key_log_probs(model: Seq2SeqModel, batch: Mapping[str, Any], *, chunk: int = 0, keep_graph: bool = False) -> Tensor:
    """
    Return the log-probability of each key given its question (nats): the sum over its tokens.

    :param model: The generative retriever.
    :param batch: From `KeyBatches.make`, on the model's device.
    :param chunk: About how many keys to score at a time with gradient caching: memory then grows with this number and
        not with all keys, for one more forward pass. 0 scores all at once.
    :param keep_graph: Score in chunks, but keep their graphs.
    :returns: log_probs_BK, float32 or wider; 0, without gradient, where a question has fewer keys.
    """
    num_questions, width = batch["shape"]
    values, slots = [], []
    for group in batch["groups"]:
        memory = model.encode(group["ids_BL"], group["mask_BL"])
        projected = model.project(memory)
        for first, end in _blocks(group["lengths"], chunk):
            arguments = (model, memory, *projected, group, first, end)
            plain = not chunk or keep_graph or not torch.is_grad_enabled()
            values.append(_score(*arguments) if plain else cached(_score, *arguments))
            slots.append(group["slots_R"][first * _PACKET : end * _PACKET])
    if not values:
        return torch.zeros(num_questions, width, device=model.device)
    flat = values[0].new_zeros(num_questions * width + 1).scatter(0, torch.cat(slots), torch.cat(values))
    return flat[:-1].reshape(num_questions, width)


def _score(
    model: Seq2SeqModel, memory: Memory, cross: CrossCache, copy: CopyKeys | None, group: Mapping[str, Any], first: int,
    end: int,
) -> Tensor:  # fmt: skip
    """Score some packets; a function of its own so that nothing of it but the sums outlives it."""
    rows, length = slice(first * _PACKET, end * _PACKET), max(group["lengths"][first:end])
    inputs_RT, targets_RT, real_RT = (group[name][rows, :length] for name in ("inputs_RT", "targets_RT", "real_RT"))
    owners_P = group["owners_P"][first:end]
    projected = cross.select(owners_P), None if copy is None else copy.select(owners_P)
    return model.teacher_forced(memory.select(owners_P), inputs_RT, targets_RT, real_RT, projected)[0].sum(-1)


def _packets(targets: list[tuple[Target, int]]) -> Iterator[list[tuple[Target, int]]]:
    """Cut a question's keys into packets, shortest first; the first packet is the one that is not full."""
    ordered = sorted(targets, key=lambda pair: _length(pair[0]))
    first = len(ordered) % _PACKET
    if first:
        yield ordered[:first]
    for start in range(first, len(ordered), _PACKET):
        yield ordered[start : start + _PACKET]


def _length(target: Target) -> int:
    return len(target.view.decoder_start) - 1 + len(target.tokens)


def _empty(view: View) -> Target:
    return Target(view, [])


def _blocks(lengths: Sequence[int], chunk: int) -> Iterator[tuple[int, int]]:
    """Cut packets, sorted by length, into blocks: of `chunk` keys, or of similar length."""
    first = 0
    for place in range(1, len(lengths) + 1):
        full = chunk and (place - first) * _PACKET >= chunk
        if place == len(lengths) or full or lengths[place] > _SPREAD * lengths[first] + 1:
            yield first, place
            first = place
