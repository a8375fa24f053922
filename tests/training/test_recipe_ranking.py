"""`ltrgr` and `dgr` from the recipe to a model that serves, on a tiny collection with a tiny encoder."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gr_components.data import Question, read_corpus, read_ids, read_qrels, write_corpus, write_questions
from gr_components.errors import ConfigError, ProvenanceError
from gr_components.models.description import read_description
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_training.checkpoint import load_weights
from gr_training.config import load_raw, parse
from gr_training.generative import ranking
from gr_training.generative.rank_stage import RankBatches
from gr_training.generative.ranking_lists import ListsConfig, draw, violating
from gr_training.generative.ranking_loss import LossConfig
from gr_training.recipes import recipe_module
from gr_training.recipes.dgr import Config as DGRConfig
from gr_training.recipes.ltrgr import Config as LTRGRConfig
from gr_training.run import Run

FIT = {"steps": 4, "learning_rate": 1e-3, "precision": "float32", "validate_every": 2, "checkpoint_every": 1,
       "log_every": 1}  # fmt: skip
LOSS = {"kind": "ltrgr", "scale": "reference", "margin": 0.2, "random_extra": 0.1}


@pytest.fixture(autouse=True)
def _same_process(monkeypatch):
    monkeypatch.setenv("GR_TRAIN_MALLOC", "0")


@pytest.fixture
def recipe(tiny_encoder, sources) -> dict[str, Any]:
    start = {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}}
    return {
        "recipe": "ltrgr",
        "likelihood": {"start": start, "sources_per_step": 6, "fit": FIT},
        **sources,
        "search": {"beams": 3},
        "mine": {"questions": 24, "top_k": 12, "keys": 6, "folds": 2},
        "rank": {"lists": {"length": 4, "keys": 6}, "loss": LOSS, "questions_per_step": 3, "likelihood_weight": 0.5,
                 "fit": FIT},
    }  # fmt: skip


@pytest.fixture
def taught(recipe, tiny_encoder) -> dict[str, Any]:
    teachers = [
        {"name": "words", "kind": "bm25"},
        {"name": "vectors", "kind": "bi_encoder", "model": str(tiny_encoder)},
    ]
    loss = {"kind": "dgr", "teachers": ["words", "vectors"], "scale": "reference", "margin": 0.2, "increment": 0.1}
    return {**recipe, "recipe": "dgr", "teach": teachers, "rank": {**recipe["rank"], "loss": loss}}


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_ltrgr_stage_by_stage_is_the_whole(tmp_path, recipe, gr_train, done):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    done(gr_train(tmp_path / "whole", recipe))
    for stage in ("train", "mine-1", "rank-1"):
        done(gr_train(tmp_path / "parts", recipe, "--stage", stage))
    assert not (tmp_path / "parts" / "run" / "model").exists()
    done(gr_train(tmp_path / "parts", recipe, "--resume"))
    models = [load_seq2seq(str(tmp_path / name / "run" / "model"), device="cpu").model for name in ("whole", "parts")]
    states = [model.state_dict() for model in models]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    before = load_seq2seq(str(tmp_path / "whole" / "run" / "train" / "model"), device="cpu").model.state_dict()
    assert any(not np.array_equal(states[0][name], before[name]) for name in before)
    info = read_description(tmp_path / "whole" / "run" / "model")
    assert info is not None
    assert (info["task"], info["recipe"]["recipe"], info["licence"]) == (
        "generative_retriever",
        "ltrgr",
        "CC-BY-SA-4.0",
    )
    assert set(info["metrics"]) == {"nDCG@10", "Success@1", "R@10"}
    losses = [
        line["loss"]
        for line in log(tmp_path / "whole" / "run" / "rank-1")
        if line["event"] == "train" and "loss" in line
    ]
    assert len(losses) == 4
    assert all(np.isfinite(losses))


def test_dgr_two_rounds_and_a_killed_run(tmp_path, taught, gr_train, done, monkeypatch):
    taught = {**taught, "rounds": 2}
    done(gr_train(tmp_path / "whole", taught))
    marks = sorted(path.parent.name for path in (tmp_path / "whole" / "run").glob("*/stage.json"))
    assert marks == ["calibrate", "mine-1", "mine-2", "rank-1", "rank-2", "teach-1", "teach-2", "train"]
    make, seen = RankBatches.make, []

    def killed(self, turn):
        seen.append(turn.step)
        if seen == [0, 1, 2, 3, 0, 1, 2]:  # in the third step of the second round
            raise KeyboardInterrupt
        return make(self, turn)

    monkeypatch.setattr(RankBatches, "make", killed)
    assert isinstance(gr_train(tmp_path / "killed", taught).exception, SystemExit)  # what click makes of it
    assert not (tmp_path / "killed" / "run" / "rank-2" / "model").exists()
    done(gr_train(tmp_path / "killed", taught, "--resume"))
    assert seen[7:] == [2, 3]
    best = [next((tmp_path / name / "run" / "rank-2").glob("best-*.safetensors")) for name in ("whole", "killed")]
    first, second = map(load_weights, best)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_one_stage_goes_on_where_it_was_and_restarts_alone(tmp_path, recipe, gr_train, done, monkeypatch):
    for stage in ("train", "mine-1"):
        done(gr_train(tmp_path, recipe, "--stage", stage))
    make, seen, until = RankBatches.make, [], [2]

    def killed(self, turn):
        seen.append(turn.step)
        if turn.step in until:
            raise KeyboardInterrupt
        return make(self, turn)

    monkeypatch.setattr(RankBatches, "make", killed)
    assert isinstance(gr_train(tmp_path, recipe, "--stage", "rank-1").exception, SystemExit)
    until[:] = [3]
    assert isinstance(gr_train(tmp_path, recipe, "--stage", "rank-1").exception, SystemExit)
    assert seen == [0, 1, 2, 2, 3], "what was done is not done again"
    mined = (tmp_path / "run" / "mine-1" / "stage.json").stat().st_mtime_ns
    slower = ("--set", "rank.fit.learning_rate=0.0001")
    assert isinstance(gr_train(tmp_path, recipe, "--stage", "rank-1", *slower).exception, ProvenanceError)
    until[:], seen[:] = [2], []
    assert isinstance(gr_train(tmp_path, recipe, "--stage", "rank-1", "--restart", *slower).exception, SystemExit)
    until.clear()
    done(gr_train(tmp_path, recipe, "--stage", "rank-1", *slower))
    assert seen == [0, 1, 2, 2, 3], "checkpoints of the settings before are gone"
    assert (tmp_path / "run" / "mine-1" / "stage.json").stat().st_mtime_ns == mined


def test_a_run_can_be_moved(tmp_path, recipe, gr_train, done):
    for stage in ("train", "mine-1"):
        done(gr_train(tmp_path, recipe, "--stage", stage))
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere" / "run")
    mined = (moved / "mine-1" / "stage.json").stat().st_mtime_ns
    done(gr_train(tmp_path / "elsewhere", recipe, "--resume"))
    assert (moved / "model").is_dir()
    assert (moved / "mine-1" / "stage.json").stat().st_mtime_ns == mined


def test_a_trained_model_goes_on_only_with_the_same_settings(tmp_path, recipe, gr_train, done, monkeypatch):
    done(gr_train(tmp_path / "first", recipe, "--stage", "train"))
    model = str(tmp_path / "first" / "run" / "train" / "model")
    recipe = {**{key: value for key, value in recipe.items() if key != "likelihood"}, "model": model}
    make = RankBatches.make

    def killed(self, turn):
        if turn.step == 2:
            raise KeyboardInterrupt
        return make(self, turn)

    with monkeypatch.context() as patch:
        patch.setattr(RankBatches, "make", killed)
        assert isinstance(gr_train(tmp_path / "second", recipe).exception, SystemExit)
    result = gr_train(tmp_path / "second", recipe, "--resume", "--set", "pairs.title=5")
    assert isinstance(result.exception, ProvenanceError)
    assert "pairs_of_recipe differ" in str(result.exception)
    done(gr_train(tmp_path / "second", recipe, "--resume"))


@pytest.mark.slow
def test_three_processes_share_the_work(tmp_path, taught, together):
    """About a minute. What the first one mines and scores, the others find there."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(taught))
    together(["-m", "gr_training", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu"], 3)
    assert load_seq2seq(str(tmp_path / "run" / "model"), device="cpu").info["recipe"]["recipe"] == "dgr"
    assert not list((tmp_path / "run").glob("*/.*.parts"))


def test_scores_on_the_scale_of_roots(tmp_path, recipe, gr_train, done):
    loss = {**LOSS, "scale": "root"}
    done(gr_train(tmp_path, {**recipe, "rank": {**recipe["rank"], "loss": loss, "likelihood_weight": 0.0}}))
    losses = [line["loss"] for line in log(tmp_path / "run" / "rank-1") if "loss" in line]
    # Half of each margin, and at most what the two differences of scores of about 1 add.
    assert losses
    assert all(0 < loss < 3 for loss in losses)


def test_a_changed_setting_is_refused_for_finished_stages(tmp_path, recipe, gr_train, done):
    done(gr_train(tmp_path, recipe, "--stage", "train"))
    done(gr_train(tmp_path, recipe, "--stage", "mine-1"))
    written = (tmp_path / "run" / "recipe.json").read_text()
    result = gr_train(tmp_path, recipe, "--resume", "--set", "mine.keys=7")
    assert (tmp_path / "run" / "recipe.json").read_text() == written
    assert isinstance(result.exception, ProvenanceError)
    assert "'mine-1'" in str(result.exception)
    assert "mine changed" in str(result.exception)


def test_a_changed_file_is_refused_for_finished_stages(tmp_path, recipe, gr_train, done):
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(recipe["data"][0]["corpus"], corpus)
    recipe["data"][0]["corpus"] = recipe["validation"]["corpus"] = str(corpus)
    done(gr_train(tmp_path, recipe, "--stage", "train"))
    done(gr_train(tmp_path, recipe, "--stage", "train", "--resume"))
    write_corpus(corpus, list(read_corpus(corpus))[:-1])
    result = gr_train(tmp_path, recipe, "--resume")
    assert isinstance(result.exception, ProvenanceError)
    stage = tmp_path / "run" / "train"
    assert f"'train' in '{stage}' was made from something else: '{corpus}' changed" in str(result.exception)


def test_stages_are_checked(tmp_path, recipe, gr_train):
    result = gr_train(tmp_path, recipe, "--stage", "rank-1")
    assert isinstance(result.exception, ConfigError)
    assert "--stage mine-1" in str(result.exception)
    result = gr_train(tmp_path, {**recipe, "recipe": "ltrgr"}, "--stage", "bake")
    assert "train, mine-1, rank-1" in str(result.exception)


def test_a_plan_with_times(tmp_path, taught, gr_train, done):
    result = gr_train(tmp_path, taught, "--dry-run")
    done(result)
    lines = result.stderr.splitlines()
    names = [line.split()[0] for line in lines if line][-6:]
    assert names == ["train", "mine-1", "teach-1", "rank-1", "calibrate", "total"]
    assert "4 steps of 3 lists" in lines[-3]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "some/model"}, "give either model"),
        ({"likelihood": None}, "give either model"),
        ({"mined": ["nothing"]}, "mined names \\['nothing'\\]"),
        ({"teach": []}, "rank.loss.teachers names \\['vectors', 'words'\\]"),
        ({"teach": [{"name": "words", "kind": "bm25"}] * 2}, "each teacher needs a name of its own"),
        ({"search": {"beamz": 3}}, r"recipe: search: unknown key 'beamz'\. Did you mean 'beams'\?$"),
        ({"search": {"views": ["bodyy"]}}, r"search: views: there is no view 'bodyy'\. Did you mean 'body'\?$"),
        (
            {"search": {"views": [["body"], "x"]}},
            r"no view \['body'\]\. .* no view 'x'\. Known are body, title, query\.$",
        ),
        ({"search": {"views": "body"}}, "views must be a tuple of different view names or None, got 'body'"),
        ({"search": {}, "mine": {"search": {"beamz": 3}}}, "recipe: mine.search: unknown key 'beamz'"),
        ({"search": {"alpha": 1.0}}, "loss.alpha is 2, but search has alpha 1"),
        ({"search": {}, "mine": {"search": {"alpha": 3.0}}}, "loss.alpha is 2, but mine.search has alpha 3"),
        ({"mine": {"top_k": 3}}, "rank.lists.length is 4, but mine.top_k keeps only 3"),
        ({"mine": {"keys": 5}}, "rank.lists.keys is 6, but mine.keys keeps only 5"),
    ],
)
def test_recipes_that_cannot_run(taught, change, message):
    with pytest.raises(ConfigError, match=message):
        parse(DGRConfig, {**taught, **change}, "x")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"kind": "dgr", "temperature": 0.5}, r"dgr does not read loss\.temperature\. .* default: temperature=1\.0"),
        ({"kind": "dgr", "teacher_temperature": 0.5}, "loss.teacher_temperature"),
        ({"kind": "dgr", "random_extra": 5, "pair_weights": [1, 0]},
         r"loss\.random_extra, loss\.pair_weights\. .* random_extra=100\.0, pair_weights=\[0\.5, 0\.5\]"),
        ({"kind": "listnet", "margin": 3}, "listnet does not read loss.margin"),
        ({"kind": "kl", "increment": 3}, "kl does not read loss.increment"),
        ({"kind": "margin_mse", "head_weights": False}, r"loss\.head_weights\. .* head_weights=true"),
        ({"kind": "listmle", "teacher_temperature": 3}, "loss.teacher_temperature"),
        ({"kind": "lambda_loss", "random_extra": 3}, "loss.random_extra"),
        ({"kind": "logistic_ranknet", "pair_weights": [1, 0]}, "loss.pair_weights"),
    ],
)  # fmt: skip
def test_settings_that_a_taught_loss_does_not_read(taught, loss, message):
    rank = {**taught["rank"], "loss": {"teachers": ["words", "vectors"], **loss}}
    with pytest.raises(ConfigError, match=message):
        parse(DGRConfig, {**taught, "rank": rank}, "x")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"kind": "ltrgr", "increment": 3}, "ltrgr does not read loss.increment"),
        ({"kind": "ltrgr", "head_weights": False}, "loss.head_weights"),
        ({"kind": "ltrgr", "temperature": 2, "teacher_temperature": 3}, "loss.temperature, loss.teacher_temperature"),
        ({"kind": "infonce", "margin": 3}, "infonce does not read loss.margin"),
        ({"kind": "infonce", "teacher_temperature": 3}, "loss.teacher_temperature"),
    ],
)  # fmt: skip
def test_settings_that_a_labelled_loss_does_not_read(recipe, loss, message):
    with pytest.raises(ConfigError, match=message):
        parse(LTRGRConfig, {**recipe, "rank": {**recipe["rank"], "loss": loss}}, "x")


