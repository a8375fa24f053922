"""
The stages `question-generator` and `pseudo-queries`, which recipes put before their training.

    question-generator   train a model that writes questions, unless one is given
    pseudo-queries       write each training set's corpus with pseudo-queries

Later stages read those corpora in place of the originals, so that pairs, mining and validation see the same queries as
an index that `gr index` builds from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gr_components.errors import ConfigError, DataError
from gr_components.models.resolve import resolve_model
from gr_training.config import STRICT_KEYS, ModelName, checked_dataclass, to_plain
from gr_training.fitting import Count, FitConfig
from gr_training.generative.pseudo_queries import PseudoQueryConfig, attach_questions, generate_queries
from gr_training.generative.question_training import (
    QuestionTrainingConfig,
    generator_minutes,
    train_question_generator,
)
from gr_training.run import Run
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    files_of,
    held_out_texts,
    load_sources,
)
from gr_training.stages import Stage
from gr_training.starts import StartConfig

GENERATOR, PSEUDO_QUERIES = "question-generator", "pseudo-queries"


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class GeneratorConfig:
    """
    How the question generator is trained: settings of the recipe `question_generator` without data.

    :param start: The model to start from.
    :param passage_tokens: Longest input.
    :param question_tokens: Longest question, its end included.
    :param passages_per_step: Passages of each round.
    :param questions_per_passage: Questions of each.
    :param fit: The training loop.
    """

    start: StartConfig
    passage_tokens: Annotated[int, Field(ge=16)] = 192
    question_tokens: Annotated[int, Field(ge=4)] = 32
    passages_per_step: Count = 16
    questions_per_passage: Count = 2
    fit: FitConfig


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class PseudoQueriesConfig(PseudoQueryConfig):
    """
    Where pseudo-queries come from.

    :param model: A trained question generator; or null.
    :param generator: How to train one first; or null.
    :param training_questions: Whether the training questions become pseudo-queries of their passages: for the index of
        an application. In training and mining they are that in any case.
    """

    model: ModelName | None = None
    generator: GeneratorConfig | None = None
    training_questions: bool = False

    def __post_init__(self) -> None:
        if self.model is not None and self.generator is not None:
            msg = "give either model (a trained question generator) or generator (how to train one), not both."
            raise ValueError(msg)
        if self.model is None and self.generator is None and not self.training_questions:
            msg = "give a model, a generator, or training_questions: true; otherwise there are no pseudo-queries."
            raise ValueError(msg)


@dataclass(frozen=True)
class PseudoQueryStages:
    """
    The two stages.

    :param config: Where pseudo-queries come from.
    :param data: Training sets.
    :param held_out: Questions that must not be trained on.
    :param validation: Questions that select the generator; needed where one is trained.
    """

    config: PseudoQueriesConfig
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...]
    validation: ValidationConfig | None

    def stages(self) -> list[Stage]:
        """Return them; the first is missing where nothing is to be trained."""
        plain = to_plain(self.config)
        own = plain.pop("generator")
        data = {"data": [to_plain(each) for each in self.data], "held_out": [to_plain(each) for each in self.held_out]}
        made = []
        if self.config.generator is not None:
            selected = None if self.validation is None else to_plain(self.validation)
            trained = {**data, "validation": selected, "generator": own}
            size = f"{self.config.generator.fit.steps:,} steps"
            files = files_of(self.data, self.held_out, self.validation)
            models = (self.config.generator.start.model,)
            made.append(Stage(GENERATOR, self._train, trained, (), size, self._minutes, files=files, models=models))
        size = f"{self.config.sampling.per_document} of each passage" if self._writes else "the training questions"
        after = tuple(stage.name for stage in made)
        own, files = {**data, "pseudo_queries": plain}, files_of(self.data, self.held_out)
        given = () if self.config.model is None else (self.config.model,)
        corpora = tuple(source.corpus for source in self.data)
        return [
            *made,
            Stage(PSEUDO_QUERIES, self._write, own, after, size, files=files, models=given, replaces=corpora),
        ]

    def corpora(self, folder: Path) -> dict[str, str]:
        """
        Return, for each corpus of the recipe, the file that takes its place. Sets that were skipped have none.

        :param folder: The folder of the recipe's run.
        :raises DataError: If a file that was written is gone.
        """
        names: dict[str, Path] = {}
        for source in self.data:
            names.setdefault(source.corpus, folder / PSEUDO_QUERIES / source.name / "corpus.jsonl.gz")
        for path in names.values():
            if path.parent.is_dir() and not path.is_file():
                msg = f"'{path}' is gone, which the stage {PSEUDO_QUERIES} wrote. Remove that stage's folder."
                raise DataError(msg)
        return {corpus: str(path) for corpus, path in names.items() if path.is_file()}

    @property
    def _writes(self) -> bool:
        return self.config.model is not None or self.config.generator is not None

    def _minutes(self) -> float | None:
        own = self.config.generator
        if own is None:
            return None
        return generator_minutes(
            own.start, own.passage_tokens, own.passages_per_step, own.questions_per_passage, own.fit
        )

    def _train(self, run: Run) -> None:
        generator = self.config.generator
        assert generator is not None
        if self.validation is None:
            msg = "validation is needed to train a question generator."
            raise ConfigError(msg)
        train_question_generator(
            QuestionTrainingConfig(
                start=generator.start, data=self.data, held_out=self.held_out, validation=self.validation,
                passage_tokens=generator.passage_tokens, question_tokens=generator.question_tokens,
                passages_per_step=generator.passages_per_step, fit=generator.fit,
                questions_per_passage=generator.questions_per_passage,
            ),
            run,
        )  # fmt: skip

    def _write(self, run: Run) -> None:
        sets = load_sources(self.data, self.held_out, run.report)
        forbidden = held_out_texts(self.held_out)
        files = {source.name: source.corpus for source in self.data}
        for corpus in dict.fromkeys(files[each.name] for each in sets):
            own = [each for each in sets if files[each.name] == corpus]
            path = run.out / next(name for name, file in files.items() if file == corpus) / "corpus.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._writes:
                attach_questions(_together(own), path)
                continue
            written = path.with_name("generated.jsonl.gz") if self.config.training_questions else path
            generate_queries(
                self._model(run), corpus, self.config, written, forbidden=forbidden, device=run.device,
                report=run.report, resume=run.resume,
            )  # fmt: skip
            if self.config.training_questions:
                sources = [source for source in self.data if source.name in {each.name for each in own}]
                again = replace_corpora(sources, {corpus: str(written)})
                attach_questions(_together(load_sources(again, self.held_out)), path)

    def _model(self, run: Run) -> Path:
        if self.config.model is not None:
            return resolve_model(self.config.model)
        return run.out.parent / GENERATOR / "model"


def replace_corpora(sources: Sequence[SourceConfig], corpora: Mapping[str, str]) -> tuple[SourceConfig, ...]:
    """
    Return training sets that read other corpora.

    :param sources: Training sets.
    :param corpora: What takes the place of which corpus.
    """
    return tuple(replace(source, corpus=corpora.get(source.corpus, source.corpus)) for source in sources)


def _together(sets: Sequence[QuestionSet]) -> QuestionSet:
    """Return sets over one corpus as one set."""
    first = sets[0]
    files: dict[str, Any] = {path: digest for each in sets for path, digest in (each.files or {}).items()}
    return replace(
        first, name=", ".join(each.name for each in sets), files=files,
        questions=[question for each in sets for question in each.questions],
        positives=[rows for each in sets for rows in each.positives],
    )  # fmt: skip
