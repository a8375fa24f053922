"""
Mined candidates as training reads them: for each question arrays of documents and of the identifiers that matched them.

Whatever could make training silently wrong is refused, with file and line: lists of another model, tokenizer, grammar
or corpus, lists without positives or negatives, missing scores, identifiers that do not occur.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.data import Candidate, Key, check_inputs
from gr_components.data.candidates import numbered_candidates, path_hash
from gr_components.data.files import shown
from gr_components.decoding.extra_keys import WORDS
from gr_components.decoding.grammar import BODY, Grammar
from gr_components.errors import DataError, ProvenanceError, TokenizerMismatchError
from gr_components.indexes.suffix_kernels import SLACK
from gr_components.models.resolve import resolve_model
from gr_components.tokenization import TextTokenizer
from gr_training.sources import QuestionSet

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
_LARGEST, _LARGEST_GRADE = float(np.finfo(np.float32).max), 1 << 31


@dataclass(frozen=True)
class CandidateList:
    """
    What was mined for one question: D documents, K distinct identifiers, up to N identifiers of each document.

    :param question: Row of the question in its set.
    :param documents_D: Rows of the passages, best first.
    :param scores_D: The mining search's scores.
    :param labels_D: Above 0 for positives.
    :param teachers: Scores (D,) of each teacher.
    :param keys: View and tokens of each identifier; the tokens as the model generates them, stop included. N-grams of
        the question's own words are listed under `body`, the view that they are scored by.
    :param log_probs_K: What the mining model gave them.
    :param priors_K: P(n), the share of the corpus that each of them is.
    :param keys_DN: Identifiers of each document, largest contribution first; 0 where there are no more.
    :param cover_DN: Their covers in the document; 0 where there are no more.
    :param lengths_D: How many each document has.
    :param query_bias: What the mining search added to the log-probabilities of pseudo-queries (nats).
    :param query_cap: What it limited them to then.
    """

    question: int
    documents_D: Int64
    scores_D: Float32
    labels_D: Int64
    teachers: dict[str, Float32]
    keys: list[tuple[str, tuple[int, ...]]]
    log_probs_K: Float32
    priors_K: Float32
    keys_DN: npt.NDArray[np.int32]
    cover_DN: Float32
    lengths_D: Int64
    query_bias: float
    query_cap: float

    @property
    def mask_DN(self) -> npt.NDArray[np.bool_]:
        """Where there is an identifier."""
        return np.asarray(np.arange(self.keys_DN.shape[1]) < self.lengths_D[:, None])

    @property
    def prior_DN(self) -> Float32:
        """P(n) of each document's identifiers; .5 where there are no more."""
        if not self.keys:
            return np.full(self.keys_DN.shape, 0.5, dtype=np.float32)
        return np.where(self.mask_DN, self.priors_K[self.keys_DN], np.float32(0.5))


def read_lists(
    path: Path, questions: QuestionSet, tokenizer: TextTokenizer, grammar: Grammar, *, model: str | Path | None = None,
    teachers: Sequence[str] = (), keys: int | None = None,
) -> list[CandidateList]:  # fmt: skip
    """
    Read what `mine_generative` wrote, with or without teachers.

    :param path: The candidates.
    :param questions: The set that was mined.
    :param tokenizer: Of the model that is to be trained.
    :param grammar: Likewise.
    :param model: The checkpoint that must have mined them; None takes those of any.
    :param teachers: Names of teachers whose scores every line must have.
    :param keys: Identifiers of each document that are read, at most; None for all.
    :raises ProvenanceError: If the file or something that it was made from has changed, or if it was made from another
        corpus, other questions or by another model.
    :raises TokenizerMismatchError: If it was mined with another tokenizer or grammar.
    :raises DataError: If a line or a list cannot be trained on; names the line.
    """
    sidecar = check_inputs(path)
    check_mined(path, sidecar, questions, tokenizer, grammar, model)
    search = _mined(sidecar)["search"]
    limits = search["query_view_bias"], search["query_view_cap"]
    views, size = {view.name for view in grammar.views}, tokenizer.vocabulary_size
    reader = _Reader(path, questions, views, size, tuple(teachers), keys, limits)
    lists = [reader.read(query, rows) for query, rows in lists_of(path)]
    if not lists:
        msg = f"'{path}' has no candidates. Mine again, with more questions."
        raise DataError(msg)
    return lists