def test_pairs_without_a_likelihood_term(recipe):
    rank = {**recipe["rank"], "likelihood_weight": 0, "pairs": {"title": 2}}
    with pytest.raises(ConfigError, match=r"rank\.pairs is of the likelihood term, which rank\.likelihood_weight 0"):
        parse(LTRGRConfig, {**recipe, "rank": rank}, "x")


def test_defaults_may_ask_for_more_than_is_mined(recipe):
    rank = {**recipe["rank"], "lists": {}}  # 6 passages with 40 identifiers
    assert parse(LTRGRConfig, {**recipe, "mine": {"top_k": 5, "keys": 6}, "rank": rank}, "x").mine.top_k == 5


def test_the_search_has_the_exponent_of_the_loss_too(recipe):
    rank = {**recipe["rank"], "loss": {**LOSS, "alpha": 3.0}}
    with pytest.raises(ConfigError, match=r"loss\.alpha is 3, but search has alpha 2"):
        parse(LTRGRConfig, {**recipe, "search": {}, "mine": {"search": {"alpha": 3.0}}, "rank": rank}, "x")
    assert parse(LTRGRConfig, {**recipe, "search": {"alpha": 3.0}, "rank": rank}, "x")


def test_variants_of_the_benchmark_can_be_read(load_script, monkeypatch):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    chain = load_script(folder / "generative_chain.py")
    variants = {name: variant for table in chain.TABLES.values() for name, variant in table.items()}
    assert len(variants) > 30
    for name, variant in variants.items():
        raw = load_raw(chain.RECIPES / variant.recipe, [f"{key}={value}" for key, value in variant.settings.items()])
        parse(recipe_module(raw["recipe"], name).Config, raw, name)


