"""
Candidate lists for ranking and contrastive losses: what retrieval finds for each question, fused from several searches.

Searches are fused without weights: scores are standardised over the question's list and added up, where a passage that
a search did not find gets that search's lowest score. Hard negatives are then what several searches agree on. The
shipped pipelines fuse in another way (`ScoreFusionJoiner`), and so does whoever asks for `max`, `sum` or `mean`. The
result is kept in `candidates.jsonl.gz` with its provenance, so that a resumed run does not search again.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gr_components.data import Candidate, read_candidates, read_run, searchable_text, write_candidates
from gr_components.data.candidates import is_current, path_hash
from gr_components.errors import ConfigError
from gr_components.indexes.lexical import Analysis, LexicalIndex
from gr_components.models.resolve import MINILM, resolve_model
from gr_components.models.text_encoder import load_text_encoder
from gr_components.progress import Reporter, Silent, track
from gr_training.config import STRICT_KEYS, InputFile, ModelName, checked_dataclass, to_plain
from gr_training.distributed import main_first
from gr_training.fitting import Count
from gr_training.sources import QuestionSet, input_names, local_file

# For each question rows of passages and scores, best first.
Found = list[list[tuple[int, float]]]
_BATCH = 256


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class MiningConfig:
    """
    Where candidates come from.

    :param bm25: Whether BM25 searches.
    :param language: Of BM25's stemmer and stop words.
    :param dense: An encoder that searches by cosine; null for none.
    :param runs: TREC runs that are fused too, by the name of the set (`validation` for validation questions).
    :param depth: Passages of each search.
    :param fusion: How the searches become one list: `standardised` (see this module), or as `ScoreFusionJoiner` does
        with `combine` set to `max`, `sum` or `mean`.
    """

    bm25: bool = True
    language: str = "english"
    dense: ModelName | None = MINILM
    runs: dict[str, tuple[InputFile, ...]] | None = None
    depth: Count = 60
    fusion: Literal["standardised", "max", "sum", "mean"] = "standardised"

    def __post_init__(self) -> None:
        if not (self.bm25 or self.dense or self.runs):
            msg = "mining needs bm25, dense or runs."
            raise ValueError(msg)


@dataclass(frozen=True)
class CandidateLists:
    """
    The best passages for each of Q questions, best first.

    :param rows: For each question the rows of its passages.
    :param scores: For each question their fused scores.
    """

    rows: list[npt.NDArray[np.int64]]
    scores: list[npt.NDArray[np.float32]]


def mine(
    questions: QuestionSet, config: MiningConfig, keep: int, path: Path, report: Reporter | None = None
) -> CandidateLists:
    """
    Return the candidates of a set, from `path` if they are there and nothing has changed since, else by searching.

    :param questions: Questions and the passages to be searched.
    :param config: Where candidates come from.
    :param keep: How many passages of each question are kept.
    :param path: A `candidates.jsonl.gz`.
    :param report: Where progress goes.
    :raises ConfigError: If nothing searches this set.
    """
    made_by = _identity(questions, config, keep)
    with main_first():
        if not is_current(path, made_by):
            inputs = input_names((*(questions.files or {}), *_runs(questions, config)))
            found = search(questions, config, report or Silent())
            write_candidates(path, _candidates(questions, found, keep), made_by=made_by, inputs=inputs)
    return _read(path, questions)


def search(questions: QuestionSet, config: MiningConfig, report: Reporter) -> Found:
    """
    Search a set's passages for its questions in every configured way, and fuse.

    :param questions: Questions and passages.
    :param config: How.
    :param report: Where progress goes.
    :raises ConfigError: If nothing searches this set.
    """
    searches = []
    if config.bm25:
        searches.append(lexical_search(questions, config.depth, config.language, report))
    if config.dense:
        searches.append(dense_search(questions, config.dense, config.depth, report))
    row_of = {passage.id: row for row, passage in enumerate(questions.passages)}
    for name in _runs(questions, config):
        run = read_run(local_file(name))
        results = [run.get(question.id, [])[: config.depth] for question in questions.questions]
        searches.append([[(row_of[d], score) for d, score in several if d in row_of] for several in results])
    if not searches:
        msg = f"mining: neither bm25 nor dense is on, and there is no run for '{questions.name}'."
        raise ConfigError(msg)
    if config.fusion == "standardised":
        return [fuse(lists) for lists in zip(*searches, strict=True)]
    return [fuse_as_served(lists, config.fusion) for lists in zip(*searches, strict=True)]


def lexical_search(questions: QuestionSet, depth: int, language: str, report: Reporter) -> Found:
    """
    Search with BM25 over an index in memory.

    :param questions: Questions and passages.
    :param depth: Passages for each question.
    :param language: Of stemmer and stop words.
    :param report: Where progress goes.
    """
    index = LexicalIndex.create(None, Analysis(language=language))
    index.apply([], ((row, searchable_text(p.title, p.text)) for row, p in enumerate(questions.passages)))
    texts = [question.text for question in questions.questions]
    batches = [texts[first : first + _BATCH] for first in range(0, len(texts), _BATCH)]
    found: Found = []
    for batch in track(batches, report, f"bm25 {questions.name}", len(texts), len):
        found += [[(int(row), float(score)) for row, score in hits] for hits in index.search(batch, top_k=depth)]
    return found


def dense_search(questions: QuestionSet, model: str, depth: int, report: Reporter) -> Found:
    """
    Search by cosine, exactly.

    :param questions: Questions and passages.
    :param model: The encoder.
    :param depth: Passages for each question.
    :param report: Where progress goes.
    """
    encoder = load_text_encoder(model)
    passages = [searchable_text(passage.title, passage.text) for passage in questions.passages]
    passages_DE = encoder.encode(passages, prefix=encoder.prompt("document"), report=report)
    questions_QE = encoder.encode(
        [question.text for question in questions.questions], prefix=encoder.prompt("query"), report=report
    )
    encoder.close()
    return nearest(_normalised(questions_QE), _normalised(passages_DE), depth)


def nearest(questions_QE: npt.NDArray[np.float32], passages_DE: npt.NDArray[np.float32], depth: int) -> Found:
    """
    Return the passages with the largest dot products, best first, ties by row.

    :param questions_QE: Vectors of questions.
    :param passages_DE: Vectors of passages.
    :param depth: How many.
    """
    found: Found = []
    for first in range(0, len(questions_QE), _BATCH):
        scores_BD = questions_QE[first : first + _BATCH] @ passages_DE.T
        best_BK = np.argsort(-scores_BD, axis=1, kind="stable")[:, :depth]
        for scores_D, best_K in zip(scores_BD, best_BK, strict=True):
            found.append([(int(row), float(scores_D[row])) for row in best_K])
    return found


def fuse(lists: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """
    Add up the standardised scores of several searches for one question; best first, ties by row.

    A passage that a search did not find gets that search's lowest standardised score.

    :param lists: Rows and scores of each search.
    """
    standardised = [
        dict(zip([row for row, _ in found], standardise(s for _, s in found), strict=True)) for found in lists
    ]
    totals = {
        row: sum(float(scores.get(row, min(scores.values(), default=0.0))) for scores in standardised)
        for row in dict.fromkeys(row for scores in standardised for row in scores)
    }
    return sorted(totals.items(), key=lambda item: (-item[1], item[0]))


def fuse_as_served(
    lists: Sequence[Sequence[tuple[int, float]]], combine: Literal["max", "sum", "mean"]
) -> list[tuple[int, float]]:
    """
    Fuse several searches for one question as the shipped pipelines do, with their component; best first.

    :param lists: Rows and scores of each search.
    :param combine: The component's setting of this name.
    """
    from haystack import Document

    from gr_components.joiners.score_fusion import ScoreFusionJoiner

    documents = [[Document(id=str(row), score=score) for row, score in found] for found in lists]
    joined = ScoreFusionJoiner(combine=combine).run(documents=documents)["documents"]
    return [(int(document.id), document.score or 0.0) for document in joined]


def standardise(scores: Iterable[float]) -> npt.NDArray[np.float64]:
    """
    Return scores with mean 0 and standard deviation 1; equal scores become 0.

    :param scores: Any numbers.
    """
    values = np.array(list(scores), dtype=np.float64)
    if not len(values):
        return values
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 1e-12 else np.zeros_like(values)


def _identity(questions: QuestionSet, config: MiningConfig, keep: int) -> dict[str, Any]:
    """What candidates depend on besides the files read: the very questions and passages, settings, the encoder."""
    digest = hashlib.sha256()
    for identity, text in ((question.id, question.text) for question in questions.questions):
        digest.update(f"{identity}\0{text}\0".encode())
    for passage in questions.passages:
        digest.update(f"{passage.id}\0{searchable_text(passage.title, passage.text)}\0".encode())
    dense = path_hash(resolve_model(config.dense)) if config.dense else None
    return {"mining": to_plain(config), "keep": keep, "texts": digest.hexdigest(), "dense": dense}


def _runs(questions: QuestionSet, config: MiningConfig) -> tuple[str, ...]:
    return (config.runs or {}).get(questions.name, ())


def _candidates(questions: QuestionSet, found: Found, keep: int) -> Iterable[Candidate]:
    for question, positives, several in zip(questions.questions, questions.positives, found, strict=True):
        for rank, (row, score) in enumerate(several[:keep], start=1):
            label = int(row in positives)
            yield Candidate(question.id, questions.passages[row].id, rank, score, label, "qrels")


def _read(path: Path, questions: QuestionSet) -> CandidateLists:
    row_of = {passage.id: row for row, passage in enumerate(questions.passages)}
    found: dict[str, list[tuple[int, float]]] = {question.id: [] for question in questions.questions}
    for candidate in read_candidates(path):
        found[candidate.query].append((row_of[candidate.document], candidate.score))
    rows = [np.array([row for row, _ in several], dtype=np.int64) for several in found.values()]
    scores = [np.array([score for _, score in several], dtype=np.float32) for several in found.values()]
    return CandidateLists(rows, scores)


def _normalised(vectors_NE: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return np.asarray(vectors_NE / np.maximum(norms, 1e-12), dtype=np.float32)
