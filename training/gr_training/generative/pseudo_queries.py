"""
Pseudo-queries for a corpus: questions that a generator writes about each passage, or training questions that are there.

The result is a corpus whose lines have `queries`, which the generative index takes as its query view. What a generator
wrote is kept apart (`sampled.jsonl.gz`), so that another filter needs no new sampling. Questions that hold a held-out
one are dropped: a generator may hit upon a test question by chance, and what the index holds must not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gr_components.data import Passage, Question, normalise, read_corpus, write_corpus
from gr_components.data.candidates import path_hash, write_sidecar
from gr_components.data.files import read_objects
from gr_components.errors import DataError
from gr_components.models.description import read_description
from gr_components.models.resolve import resolve_model
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.progress import Reporter, Silent, Task
from gr_training.config import STRICT_KEYS, ModelName, checked_dataclass, to_plain
from gr_training.distributed import main_first
from gr_training.fitting import Count
from gr_training.generative.question_generator import QuestionLayout, QuestionSampler, SamplingConfig
from gr_training.held_out import without_leaking_queries, without_leaks
from gr_training.mining.lists import dense_search, lexical_search
from gr_training.mining.parts import Parts, is_wanted
from gr_training.sources import QuestionSet, input_names, local_file

_PART = 256

# Questions and a depth in; for each question the rows of the passages found, best first.
Retrieve = Callable[[Sequence[str], int], Sequence[Sequence[int]]]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class RoundTripConfig:
    """
    Which questions are kept: those that lead back to their passage.

    :param by: What searches: `bm25` over title and text, or `dense`.
    :param model: The encoder, for `dense`.
    :param top: The passage must be among so many.
    :param language: Of BM25's stemmer and stop words.
    """

    by: Literal["bm25", "dense"] = "bm25"
    model: ModelName | None = None
    top: Annotated[int, Field(ge=1)] = 10
    language: str = "english"

    def __post_init__(self) -> None:
        if (self.by == "dense") != (self.model is not None):
            msg = "round_trip.model is needed for 'dense', and only there."
            raise ValueError(msg)


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class PseudoQueryConfig:
    """
    Pseudo-queries by a generator.

    :param sampling: How questions are drawn.
    :param round_trip: Which are kept; null keeps all.
    :param most: Questions kept of each passage, the first drawn; null for all.
    """

    sampling: SamplingConfig = SamplingConfig()
    round_trip: RoundTripConfig | None = None
    most: Count | None = None


@dataclass(frozen=True)
class _Inputs:
    """What both steps read."""

    corpus: Path
    folder: Path
    hashes: dict[str, str]


def generate_queries(
    model: str | Path, corpus: str, config: PseudoQueryConfig, path: Path, *, forbidden: Sequence[str] = (),
    retrieve: Retrieve | None = None, device: str | None = None, report: Reporter | None = None, resume: bool = True,
) -> Path:  # fmt: skip
    """
    Write a corpus with generated pseudo-queries, after those that it has; a file that is there and still true is kept.

    Of both kinds those that hold a held-out question are left out and counted.

    :param model: Folder of a question generator.
    :param corpus: JSONL of passages.
    :param config: How.
    :param path: A corpus JSONL; `sampled.jsonl.gz` beside it keeps everything that was drawn.
    :param forbidden: Held-out questions, which no pseudo-query may hold.
    :param retrieve: Searches for the round trip in place of `config.round_trip.by`. A change inside it goes unnoticed.
    :param device: Device name; None for the best one there is.
    :param report: Where progress goes.
    :param resume: Whether parts of an interrupted run are used, or thrown away.
    :returns: `path`.
    :raises ModelError: If the model is no question generator.
    :raises DataError: If the corpus is empty, or the disk is full; what was drawn is kept.
    """
    report, folder, file = report or Silent(), resolve_model(str(model)), local_file(corpus)
    names = input_names((str(corpus),), (model,))
    inputs = _Inputs(file, folder, {name: path_hash(name) for name in names})
    drawn = {"stage": "sample", "sampling": to_plain(config.sampling), "model_sha256": inputs.hashes[names[-1]]}
    held_out = sha256("\n".join(sorted(forbidden)).encode()).hexdigest()
    made_by = {**drawn, "stage": "pseudo-queries", "settings": to_plain(config), "held_out": held_out}
    if retrieve is not None:
        made_by["retrieve"] = f"{retrieve.__module__}.{getattr(retrieve, '__qualname__', type(retrieve).__name__)}"
    with main_first():
        if is_wanted(path, made_by, resume=resume):
            passages, dropped = without_leaking_queries(forbidden, read_corpus(file))
            if not passages:
                msg = f"'{file}' has no passages to write questions about."
                raise DataError(msg)
            sampled = path.with_name("sampled.jsonl.gz")
            if is_wanted(sampled, drawn, resume=resume):
                _sample(passages, config.sampling, inputs, Parts(
                    sampled, drawn, inputs.hashes, resume=resume, report=report), device, report)  # fmt: skip
            queries, counts = _kept(passages, _read(sampled), config, forbidden, retrieve, report)
            counts["held_out_of_corpus"] = dropped
            pairs = zip(passages, queries, strict=True)
            write_corpus(path, (replace(p, queries=(*p.queries, *several)) for p, several in pairs))
            hashes = {**inputs.hashes, str(sampled): path_hash(sampled)}
            write_sidecar(path, made_by=made_by, hashes=hashes, summary=counts)
            report.event("pseudo-queries", file=str(path), **counts)
    return path


def attach_questions(questions: QuestionSet, path: Path) -> Path:
    """
    Write a set's corpus with its training questions as pseudo-queries.

    :param questions: The set: training questions only, held-out ones dropped (`load_sources`).
    :param path: A corpus JSONL.
    :returns: `path`.
    """
    queries: list[list[str]] = [list(passage.queries) for passage in questions.passages]
    for question, rows in zip(questions.questions, questions.positives, strict=True):
        for row in rows:
            queries[row].append(question.text)
    with main_first():
        pairs = zip(questions.passages, queries, strict=True)
        write_corpus(path, (replace(p, queries=tuple(dict.fromkeys(several))) for p, several in pairs))
        hashes = {name: path_hash(name) for name in input_names(questions.files or {})}
        made_by = {"stage": "pseudo-queries", "set": questions.name}
        write_sidecar(path, made_by=made_by, hashes=hashes, summary={"questions": len(questions.questions)})
    return path


def _sample(
    passages: Sequence[Passage], config: SamplingConfig, inputs: _Inputs, parts: Parts, device: str | None,
    report: Reporter,
) -> None:  # fmt: skip
    layout = QuestionLayout.from_info(read_description(inputs.folder) or {}, inputs.folder)
    loaded = load_seq2seq(str(inputs.folder), device=device)
    sampler = QuestionSampler(loaded.decoder, loaded.tokenizer, layout, config)
    chunks = [passages[first : first + _PART] for first in range(0, len(passages), _PART)]
    left = sum(len(chunk) for number, chunk in enumerate(chunks) if not parts.is_done(number))
    with Task(report, "pseudo-queries", left) as task:
        for number, chunk in enumerate(chunks):
            if parts.is_done(number):
                continue
            lines = []
            for first in range(0, len(chunk), config.batch_size):
                batch = chunk[first : first + config.batch_size]
                pairs = zip(batch, sampler.sample(batch), strict=True)
                lines += [{"id": passage.id, "queries": several} for passage, several in pairs]
                task.advance(len(batch))
            counts = {"passages": len(chunk), "questions": sum(len(line["queries"]) for line in lines)}
            parts.write(number, lines, counts, f"passages '{chunk[0].id}' to '{chunk[-1].id}'")
    parts.join(len(chunks))


def _read(sampled: Path) -> list[list[str]]:
    return [data["queries"] for _, data in read_objects(sampled)]


def _kept(
    passages: Sequence[Passage], sampled: Iterable[Sequence[str]], config: PseudoQueryConfig, forbidden: Sequence[str],
    retrieve: Retrieve | None, report: Reporter,
) -> tuple[list[list[str]], dict[str, int]]:  # fmt: skip
    """Return the questions that stay, by passage, and what became of the others."""
    pairs: list[tuple[int, str]] = []
    for row, (passage, several) in enumerate(zip(passages, sampled, strict=True)):
        known = {normalise(query) for query in passage.queries}
        for question in several:
            if normalise(question) not in known:
                known.add(normalise(question))
                pairs.append((row, question))
    counts = {"sampled": len(pairs)}
    permitted = without_leaks(forbidden, pairs, lambda pair: pair[1])
    counts["held_out"] = len(pairs) - len(permitted)
    if config.round_trip is not None or retrieve is not None:
        found = _round_trip(passages, permitted, config.round_trip or RoundTripConfig(), retrieve, report)
        counts["not_found_again"] = len(permitted) - len(found)
        permitted = found
    queries: list[list[str]] = [[] for _ in passages]
    for row, question in permitted:
        if config.most is None or len(queries[row]) < config.most:
            queries[row].append(question)
    counts["kept"] = sum(map(len, queries))
    counts["passages_without"] = sum(not several for several in queries)
    return queries, counts


def _round_trip(
    passages: Sequence[Passage], pairs: list[tuple[int, str]], config: RoundTripConfig, retrieve: Retrieve | None,
    report: Reporter,
) -> list[tuple[int, str]]:  # fmt: skip
    if retrieve is not None:
        rows: Sequence[Sequence[Any]] = retrieve([question for _, question in pairs], config.top)
    else:
        questions = [Question(str(number), question) for number, (_, question) in enumerate(pairs)]
        asked = QuestionSet("round trip", list(passages), questions, [[row] for row, _ in pairs], {})
        if config.model is None:
            found = lexical_search(asked, config.top, config.language, report)
        else:
            found = dense_search(asked, config.model, config.top, report)
        rows = [[row for row, _ in several] for several in found]
    return [pair for pair, several in zip(pairs, rows, strict=True) if pair[0] in list(several)[: config.top]]