def test_sets_need_names_of_their_own(taught):
    with pytest.raises(ConfigError, match="each set needs a name of its own"):
        parse(DGRConfig, {**taught, "data": taught["data"] * 2}, "x")


def test_teachers_that_nobody_hears(taught, recipe):
    with pytest.raises(ConfigError, match="Take teach out"):
        parse(LTRGRConfig, {**recipe, "teach": taught["teach"]}, "x")


def test_a_set_that_is_mined_must_be_there(tmp_path, recipe, gr_train):
    gone = {**recipe["data"][0], "name": "gone", "corpus": "gone.jsonl", "optional": True}
    result = gr_train(tmp_path, {**recipe, "data": [*recipe["data"], gone], "mined": ["gone"]})
    assert isinstance(result.exception, ConfigError)
    assert "mined names ['gone'], of which no question is left" in str(result.exception)


def test_a_set_without_questions_is_not_mined(tmp_path, recipe, gr_train, done, collection):
    empty = {**recipe["data"][0], "name": "empty", "ids": [str(collection / "validation.txt")]}  # all of them held out
    done(gr_train(tmp_path, {**recipe, "data": [*recipe["data"], empty]}))
    assert [path.name for path in (tmp_path / "run" / "mine-1").glob("*.gz")] == ["toy.candidates.jsonl.gz"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "dgr"}, "learns from teachers"),
        ({"kind": "ltrgr", "teachers": ["t"]}, "reads labels alone"),
        ({"kind": "ltrgr", "pair_weights": [0, 0]}, "leaves both pairs out"),
    ],
)
def test_losses_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse(LossConfig, settings, "x")