def lists_of(path: Path) -> Iterator[tuple[str, list[tuple[int, Candidate]]]]:
    """
    Yield the numbered lines of each question.

    :param path: The candidates.
    :raises DataError: If the lines of a question do not follow each other.
    """
    seen: set[str] = set()
    for query, group in groupby(numbered_candidates(path), key=lambda row: row[1].query):
        rows = list(group)
        if query in seen:
            msg = f"{path}, line {rows[0][0]}: more of question {query!r}, which ended before. Keep its lines together."
            raise DataError(msg)
        seen.add(query)
        yield query, rows


def check_mined(
    path: Path, sidecar: Mapping[str, Any], questions: QuestionSet, tokenizer: TextTokenizer, grammar: Grammar,
    model: str | Path | None,
) -> None:  # fmt: skip
    """
    Make sure that candidates belong to a model and a set.

    :param path: The candidates.
    :param sidecar: From `check_inputs`.
    :param questions: The set.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    :param model: The checkpoint that must have mined them; None takes those of any.
    :raises ProvenanceError: If they were made from another corpus, other questions or by another model.
    :raises TokenizerMismatchError: If they were mined with another tokenizer or grammar.
    """
    mined = _mined(sidecar)
    if mined.get("stage") != "mine":
        msg = f"'{path}' has no identifiers: it was made by {mined.get('stage')!r}. Mine with a generative retriever."
        raise ProvenanceError(msg)
    if mined["tokenizer"] != tokenizer.fingerprint:
        msg = (
            f"'{path}' was mined with the tokenizer {mined['tokenizer'][:12]}, the model to be trained uses "
            f"{tokenizer.fingerprint[:12]}. Mine again with this model."
        )
        raise TokenizerMismatchError(msg)
    if mined["grammar"] != json.loads(json.dumps(grammar.to_dict())):
        msg = f"'{path}' was mined with another identifier grammar than that of the model to be trained. Mine again."
        raise TokenizerMismatchError(msg)
    check_set(path, sidecar, questions)
    if model is not None:
        digest = path_hash(resolve_model(str(model)))
        if digest != mined["model_sha256"]:
            msg = (
                f"'{path}' was mined by another checkpoint (sha256 {mined['model_sha256'][:12]}…) than '{model}' "
                f"({digest[:12]}…). Mine again with this one."
            )
            raise ProvenanceError(msg)


def check_set(path: Path, sidecar: Mapping[str, Any], questions: QuestionSet) -> None:
    """
    Make sure that candidates were made from a set.

    :param path: The candidates.
    :param sidecar: From `check_inputs`.
    :param questions: The set.
    :raises ProvenanceError: If the set's corpus, questions or judgements are not among the inputs.
    """
    known = set(sidecar["inputs"].values())
    for name, digest in (questions.files or {}).items():
        if digest not in known:
            msg = f"'{path}' was not made from '{name}' (sha256 {digest[:12]}…) but from other data. Mine again."
            raise ProvenanceError(msg)


