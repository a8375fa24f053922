"""Validate a generative retriever by searching with it, over a suffix index that is built once."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from gr_components.data import Passage
from gr_components.decoding.calibration import Calibration
from gr_components.decoding.config import SearchConfig
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import BODY, QUERY, TITLE, Grammar, layout_documents
from gr_components.errors import ConfigError, DataError
from gr_components.evaluation import evaluate_run
from gr_components.indexes.suffix import SuffixSegment
from gr_components.indexes.suffix_index import SuffixIndex
from gr_components.models.description import read_description, write_description
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.models.seq2seq.torch_decoder import TorchDecoder
from gr_components.progress import Reporter
from gr_components.tokenization import TextTokenizer
from gr_training.generative.list_calibration import fit_calibration, log_loss
from gr_training.held_out import without_leaks
from gr_training.sources import QuestionSet

_VIEWS = (BODY, TITLE, QUERY)  # of every grammar that is made here; a model may lack the last one
_MEASURES = ("nDCG@10", "Success@1", "R@10")


class SearchValidation:
    """
    Validation questions and the index that they search.

    :param questions: Validation questions, and the passages to be searched.
    :param queries: Pseudo-queries by passage id; training questions only.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    :param search: Settings of the search, such as `beams`.
    :param folder: For the index, which is mapped from there: it must live as long as this object is used.
    :param precision: `bfloat16` searches with a copy of the model in that type: a third of the time on hardware that
        has it, figures equal to about .002.
    :raises ConfigError: If a setting is unknown or out of range.
    """

    def __init__(
        self, questions: QuestionSet, queries: Mapping[str, Sequence[str]], tokenizer: TextTokenizer, grammar: Grammar,
        search: Mapping[str, Any], folder: Path, precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:  # fmt: skip
        self._questions, self._queries = questions, queries
        self._tokenizer, self._grammar, self._folder = tokenizer, grammar, folder
        self._config, self._precision = search_config(search), precision

    def evaluate(self, model: Seq2SeqModel) -> dict[str, float]:
        """
        Search with the model and measure.

        :param model: In evaluation mode.
        """
        return self.measure(self.search(model))

    def measure(self, run: Mapping[str, Sequence[tuple[str, float]]]) -> dict[str, float]:
        """
        Measure what a search found.

        :param run: Ids of passages and scores, best first, by the id of the question.
        """
        return evaluate_run(run, self._questions.qrels, _MEASURES).means

    def calibrate(self, model: Seq2SeqModel, report: Reporter) -> dict[str, Any] | None:
        """
        Search with the model and fit what makes its scores probabilities.

        :param model: In evaluation mode.
        :param report: Told what came out.
        :returns: The entry `calibration` of `gr_model.json`, with the log-loss over the validation questions; None if
            these do not suffice, which is reported and no reason to lose a trained model.
        """
        run = self.search(model, Calibration.depth)
        relevant = {
            name: frozenset(passage for passage, grade in judged.items() if grade > 0)
            for name, judged in self._questions.qrels.items()
        }
        try:
            fitted = fit_calibration(run, relevant, alpha=self._config.alpha)
        except DataError as error:
            report.event("WARNING: not calibrated", reason=str(error))
            return None
        loss = round(log_loss(fitted, run, relevant), 4)
        report.event("calibrated", slope=round(fitted.slope, 3), absent=round(fitted.absent, 2), log_loss=loss)
        return {**fitted.to_dict(), "log_loss": loss, "questions": len(run)}

    def calibrate_folder(self, folder: Path, device: str | None, report: Reporter) -> None:
        """
        Calibrate a model as it was stored, and write the outcome into its `gr_model.json`.

        :param folder: Of the model.
        :param device: Device name; None for the best one there is.
        :param report: Told what came out.
        """
        fitted = self.calibrate(load_seq2seq(str(folder), device=device).model, report)
        if fitted is not None:
            write_description(folder, {**(read_description(folder) or {}), "calibration": fitted})

    def search(self, model: Seq2SeqModel, top_k: int = 10) -> dict[str, list[tuple[str, float]]]:
        """
        Search with the validation questions.

        :param model: In evaluation mode.
        :param top_k: Passages for each question.
        :returns: Ids of passages and scores, best first, by the id of the question.
        """
        if self._precision == "bfloat16":
            model = copy.deepcopy(model).to(torch.bfloat16)
        engine = GenerativeEngine(TorchDecoder(model), self._tokenizer, self._grammar, self._config)
        texts = [question.text for question in self._questions.questions]
        with torch.no_grad():
            results = engine.search(texts, self._index, top_k=top_k)
        return {
            question.id: [(self._questions.passages[hit.number].id, hit.score) for hit in result.hits]
            for question, result in zip(self._questions.questions, results, strict=True)
        }

    @cached_property
    def _index(self) -> SuffixIndex:
        passages = self._questions.passages
        several = [(*passage.queries, *self._queries.get(passage.id, ())) for passage in passages]
        queries = [tuple(dict.fromkeys(each)) for each in several]
        return build_index(passages, queries, self._tokenizer, self._grammar, self._folder / "segment")


def search_config(settings: Mapping[str, Any], where: str = "search") -> SearchConfig:
    """
    Return the settings of a search that a recipe gives.

    :param settings: Plain values, such as `{beams: 10, views: [body, title]}`.
    :param where: The recipe's section, for errors.
    :raises ConfigError: If a setting or a view is unknown, or a value is out of range.
    """
    known = [field.name for field in fields(SearchConfig)]
    problems = [f"unknown key '{name}'. {_nearest(name, known)}" for name in settings if name not in known]
    views = settings.get("views")
    if isinstance(views, list | tuple):
        problems += [
            f"views: there is no view {view!r}. {_nearest(view, _VIEWS)}" for view in views if view not in _VIEWS
        ]
    if problems:
        msg = f"{where}: {' '.join(problems)}"
        raise ConfigError(msg)
    return SearchConfig(**{**settings, "views": tuple(views) if isinstance(views, list) else views})


def _nearest(name: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known are {', '.join(known)}."


def build_index(
    passages: Sequence[Passage], queries: Sequence[Sequence[str]], tokenizer: TextTokenizer, grammar: Grammar,
    folder: Path,
) -> SuffixIndex:  # fmt: skip
    """
    Build a suffix index of passages, numbered by their rows.

    :param passages: D passages; their own pseudo-queries are ignored.
    :param queries: D lists of pseudo-queries.
    :param tokenizer: The model's tokenizer.
    :param grammar: The model's grammar.
    :param folder: Where the index is written; it is mapped from there and must live as long as it is used.
    """
    documents = layout_documents(
        range(len(passages)), [p.title for p in passages], [p.text for p in passages], queries, grammar, tokenizer
    )
    segment = SuffixSegment.build(
        folder, documents, fields=grammar.fields, boundary=grammar.boundary,
        tokenizer_fingerprint=tokenizer.fingerprint, vocabulary_size=tokenizer.vocabulary_size,
    )  # fmt: skip
    return SuffixIndex([segment])


def training_questions(sets: Sequence[QuestionSet], validation: QuestionSet) -> dict[str, list[str]]:
    """
    Return training questions by the passages that validation searches: the pseudo-queries that its index will have.

    None holds a validation question, whatever the recipe holds out.

    :param sets: Training sets.
    :param validation: Validation questions and the passages they search.
    """
    known = {passage.id for passage in validation.passages}
    asked = [
        (each.passages[row].id, question.text)
        for each in sets
        for question, rows in zip(each.questions, each.positives, strict=True)
        for row in rows
        if each.passages[row].id in known
    ]
    found: dict[str, list[str]] = {}
    for passage, text in without_leaks([q.text for q in validation.questions], asked, lambda pair: pair[1]):
        found.setdefault(passage, []).append(text)
    return found