class Mined:
    """Labels and scores of a mined list, best first."""

    def __init__(self, labels: list[int]) -> None:
        self.labels_D = np.array(labels)
        self.scores_D = np.arange(len(labels), 0, -1.0)


@pytest.mark.parametrize("mode", ["top", "mixed", "random"])
def test_drawn_lists(mode):
    mined = Mined([0, 1, 0, 0, 1, 0, 0, 0, 1])
    config = ListsConfig(length=5, positives=2, negatives=mode, pool=4)
    generator = np.random.default_rng(0)
    seen: set[int] = set()
    for _ in range(200):
        rows = draw(mined, config, generator).tolist()  # type: ignore[arg-type]
        good, bad = rows[:2], rows[2:]
        assert good[0] == 1
        assert good[1] in (4, 8)
        assert len(set(bad)) == 3
        assert set(bad) <= {0, 2, 3, 5}  # the pool: the four best negatives
        assert mode == "random" or bad[0] == 0
        seen |= set(bad)
    assert seen == ({0, 2, 3} if mode == "top" else {0, 2, 3, 5})


def test_only_lists_that_violate_the_margin():
    lists = [Mined([1, 0, 0]), Mined([0, 0, 1]), Mined([1, 1, 1, 1, 0])]
    assert violating(lists, None) == [0, 1, 2]  # type: ignore[arg-type]
    assert violating(lists, 1.5) == [0, 1]  # type: ignore[arg-type]
    assert violating(lists, 0.0) == [1]  # type: ignore[arg-type]


def test_questions_and_pairs_as_stages_of_their_own(tmp_path, recipe, sources, gr_train, done):
    start = recipe["likelihood"]["start"]
    generator = {"start": start, "passages_per_step": 4, "passage_tokens": 64, "fit": {**FIT, "validate_every": 4}}
    asked = {"generator": generator, "sampling": {"per_document": 2}, "training_questions": True}
    done(gr_train(tmp_path, {**recipe, "pseudo_queries": asked, "pairs_file": {"per_question": 2}}))
    run = tmp_path / "run"
    marks = sorted(path.parent.name for path in run.glob("*/stage.json"))
    assert marks == ["calibrate", "mine-1", "pairs", "pseudo-queries", "question-generator", "rank-1", "train"]
    name = sources["data"][0]["name"]
    before = list(read_corpus(Path(sources["data"][0]["corpus"])))
    after = list(read_corpus(run / "pseudo-queries" / name / "corpus.jsonl.gz"))
    assert [passage.id for passage in after] == [passage.id for passage in before]
    assert sum(len(passage.queries) for passage in after) > sum(len(passage.queries) for passage in before)
    # What came later read that corpus, and the pairs of the file.
    sidecar = json.loads((run / "mine-1" / f"{name}.candidates.jsonl.gz.meta.json").read_text())
    assert any("pseudo-queries" in path for path in sidecar["inputs"])
    assert (
        "pairs.jsonl.gz" in json.loads((run / "train" / "model" / "gr_model.json").read_text())["recipe"]["pairs_from"]
    )