class _Reader:
    """Turns the lines of a question into arrays."""

    def __init__(
        self, path: Path, questions: QuestionSet, views: set[str], vocabulary_size: int, teachers: tuple[str, ...],
        keys: int | None, limits: tuple[float, float],
    ) -> None:  # fmt: skip
        self._path, self._views, self._teachers, self._keys = path, views, teachers, keys
        self._vocabulary_size, self._limits = vocabulary_size, limits
        self._question_rows = {question.id: row for row, question in enumerate(questions.questions)}
        self._passage_rows = {passage.id: row for row, passage in enumerate(questions.passages)}

    def read(self, query: str, rows: Sequence[tuple[int, Candidate]]) -> CandidateList:
        first = rows[0][0]
        if query not in self._question_rows:
            self._refuse(first, f"there is no question {query!r} in the set. Mine again.")
        known: dict[tuple[str, tuple[int, ...]], int] = {}
        facts: list[tuple[float, float]] = []
        width = max(len(candidate.keys[: self._keys]) for _, candidate in rows)
        keys_DN = np.zeros((len(rows), width), dtype=np.int32)
        cover_DN = np.zeros((len(rows), width), dtype=np.float32)
        seen: set[str] = set()
        for d, (line, candidate) in enumerate(rows):
            self._check(line, candidate, seen)
            for n, key in enumerate(candidate.keys[: self._keys]):
                named, fact, cover_DN[d, n] = self._key(line, key)
                keys_DN[d, n] = known.setdefault(named, len(facts))
                if len(known) > len(facts):
                    facts.append(fact)
        labels_D = np.array([candidate.label for _, candidate in rows], dtype=np.int64)
        for missing, there in (("positive", labels_D > 0), ("negative", labels_D <= 0)):
            if not there.any():
                self._refuse(first, f"the list of question {query!r} has no {missing}. Leave it out, or mine again.")
        candidates = [candidate for _, candidate in rows]
        facts_K2 = np.array(facts, dtype=np.float32).reshape(-1, 2)
        return CandidateList(
            question=self._question_rows[query],
            documents_D=np.array([self._passage_rows[c.document] for c in candidates], dtype=np.int64),
            scores_D=np.array([c.score for c in candidates], dtype=np.float32),
            labels_D=labels_D,
            teachers={name: self._scores(name, rows) for name in self._names(candidates)},
            keys=list(known),
            log_probs_K=facts_K2[:, 0].copy(),
            priors_K=facts_K2[:, 1].copy(),
            keys_DN=keys_DN,
            cover_DN=cover_DN,
            lengths_D=np.array([len(c.keys[: self._keys]) for c in candidates], dtype=np.int64),
            query_bias=self._limits[0],
            query_cap=self._limits[1],
        )

    def _check(self, line: int, candidate: Candidate, seen: set[str]) -> None:
        if candidate.document not in self._passage_rows:
            self._refuse(line, f"there is no passage {candidate.document!r} in the corpus. Mine again.")
        if candidate.document in seen:
            self._refuse(line, f"passage {candidate.document!r} is there twice for question {candidate.query!r}.")
        seen.add(candidate.document)
        if candidate.label is None:
            self._refuse(line, "label must be a whole number, got None. Mine with judgements.")
        elif abs(candidate.label) > _LARGEST_GRADE:
            self._refuse(line, f"label must be a grade up to {_LARGEST_GRADE}, got {shown(candidate.label)}.")
        if not _is_number(candidate.score):
            self._refuse(line, f"score must be a number, got {shown(candidate.score)}.")

    def _key(self, line: int, key: Key) -> tuple[tuple[str, tuple[int, ...]], tuple[float, float], float]:
        if not key.tokens or key.cover is None or key.prior is None:
            self._refuse(line, f"the identifier {key.text!r} has no tokens, cover or prior. Mine again.")
        assert key.cover is not None
        assert key.prior is not None
        view = BODY if key.view == WORDS else key.view
        if view not in self._views:
            self._refuse(line, f"the model has no view {view!r}, only {sorted(self._views)}.")
        if key.count < 1 or not 0 < key.prior < 1:
            what = f"occurs {key.count} times in the index (share {key.prior})"
            self._refuse(line, f"the identifier {key.text!r} {what}. Mine again over the index as it is now.")
        if min(key.tokens) < 0 or max(key.tokens) >= self._vocabulary_size:
            what = f"must have tokens between 0 and {self._vocabulary_size - 1}, got {list(key.tokens)}"
            self._refuse(line, f"the identifier {key.text!r} {what}. Mine again.")
        if not (0 <= key.cover <= 1 and -_LARGEST <= key.log_probability <= SLACK * len(key.tokens)):
            what = f"has cover {key.cover} (of 0 to 1) and {key.log_probability} nats (0 at most)"
            self._refuse(line, f"the identifier {key.text!r} {what}. Mine again.")
        return (view, key.tokens), (key.log_probability, key.prior), key.cover

    def _names(self, candidates: Sequence[Candidate]) -> list[str]:
        return list(dict.fromkeys([*self._teachers, *(name for c in candidates for name in c.teachers)]))

    def _scores(self, name: str, rows: Sequence[tuple[int, Candidate]]) -> Float32:
        for line, candidate in rows:
            if not _is_number(candidate.teachers.get(name)):
                given = shown(candidate.teachers[name]) if name in candidate.teachers else "nothing"
                self._refuse(line, f"teacher {name!r} must give a number, got {given}. Run the teach stage again.")
        return np.array([candidate.teachers[name] for _, candidate in rows], dtype=np.float32)

    def _refuse(self, line: int, problem: str) -> None:
        msg = f"{self._path}, line {line}: {problem}"
        raise DataError(msg)


def _mined(sidecar: Mapping[str, Any]) -> Mapping[str, Any]:
    """What mined the candidates, whatever was added to them since."""
    made_by: Mapping[str, Any] = sidecar["made_by"]
    mined: Mapping[str, Any] = made_by.get("mined", made_by)
    return mined


def _is_number(value: Any) -> bool:
    """Say whether a value is a number that 32 bits can hold."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST
