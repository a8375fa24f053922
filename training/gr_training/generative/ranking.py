"""
Learning to rank for generative retrieval: the stages that `ltrgr`, `dgr` and `joint_generative` share.

    pseudo-queries   questions about passages that nobody asked about, if the recipe wants them
    pairs      the training pairs as a file, if the recipe wants one; otherwise they are drawn during training
    train      a likelihood model (as `minder`), unless the recipe starts from a trained one
    mine-1     search for the training questions with it; keep what each passage was found by
    teach-1    let teachers score what was found, if the loss has any
    rank-1     train the model so that the identifiers of better passages become more probable; `joint_generative` has
               joint-1 in its place, which trains the teacher too
    mine-2 …   again with the model of the round before, as often as the recipe says
    calibrate  fit, on the validation questions, what makes the last model's scores probabilities

The score of a passage is that of inference: the weighted identifiers that found it. Only their probabilities change, so
the index and the cost of a search stay what they were.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gr_components.data.files import writing
from gr_components.decoding.config import SearchConfig
from gr_components.decoding.grammar import Grammar
from gr_components.errors import ConfigError
from gr_components.models.description import read_description, write_description
from gr_components.models.resolve import resolve_model
from gr_components.models.seq2seq.folder import LoadedSeq2Seq, load_seq2seq
from gr_training import estimate
from gr_training.config import STRICT_KEYS, ModelName, checked_dataclass, to_plain
from gr_training.distributed import check_shared, main_first
from gr_training.distributed import rank as rank_of_process
from gr_training.fitting import Count, FitConfig, Fraction
from gr_training.generative.identifier_batches import GrammarConfig
from gr_training.generative.mining import MineConfig, mine_generative
from gr_training.generative.multi_view import (
    MultiViewConfig,
    likelihood_minutes,
    start_multi_view,
    train_multi_view,
)
from gr_training.generative.pair_files import PairFileConfig, write_pairs
from gr_training.generative.pairs import PairsConfig
from gr_training.generative.pseudo_query_stages import PseudoQueriesConfig, PseudoQueryStages, replace_corpora
from gr_training.generative.rank_stage import RankConfig, RankInputs, rank
from gr_training.generative.ranking_lists import ListsConfig
from gr_training.generative.search_validation import SearchValidation, search_config, training_questions
from gr_training.mining.teachers import TeacherConfig, teach
from gr_training.run import Run, publish
from gr_training.sources import (
    HeldOutConfig,
    QuestionSet,
    SourceConfig,
    ValidationConfig,
    files_of,
    load_sources,
    load_validation,
)
from gr_training.stages import Stage, run_stages
from gr_training.starts import StartConfig

PAIRS, CALIBRATE = "pairs", "calibrate"
_CANDIDATES, _PAIRS, _CALIBRATION = "candidates.jsonl.gz", "pairs.jsonl.gz", "calibration.json"
_DECODING_STEPS = 40  # of all views together, as long as their longest identifiers


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class LikelihoodConfig:
    """
    The stage `train`: settings of the recipe `minder` that the chain does not have itself.

    :param start: The model to start from.
    :param grammar: For a model without a grammar of its own.
    :param smoothing: Label smoothing; only without a copy head.
    :param sources_per_step: Sources of each round.
    :param fit: The training loop.
    """

    start: StartConfig
    grammar: GrammarConfig = field(default_factory=GrammarConfig)
    smoothing: Fraction = 0.0
    sources_per_step: Count = 16
    fit: FitConfig


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class ChainConfig:
    """
    Settings that all recipes which learn to rank share.

    :param model: A trained generative retriever to start from; or null and `likelihood`.
    :param likelihood: How to train one first; or null and `model`.
    :param pseudo_queries: Where pseudo-queries come from; null for what the corpora have.
    :param pairs: Which identifiers the likelihood losses draw.
    :param pairs_file: How many pairs are written to a file that `train` reads; null draws them during training.
    :param mined: Names of the training sets whose questions are mined; all if empty.
    :param mine: How.
    :param rounds: How often mining, teaching and ranking follow each other.
    :param search: Settings of the search in validation and mining, such as `beams`.
    :param weights: How the trained weights are stored.
    """

    model: ModelName | None = None
    likelihood: LikelihoodConfig | None = None
    pseudo_queries: PseudoQueriesConfig | None = None
    pairs: PairsConfig = field(default_factory=PairsConfig)
    pairs_file: PairFileConfig | None = None
    data: tuple[SourceConfig, ...]
    held_out: tuple[HeldOutConfig, ...] = ()
    validation: ValidationConfig
    search: dict[str, Any] = field(default_factory=dict)
    mined: tuple[str, ...] = ()
    mine: MineConfig = field(default_factory=MineConfig)
    rounds: Count = 1
    weights: Literal["float32", "float16", "int8"] = "float32"

    def __post_init__(self) -> None:
        if (self.model is None) == (self.likelihood is None):
            msg = "give either model (a trained generative retriever) or likelihood (how to train one)."
            raise ValueError(msg)
        if self.pairs_file is not None and self.likelihood is None:
            msg = "pairs_file is for the stage train, which a recipe with likelihood has."
            raise ValueError(msg)
        unknown = set(self.mined) - {source.name for source in self.data}
        if unknown:
            msg = f"mined names {sorted(unknown)}, but data has only {[source.name for source in self.data]}."
            raise ValueError(msg)
        if self.search and self.mine.search:
            msg = "set search for validation and mining alike, and leave mine.search out."
            raise ValueError(msg)
        names = [source.name for source in self.data]
        if len(set(names)) < len(names):
            msg = f"data: each set needs a name of its own, got {names}."
            raise ValueError(msg)
        search_config(self.search), search_config(self.mine.search, "mine.search")

    def check_ending(self, name: str, ending: RankConfig) -> None:
        """
        Make sure that training scores passages as the search does, and that what its lists ask for is mined.

        :param name: Of the recipe's section.
        :param ending: Its settings.
        :raises ValueError: If a search has another exponent than the loss, or a setting does nothing.
        """
        problems, alpha = [], ending.loss.alpha
        for where, settings in (("search", self.search), ("mine.search", self.mine.search or self.search)):
            searched = search_config(settings).alpha
            if searched != alpha:
                problems.append(f"loss.alpha is {alpha:g}, but {where} has alpha {searched:g}. Set both alike.")
                break
        if ending.pairs is not None and not ending.likelihood_weight:
            problems.append(f"{name}.pairs is of the likelihood term, which {name}.likelihood_weight 0 leaves out.")
        defaults = ListsConfig()
        for own, mined in (("length", "top_k"), ("keys", "keys")):
            wanted, kept = getattr(ending.lists, own), getattr(self.mine, mined)
            if wanted > kept and wanted != getattr(defaults, own):
                problems.append(f"{name}.lists.{own} is {wanted}, but mine.{mined} keeps only {kept}.")
        if problems:
            raise ValueError(" ".join(problems))


@checked_dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class RankingConfig(ChainConfig):
    """
    Settings of `ltrgr` and `dgr`.

    :param teach: Teachers, by name.
    :param rank: Training on the lists.
    """

    teach: tuple[TeacherConfig, ...] = ()
    rank: RankConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ending("rank", self.rank)
        self.rank.loss.check_read()
        taught, wanted = {teacher.name for teacher in self.teach}, set(self.rank.loss.teachers)
        if len(taught) < len(self.teach):
            msg = f"teach: each teacher needs a name of its own, got {[teacher.name for teacher in self.teach]}."
            raise ValueError(msg)
        if taught and not wanted:
            msg = f"teach has {sorted(taught)}, but loss.kind {self.rank.loss.kind} reads labels alone. Take teach out."
            raise ValueError(msg)
        if not wanted <= taught:
            msg = f"rank.loss.teachers names {sorted(wanted - taught)}, but teach has only {sorted(taught)}."
            raise ValueError(msg)


@dataclass(frozen=True)
class Ending:
    """
    How a round ends: with the stage that trains on its lists.

    :param name: Of the stage, and of the recipe's section with its settings.
    :param config: These settings.
    :param work: Does it. Gets what is read, the stage's run, and the folder of the same stage a round before, or None.
    :param teach: Teachers that score the lists before.
    :param more: Folders of models that it writes besides `model`.
    :param models: Models that it starts from besides the retriever, as the recipe names them.
    :param minutes: Estimates what is trained besides the retriever.
    """

    name: str
    config: RankConfig
    work: Callable[[RankInputs, Run, Path | None], Path]
    teach: tuple[TeacherConfig, ...] = ()
    more: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    minutes: Callable[[], float | None] = lambda: 0.0


def train(config: RankingConfig, run: Run, only: str | None = None) -> Path:
    """
    Run the stages that are not done, or one of them.

    :param config: The recipe.
    :param run: Where and how.
    :param only: Name of the one stage to run; None runs all and puts the last model into `run.model`.
    :returns: The folder of the model, or of the stage.
    """
    return train_chain(config, _ranking(config), run, only)


def stages(config: RankingConfig) -> list[Stage]:
    """
    Return the stages of a recipe, for the plan.

    :param config: The recipe.
    """
    return chain_stages(config, _ranking(config))


def train_chain(config: ChainConfig, ending: Ending, run: Run, only: str | None) -> Path:
    """
    Run the stages that are not done, or one of them.

    :param config: The recipe.
    :param ending: How its rounds end.
    :param run: Where and how.
    :param only: Name of the one stage to run; None runs all and puts the last models into `run.out`.
    :returns: The folder of the generative retriever, or of the stage.
    :raises ConfigError: If a step has fewer examples than there are processes.
    """
    check_shared(ending.config.questions_per_step, f"{ending.name}.questions_per_step")
    if config.likelihood is not None:
        check_shared(config.likelihood.sources_per_step, "likelihood.sources_per_step")
    run_stages(chain_stages(config, ending), run, only)
    if only is not None:
        return run.out / only
    last = run.out / f"{ending.name}-{config.rounds}"
    calibration = json.loads((run.out / CALIBRATE / _CALIBRATION).read_text(encoding="utf-8"))

    def write(folder: Path) -> None:
        shutil.copytree(last / "model", folder)
        if calibration is not None:
            write_description(folder, {**(read_description(folder) or {}), "calibration": calibration})

    for name in ending.more:
        publish(run.out / name, partial(shutil.copytree, last / name))
    publish(run.model, write)
    return run.model


def chain_stages(config: ChainConfig, ending: Ending) -> list[Stage]:
    """
    Return the stages of a recipe, for the plan.

    :param config: The recipe.
    :param ending: How its rounds end.
    """
    return _Chain(config, ending).stages()


def _ranking(config: RankingConfig) -> Ending:
    return Ending("rank", config.rank, lambda inputs, run, _: rank(config.rank, inputs, run), config.teach)


class _Chain:
    """Builds the stages; data are read when the first stage needs them."""

    def __init__(self, config: ChainConfig, ending: Ending) -> None:
        self._config, self._ending, self._minutes = config, ending, _Minutes(config, ending)
        self._files = files_of(config.data, config.held_out, config.validation)
        self._first: tuple[str, ...] = ()  # what all later stages read besides the stage before
        self._pseudo = None
        if config.pseudo_queries is not None:
            self._pseudo = PseudoQueryStages(config.pseudo_queries, config.data, config.held_out, config.validation)
        self._loaded: tuple[list[QuestionSet], QuestionSet] | None = None

    def stages(self) -> list[Stage]:
        """Return them. Files that a stage reads are checked before it is taken for done."""
        return [stage if stage.files else replace(stage, files=self._files) for stage in self._all()]

    def _all(self) -> list[Stage]:
        config = self._config
        plain = to_plain(config)
        data = {name: plain[name] for name in ("data", "held_out", "validation")}
        made: list[Stage] = [] if self._pseudo is None else self._pseudo.stages()
        self._first = (made[-1].name,) if made else ()
        if config.likelihood is not None:
            own = {**data, "likelihood": plain["likelihood"], "pairs": plain["pairs"], "search": plain["search"]}
            after = self._first
            if config.pairs_file is not None:
                written = {**own, "pairs_file": plain["pairs_file"]}
                size = f"{config.pairs_file.per_question} for each question"
                made.append(Stage(PAIRS, self._write_pairs, written, after, size))
                after = (*after, PAIRS)
            size = f"{config.likelihood.fit.steps:,} steps"
            models = (config.likelihood.start.model,)
            made.append(Stage("train", self._train, own, after, size, self._minutes.train, models=models))
        for number in range(1, config.rounds + 1):
            start = "train" if config.likelihood is not None else ""
            before = f"{self._ending.name}-{number - 1}" if number > 1 else start
            made += self._round(number, before, plain, data)
        own = {"validation": plain["validation"], "search": plain["search"]}
        after, size = (made[-1].name,), f"{config.validation.sample or 'all'} validation questions"
        return [*made, Stage(CALIBRATE, self._calibrate, own, after, size, self._minutes.calibrate)]

    def _round(self, number: int, before: str, plain: dict[str, Any], data: dict[str, Any]) -> list[Stage]:
        config, ending = self._config, self._ending
        mined = {**data, "mine": plain["mine"], "mined": plain["mined"], "search": plain["search"]}
        model = {} if before else {"model": plain["model"]}
        models = () if before else (str(config.model),)
        after = (*self._first, *((before,) if before else ()))
        size = f"{config.mine.questions or 'all'} questions of each set"
        made = [
            Stage(f"mine-{number}", lambda run: self._mine(run, before), {**mined, **model}, after, size,
                  self._minutes.mine, models=models)
        ]  # fmt: skip
        last = made[-1].name
        if ending.teach:
            made.append(
                Stage(
                    f"teach-{number}", lambda run: self._teach(run, f"mine-{number}"), {"teach": plain["teach"]},
                    (last,), ", ".join(teacher.name for teacher in ending.teach), self._minutes.teach,
                    files=(*self._files, *(teacher.run for teacher in ending.teach if teacher.run is not None)),
                    models=tuple(teacher.model for teacher in ending.teach if teacher.model is not None),
                )
            )  # fmt: skip
            last = made[-1].name
        read = (last, before) if before else (last,)
        ranked = {**data, **model, ending.name: plain[ending.name], "pairs": plain["pairs"], "search": plain["search"],
                  "weights": plain["weights"]}  # fmt: skip
        lists = made[-1].name
        previous = before if number > 1 else ""
        work = lambda run: self._end(run, before, lists, previous)  # noqa: E731 - as short as the others
        size = f"{ending.config.fit.steps:,} steps of {ending.config.questions_per_step} lists"
        models = (*models, *ending.models)
        made.append(Stage(f"{ending.name}-{number}", work, ranked, read, size, self._minutes.end, models=models))
        return made

    def _data(self, run: Run) -> tuple[list[QuestionSet], QuestionSet]:
        if self._loaded is None:
            config = self._config
            data, validation = self._sources(run)
            sets = load_sources(data, config.held_out, run.report)
            self._loaded = sets, load_validation(validation, config.held_out)
        return self._loaded

    def _sources(self, run: Run) -> tuple[tuple[SourceConfig, ...], ValidationConfig]:
        """Return what is read: the recipe's files, or in place of its corpora those with pseudo-queries."""
        config = self._config
        corpora = {} if self._pseudo is None else self._pseudo.corpora(run.out.parent)
        searched = corpora.get(config.validation.corpus, config.validation.corpus)
        return replace_corpora(config.data, corpora), replace(config.validation, corpus=searched)

    def _train(self, run: Run) -> None:
        train_multi_view(self._likelihood(run), run, calibrated=False)

    def _write_pairs(self, run: Run) -> None:
        config, sets = self._config, self._data(run)[0]
        assert config.pairs_file is not None
        started, grammar = start_multi_view(self._likelihood(run), sets)
        run.out.mkdir(parents=True, exist_ok=True)
        write_pairs(run.out / _PAIRS, sets, started.tokenizer, grammar, config.pairs, config.pairs_file, run.report)

    def _likelihood(self, run: Run) -> MultiViewConfig:
        config, likelihood = self._config, self._config.likelihood
        assert likelihood is not None
        data, validation = self._sources(run)
        return MultiViewConfig(
            start=likelihood.start, grammar=likelihood.grammar, pairs=config.pairs, smoothing=likelihood.smoothing,
            data=data, held_out=config.held_out, validation=validation, search=config.search,
            pairs_from=None if config.pairs_file is None else str(run.out.parent / PAIRS / _PAIRS),
            sources_per_step=likelihood.sources_per_step, fit=likelihood.fit,
        )  # fmt: skip

    def _model(self, run: Run, before: str) -> Path:
        if before:
            return run.out.parent / before / "model"
        assert self._config.model is not None
        return resolve_model(self._config.model)

    def _sets(self, run: Run) -> list[QuestionSet]:
        chosen, sets = self._config.mined, self._data(run)[0]
        found = [each for each in sets if each.questions and (not chosen or each.name in chosen)]
        if not found:
            msg = f"mined names {list(chosen)}, of which no question is left; there are {[each.name for each in sets]}."
            raise ConfigError(msg)
        return found

    def _mine(self, run: Run, before: str) -> None:
        config = self._config.mine
        settings = replace(config, search=config.search or self._config.search)
        for each in self._sets(run):
            mine_generative(
                self._model(run, before), each, settings, _file(run.out, each), device=run.device, report=run.report,
                resume=run.resume,
            )  # fmt: skip

    def _teach(self, run: Run, mined: str) -> None:
        for each in self._sets(run):
            source = _file(run.out.parent / mined, each)
            teach(source, _file(run.out, each), self._ending.teach, each, device=run.device, report=run.report,
                  resume=run.resume)  # fmt: skip

    def _end(self, run: Run, before: str, lists: str, previous: str) -> None:
        sets, validation = self._data(run)
        files = {each.name: _file(run.out.parent / lists, each) for each in self._sets(run)}
        inputs = RankInputs(
            model=self._model(run, before), candidates=files, sets=sets, validation=validation,
            pairs=self._config.pairs, search=self._config.search, recipe=to_plain(self._config),
            weights=self._config.weights,
        )  # fmt: skip
        self._ending.work(inputs, run, run.out.parent / previous if previous else None)

    def _calibrate(self, run: Run) -> None:
        sets, validation = self._data(run)
        model = run.out.parent / f"{self._ending.name}-{self._config.rounds}" / "model"
        with main_first():
            if rank_of_process() == 0:
                loaded = load_seq2seq(str(model), device=run.device)
                fitted = self._fitted(loaded, sets, validation, run)
                run.out.mkdir(parents=True, exist_ok=True)
                with writing(run.out / _CALIBRATION) as file:
                    file.write(json.dumps(fitted, indent=2) + "\n")

    def _fitted(
        self, loaded: LoadedSeq2Seq, sets: list[QuestionSet], validation: QuestionSet, run: Run
    ) -> dict[str, Any] | None:
        grammar, asked = Grammar.from_dict(loaded.info["grammar"]), training_questions(sets, validation)
        with tempfile.TemporaryDirectory(prefix="gr-validation-") as temporary:
            searching = SearchValidation(
                validation, asked, loaded.tokenizer, grammar, self._config.search, Path(temporary),
                self._ending.config.fit.precision,
            )  # fmt: skip
            return searching.calibrate(loaded.model, run.report)


