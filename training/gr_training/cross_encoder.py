"""
Parts of recipes that train a cross-encoder: what it starts from, batches of pairs, scores, calibration.

Shapes: P pairs, L tokens.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from gr_components.data import Passage, searchable_text
from gr_components.models.pair_scorer_torch import PairScorerModule
from gr_components.models.resolve import resolve_model
from gr_components.models.text_encoder import padded
from gr_training.attention import register
from gr_training.calibration import fit_platt, fold
from gr_training.config import STRICT_KEYS, ModelName, checked_dataclass
from gr_training.cut_encoder import write_cut_encoder
from gr_training.fitting import Count
from gr_training.mining.lists import CandidateLists
from gr_training.sources import QuestionSet

_SCORING_CHUNKS = 3
_ATTENTION_DROPOUT = re.compile(r"(self|attention)[.]dropout$")


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class RankerBuildConfig:
    """
    How a cross-encoder is built from an encoder: with a new head.

    :param layers: How many of its layers are kept, from the bottom; null keeps all.
    :param vocabulary: Names of training sets whose texts decide which tokens are kept (WordPiece only); all tokens if
        empty.
    """

    layers: Count | None = None
    vocabulary: tuple[str, ...] = ()


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class RankerStartConfig:
    """
    Where a cross-encoder comes from, and what it reads.

    :param model: A trained cross-encoder with one score; with `build`, an encoder.
    :param build: How to make a cross-encoder of an encoder; null if `model` is one already.
    :param max_tokens: Longest pair in training.
    :param serving_tokens: Longest pair in validation and serving.
    :param dropout: Of hidden states; attention weights have none.
    :param num_chunks: Into how many batches of similar length the pairs of a round are divided.
    """

    model: ModelName
    build: RankerBuildConfig | None = None
    max_tokens: Annotated[int, Field(ge=16)] = 192
    serving_tokens: Annotated[int, Field(ge=16)] = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    num_chunks: Count = 4


def start_ranker(
    config: RankerStartConfig, texts: Callable[[Sequence[str]], Iterable[str]], seed: int
) -> PairScorerModule:
    """
    Load or build a cross-encoder, ready for training.

    :param config: Where it comes from.
    :param texts: Gives the texts that decide a cut vocabulary, given the names of sets.
    :param seed: Of a new head.
    :raises ModelError: If the model is no cross-encoder with one score.
    """
    if config.build is not None:
        return build_ranker(
            config.model, texts(config.build.vocabulary) if config.build.vocabulary else None,
            layers=config.build.layers, dropout=config.dropout, max_length=config.serving_tokens, seed=seed,
        )  # fmt: skip
    model = PairScorerModule.from_folder(resolve_model(config.model), max_length=config.serving_tokens)
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0 if _ATTENTION_DROPOUT.search(name) else config.dropout
    fold(model, 1.0, 0.0)  # changes nothing; one that cannot be calibrated is refused now and not after training
    return _prepared(model)


def build_ranker(
    encoder: str, texts: Iterable[str] | None, *, layers: int | None, dropout: float, max_length: int, seed: int
) -> PairScorerModule:
    """
    Build a cross-encoder: an encoder's weights under a new head.

    :param encoder: The encoder.
    :param texts: Decide which tokens of its vocabulary are kept; None keeps all.
    :param layers: How many of its layers are kept, from the bottom; None keeps all.
    :param dropout: Of hidden states.
    :param max_length: Longest pair in serving.
    :param seed: Of the head.
    """
    changes: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    if layers is not None:
        changes["num_hidden_layers"] = layers
    with tempfile.TemporaryDirectory(prefix="gr-encoder-") as temporary:
        folder = resolve_model(encoder)
        if texts is not None:
            write_cut_encoder(folder, texts, Path(temporary))
            folder = Path(temporary)
        torch.manual_seed(seed)
        return _prepared(PairScorerModule.from_encoder(folder, max_length=max_length, config=changes))


def passage_text(passage: Passage) -> str:
    """
    Return what a cross-encoder reads of a passage.

    :param passage: The passage.
    """
    return searchable_text(passage.title, passage.text)


def pair_batch(
    model: PairScorerModule, pairs: Sequence[tuple[str, str]], max_tokens: int, num_chunks: int
) -> dict[str, Any]:
    """
    Tokenize pairs into padded batches of similar length.

    :param model: Its tokenizer is used.
    :param pairs: P pairs of question and passage.
    :param max_tokens: Longest pair.
    :param num_chunks: Batches, at most.
    :returns: `chunks`, each the arguments of the model, and `order`, the place of each pair in their concatenation.
    """
    tokenizer = model.tokenizer
    encoded = tokenizer.encode_templated([q for q, _ in pairs], [p for _, p in pairs], max_length=max_tokens)
    by_length = np.argsort([len(e.ids) for e in encoded], kind="stable")
    chunks = []
    for rows in np.array_split(by_length, min(num_chunks, len(pairs))):
        arrays = padded([encoded[row] for row in rows], tokenizer.pad_id, type_ids=model.info.type_ids)
        chunks.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    return {"chunks": chunks, "order": torch.from_numpy(np.argsort(by_length))}


def list_scores(model: PairScorerModule, batch: Mapping[str, Any], mask_BD: Tensor) -> Tensor:
    """
    Score the pairs of a batch of lists, with gradient.

    :param model: The cross-encoder.
    :param batch: From `pair_batch`: the passages of the first list, then those of the second, and so on.
    :param mask_BD: True for real passages, of which there are as many as pairs.
    :returns: scores_BD, float32; 0 for padding.
    """
    scores_P = torch.cat([model(**chunk).float() for chunk in batch["chunks"]])[batch["order"]]
    return torch.zeros(mask_BD.shape, device=scores_P.device).masked_scatter(mask_BD, scores_P)


def score_pairs(model: PairScorerModule, pairs: Sequence[tuple[str, str]], max_tokens: int) -> npt.NDArray[np.float32]:
    """
    Score pairs without gradient, in bfloat16.

    :param model: The cross-encoder, in evaluation mode.
    :param pairs: P pairs of question and passage.
    :param max_tokens: Longest pair.
    """
    if not pairs:
        return np.zeros(0, np.float32)
    device = next(model.parameters()).device
    batch = pair_batch(model, pairs, max_tokens, _SCORING_CHUNKS)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        parts = [model(**{k: v.to(device) for k, v in chunk.items()}).float().cpu() for chunk in batch["chunks"]]
    return np.asarray(torch.cat(parts)[batch["order"]].numpy())


def score_candidates(
    model: PairScorerModule, questions: QuestionSet, lists: CandidateLists, max_tokens: int
) -> list[npt.NDArray[np.float64]]:
    """
    Score the candidates of each question.

    :param model: The cross-encoder, in evaluation mode.
    :param questions: Questions and passages.
    :param lists: Their candidates.
    :param max_tokens: Longest pair.
    """
    scored = []
    for question, rows in zip(questions.questions, lists.rows, strict=True):
        pairs = [(question.text, passage_text(questions.passages[row])) for row in rows]
        scored.append(score_pairs(model, pairs, max_tokens).astype(np.float64))
    return scored


def platt(
    questions: QuestionSet, lists: CandidateLists, scored: Sequence[npt.NDArray[np.float64]]
) -> tuple[float, float]:
    """
    Return slope and offset that make scores of candidates log-odds of being relevant.

    :param questions: Questions with judgements.
    :param lists: Their candidates.
    :param scored: The scores of these.
    """
    labels = [
        np.isin(rows, each).astype(np.float64) for rows, each in zip(lists.rows, questions.positives, strict=True)
    ]
    return fit_platt(np.concatenate([np.zeros(0), *scored]), np.concatenate([np.zeros(0), *labels]))


def calibrate(model: PairScorerModule, questions: QuestionSet, lists: CandidateLists, max_tokens: int) -> None:
    """
    Make the sigmoid of the model's scores the probability that a candidate is relevant; their order stays.

    :param model: Its last layer is changed.
    :param questions: Validation questions.
    :param lists: Their candidates.
    :param max_tokens: Longest pair.
    """
    fold(model, *platt(questions, lists, score_candidates(model, questions, lists, max_tokens)))


def _prepared(model: PairScorerModule) -> PairScorerModule:
    transformer: Any = model.model
    transformer.set_attn_implementation(register())
    transformer.config.architectures = [type(transformer).__name__]
    return model