def test_a_calibrated_model_serves_probabilities(tmp_path, recipe, gr_train, done):
    done(gr_train(tmp_path, recipe))
    fitted = json.loads((tmp_path / "run" / "calibrate" / "calibration.json").read_text())
    info = read_description(tmp_path / "run" / "model")
    assert info is not None
    assert info["calibration"] == fitted
    assert fitted["slope"] > 0
    assert "calibration" not in (read_description(tmp_path / "run" / "rank-1" / "model") or {})


def test_a_model_that_cannot_be_calibrated_is_kept(tmp_path, recipe, gr_train, done):
    validation = recipe["validation"]
    judged, ids = read_qrels(validation["qrels"]), read_ids(validation["ids"][0])
    wanted = {document for name in ids for document in judged[name]}
    passages = list(read_corpus(Path(validation["corpus"])))
    validation["corpus"] = str(tmp_path / "one.jsonl")  # nothing but the relevant passage can be found
    write_corpus(validation["corpus"], [next(passage for passage in passages if passage.id in wanted)])
    result = gr_train(tmp_path, recipe)
    done(result)
    assert "not calibrated" in result.stderr
    assert "none of" in result.stderr
    run = tmp_path / "run"
    assert json.loads((run / "calibrate" / "calibration.json").read_text()) is None
    assert "calibration" not in (read_description(run / "model") or {})


def test_no_stage_searches_a_held_out_question(tmp_path, recipe):
    """A question that is neither trained on nor validated with may stand in the corpus as a pseudo-query."""
    first, *others = read_corpus(Path(recipe["data"][0]["corpus"]))
    queries = ("Who made the bells?", "Who rang the bells?")
    corpus = str(tmp_path / "corpus.jsonl")
    write_corpus(corpus, [dataclasses.replace(first, queries=queries), *others])
    write_questions(tmp_path / "test.jsonl", [Question("t", "who made the bells")])
    recipe["data"][0]["corpus"] = recipe["validation"]["corpus"] = corpus
    recipe["held_out"].append({"questions": str(tmp_path / "test.jsonl")})
    config = parse(LTRGRConfig, recipe, "x")
    sets, validation = ranking._Chain(config, ranking._ranking(config))._data(Run(out=tmp_path / "rank-1"))
    assert [each.passages[0].queries for each in (*sets, validation)] == [queries[1:]] * 2


def test_pairs_need_a_likelihood_stage(recipe):
    with pytest.raises(ConfigError, match="pairs_file is for the stage train"):
        parse(LTRGRConfig, {**recipe, "likelihood": None, "model": "m", "pairs_file": {}}, "recipe.yaml")