class _Minutes:
    """Rough times of the stages; nothing is read but config files, and nothing is computed before it is asked for."""

    def __init__(self, config: ChainConfig, ending: Ending) -> None:
        self._config, self._ending = config, ending

    def train(self) -> float | None:
        own = self._config.likelihood
        if own is None:
            return None
        return likelihood_minutes(own.start, self._config.pairs, own.sources_per_step, own.fit)

    def mine(self) -> float | None:
        mine = self._config.mine
        return self._searching(self._num_sets * mine.questions, mine.search or self._config.search)

    def calibrate(self) -> float | None:
        return self._searching(self._config.validation.sample, self._config.search)

    def _searching(self, questions: int, search: dict[str, Any]) -> float | None:
        if not questions:  # all of them, and nobody has counted
            return None
        beams = int(search.get("beams", SearchConfig().beams))
        return estimate.search_minutes(self._shape(), questions, beams, _DECODING_STEPS)

    def teach(self) -> float | None:
        mine, total = self._config.mine, 0.0
        for teacher in self._ending.teach:
            if teacher.model is not None:
                shape = estimate.shape_of(teacher.model)
                pairs = self._num_sets * mine.questions * mine.top_k
                minutes = estimate.scoring_minutes(shape, pairs) if pairs else None
                if minutes is None:
                    return None
                total += minutes
        return total

    def end(self) -> float | None:
        rank, more = self._ending.config, self._ending.minutes()
        questions = rank.questions_per_step * rank.fit.accumulate
        own = estimate.rank_minutes(
            self._shape(), rank.fit.steps, questions, rank.lists.length, rank.lists.keys, rank.lora is not None
        )
        return None if own is None or more is None else own + more

    @property
    def _num_sets(self) -> int:
        return len(self._config.mined or self._config.data)

    def _shape(self) -> estimate.Shape | None:
        likelihood = self._config.likelihood
        if likelihood is None:
            return estimate.shape_of(str(self._config.model))
        return estimate.shape_of_start(likelihood.start)


def _file(folder: Path, each: QuestionSet) -> Path:
    return folder / f"{each.name}.{_CANDIDATES}"
