"""
Candidate lists of a generative retriever: documents with the identifiers that led to them.

LTRGR (https://arxiv.org/abs/2306.15222) and DGR (https://arxiv.org/abs/2402.10769) learn from such lists.

The index holds training questions as pseudo-queries of their passages. A question that is searched over an index that
holds itself finds itself, and a model that is trained on such lists learns to copy questions. So questions are dealt
into folds, and those of a fold are searched over an index without their texts.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from gr_components.data import Candidate, Key, normalise
from gr_components.data.candidates import candidate_line, path_hash
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import read_grammar
from gr_components.decoding.results import Matches
from gr_components.errors import DataError
from gr_components.indexes.suffix_index import SuffixIndex
from gr_components.models.resolve import resolve_model
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.progress import Reporter, Silent, Task
from gr_training.config import STRICT_KEYS, checked_dataclass, to_plain
from gr_training.distributed import main_first
from gr_training.fitting import Count, Natural
from gr_training.generative.search_validation import build_index, search_config
from gr_training.losses.identifier_score import covers
from gr_training.mining.labels import LabelBy, Labels
from gr_training.mining.parts import Parts, is_wanted
from gr_training.sources import QuestionSet, input_names

_PART = 256


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class MineConfig:
    """
    What is mined.

    :param search: Settings of the search, such as `beams`; the same as at inference.
    :param top_k: Documents kept for each question. Positives further down are kept too: all of them with `qrels`; with
        `answer_string` those that the judgements name as well, since reading everything that was found would take long.
    :param keys: Identifiers kept for each document, those that contribute most.
    :param folds: Into how many parts the questions are dealt. An index lacks one part: with few folds it holds clearly
        fewer pseudo-queries than later at inference.
    :param questions: How many questions, drawn by `seed`; 0 takes all.
    :param label_by: Positives by `qrels`, or by `answer_string`: every passage whose text has an answer.
    :param cover: How much each identifier counts in training: as in the search, where those that better ones overlap
        count nothing; or, as in the released code, all that a passage holds, by the tokens that better ones lack.
    :param dtype: What the model computes in: `bfloat16` takes a third of the time where the hardware has it.
    :param seed: Of the draw and of the folds.
    """

    search: dict[str, Any] = field(default_factory=dict)
    top_k: Count = 100
    keys: Count = 40
    folds: Annotated[int, Field(ge=2)] = 4
    questions: Natural = 0
    label_by: LabelBy = "qrels"
    cover: Literal["search", "released"] = "search"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: Natural = 13


def mine_generative(
    model: str | Path, questions: QuestionSet, config: MineConfig, path: Path, *, device: str | None = None,
    inputs: Sequence[str | Path] = (), report: Reporter | None = None, resume: bool = True,
) -> Path:  # fmt: skip
    """
    Search with a set's questions and write what is found; a file that is there and still true is kept.

    Questions without a positive or without a negative among the documents are left out and counted.

    :param model: Folder of a generative retriever.
    :param questions: Training questions and the passages to be searched.
    :param config: What is mined.
    :param path: A `candidates.jsonl.gz`; fold after fold, question after question, best documents first.
    :param device: Device name; None for the best one there is.
    :param inputs: More files that the result depends on.
    :param report: Where progress goes.
    :param resume: Whether parts of an interrupted run are used, or thrown away.
    :returns: `path`.
    :raises ModelError: If the model is no generative retriever.
    :raises DataError: If no question has a positive and a negative, if answers are needed that the questions lack, or
        if the disk is full; parts that are finished are kept.
    """
    report = report or Silent()
    folder = resolve_model(str(model))
    grammar, tokenizer = read_grammar(folder)
    search = search_config(config.search)
    if config.label_by == "answer_string" and not any(question.answers for question in questions.questions):
        msg = f"mine.label_by is 'answer_string', but no question of '{questions.name}' has answers. Use 'qrels'."
        raise DataError(msg)
    name = input_names(models=(model,))[0]
    hashes = {str(each): path_hash(each) for each in (*input_names(questions.files or {}), name, *inputs)}
    made_by = {
        "stage": "mine", "set": questions.name, "settings": to_plain(config), "search": _plain(asdict(search)),
        "model_sha256": hashes[name], "tokenizer": tokenizer.fingerprint, "grammar": _plain(grammar.to_dict()),
    }  # fmt: skip
    with main_first():
        if is_wanted(path, made_by, resume=resume):
            loaded = load_seq2seq(str(folder), device=device, dtype=config.dtype)
            engine = GenerativeEngine(loaded.decoder, tokenizer, grammar, search)
            counts = _Miner(engine, questions, config).write(
                Parts(path, made_by, hashes, resume=resume, report=report), report
            )
            report.event("mined", file=str(path), **counts)
            if not counts.get("kept"):
                msg = f"'{path}': none of the {counts['questions']} questions has a positive and a negative: {counts}."
                raise DataError(msg)
    return path


class Chunk(NamedTuple):
    """Questions of one fold that are written together."""

    fold: int
    rows: list[int]


def deal(questions: QuestionSet, config: MineConfig) -> list[Chunk]:
    """
    Draw questions and deal them into folds; questions with the same words come into the same fold.

    :param questions: The set.
    :param config: How many, and how many folds.
    """
    rows = np.arange(len(questions.questions))
    generator = np.random.default_rng(config.seed)
    if 0 < config.questions < len(rows):
        rows = np.sort(generator.choice(rows, config.questions, replace=False))
    same: dict[str, list[int]] = {}
    for row in rows.tolist():
        same.setdefault(normalise(questions.questions[row].text), []).append(row)
    groups = list(same.values())
    folds: list[list[int]] = [[] for _ in range(config.folds)]
    for place, group in enumerate(generator.permutation(len(groups)).tolist()):
        folds[place % config.folds] += groups[group]
    return [
        Chunk(number, sorted(fold)[first : first + _PART])
        for number, fold in enumerate(folds)
        for first in range(0, len(fold), _PART)
    ]


def queries_without(questions: QuestionSet, held_out: Sequence[int]) -> list[list[str]]:
    """
    Return the pseudo-queries of each passage: its own and the questions about it, without those held out.

    :param questions: The set.
    :param held_out: Rows of questions that must not be among them, in whatever case or punctuation.
    """
    forbidden = {normalise(questions.questions[row].text) for row in held_out}
    queries = [list(passage.queries) for passage in questions.passages]
    for question, rows in zip(questions.questions, questions.positives, strict=True):
        for row in rows:
            queries[row].append(question.text)
    return [[query for query in dict.fromkeys(several) if normalise(query) not in forbidden] for several in queries]


class _Miner:
    """Searches chunk by chunk."""

    def __init__(self, engine: GenerativeEngine, questions: QuestionSet, config: MineConfig) -> None:
        self._engine, self._questions, self._config = engine, questions, config
        self._labels = Labels(questions, config.label_by)

    def write(self, parts: Parts, report: Reporter) -> dict[str, int]:
        chunks = deal(self._questions, self._config)
        left = sum(len(chunk.rows) for number, chunk in enumerate(chunks) if not parts.is_done(number))
        index, built = SuffixIndex([]), -1
        with Task(report, f"mine {self._questions.name}", left) as task:
            for number, (fold, rows) in enumerate(chunks):
                if parts.is_done(number):
                    continue
                if fold != built:
                    held_out = [row for chunk in chunks if chunk.fold == fold for row in chunk.rows]
                    with parts.explaining(f"index without fold {fold + 1}"):
                        index, built = self._index(held_out, parts.folder / "index"), fold
                counts: Counter[str] = Counter(questions=len(rows))
                lines = [candidate_line(c) for c in self._chunk(rows, index, task, counts)]
                first, last = (self._questions.questions[row].id for row in (rows[0], rows[-1]))
                parts.write(number, lines, counts, f"questions '{first}' to '{last}'")
        return parts.join(len(chunks))

    def _index(self, held_out: Sequence[int], folder: Path) -> SuffixIndex:
        shutil.rmtree(folder, ignore_errors=True)
        queries = queries_without(self._questions, held_out)
        return build_index(self._questions.passages, queries, self._engine.tokenizer, self._engine.grammar, folder)

    def _chunk(self, rows: Sequence[int], index: SuffixIndex, task: Task, counts: Counter[str]) -> Iterator[Candidate]:
        for first in range(0, len(rows), self._engine.batch_size):
            batch = rows[first : first + self._engine.batch_size]
            found = self._engine.match([self._questions.questions[row].text for row in batch], index)
            for row, match in zip(batch, found, strict=True):
                candidates = self._candidates(row, match)
                positives = sum(bool(candidate.label) for candidate in candidates)
                outcome = "kept" if 0 < positives < len(candidates) else f"without_{_missing(positives)}"
                counts[outcome] += 1
                if outcome == "kept":
                    yield from candidates
            task.advance(len(batch))

    def _candidates(self, row: int, match: Matches) -> list[Candidate]:
        top_k, question = self._config.top_k, self._questions.questions[row]
        positives = set(self._questions.positives[row])
        further = [p for p in range(top_k, len(match.numbers_D)) if int(match.numbers_D[p]) in positives]
        texts: dict[int, str] = {}
        candidates = []
        for place in [*range(min(top_k, len(match.numbers_D))), *further]:
            passage = int(match.numbers_D[place])
            label = self._labels.label(row, passage)
            if place < top_k or label:
                keys = self._keys(match, place, texts)
                score = float(f"{match.scores_D[place]:.8g}")
                name = self._questions.passages[passage].id
                candidates.append(Candidate(question.id, name, place + 1, score, label, self._labels.source, keys))
        return candidates

    def _covered(self, match: Matches, place: int) -> Iterable[tuple[int, float]]:
        """Yield the best identifiers of a document with their covers."""
        most = self._config.keys
        if self._config.cover == "search":
            keys_N, _, covers_N = match.identifiers(place)
        else:
            keys_N = match.occurring(place)
            sequences_N = [row[row >= 0].tolist() for row in match.keys.sequences()[keys_N]]
            beta = self._engine.config.beta
            covers_N = covers(sequences_N, match.powers_K[keys_N], beta=beta, mode="released")
        return zip(keys_N[:most].tolist(), covers_N[:most].tolist(), strict=True)

    def _keys(self, match: Matches, place: int, texts: dict[int, str]) -> tuple[Key, ...]:
        keys, found = match.keys, []
        for k, cover in self._covered(match, place):
            if k not in texts:
                texts[k] = self._engine.text(keys, k)
            tokens = tuple(token for token in keys.tokens_KT[k].tolist() if token >= 0)
            view = keys.views[keys.views_K[k]].name
            log_probability, prior = round(float(keys.log_probs_K[k]), 6), float(f"{match.priors_K[k]:.7g}")
            found.append(Key(texts[k], view, log_probability, int(keys.counts_K[k]), tokens, round(cover, 6), prior))
        return tuple(found)


def _missing(positives: int) -> str:
    return "negative" if positives else "positive"


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples become lists."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
