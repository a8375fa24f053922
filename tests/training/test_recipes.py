"""Every recipe from its file to a model that serves, on a tiny collection with a tiny encoder."""

import dataclasses
import json
import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from haystack import Document
from haystack.components.joiners import DocumentJoiner

import gr_pipelines
from gr_components.data import read_candidates, searchable_text
from gr_components.evaluation import evaluate_run
from gr_components.joiners.score_fusion import ScoreFusionJoiner
from gr_components.models.description import read_description
from gr_components.models.pair_scorer import load_pair_scorer
from gr_components.models.pair_scorer_torch import PairScorerModule
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.models.text_encoder import load_text_encoder
from gr_components.progress import Silent
from gr_training.checkpoint import load_weights
from gr_training.cli import command
from gr_training.config import parse
from gr_training.cross_encoder import calibrate
from gr_training.mining.lists import MiningConfig, dense_search, lexical_search, mine
from gr_training.recipes.listwise_ce import Config as RankerConfig
from gr_training.recipes.listwise_ce import validate
from gr_training.sources import QuestionSet, ValidationConfig, load_validation

DEFINITIONS = Path(gr_pipelines.__file__).parent / "definitions"
FIT = {
    "steps": 6,
    "learning_rate": 1e-3,
    "precision": "float32",
    "validate_every": 3,
    "checkpoint_every": 2,
    "log_every": 1,
}


@pytest.fixture(autouse=True)
def _same_process(monkeypatch):
    monkeypatch.setenv("GR_TRAIN_MALLOC", "0")


def gr_train(tmp_path: Path, recipe: dict[str, Any], *arguments: str) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return CliRunner().invoke(command, [str(path), "--out", str(tmp_path / "run"), "--device", "cpu", *arguments])


def trained(tmp_path: Path, recipe: dict[str, Any], *arguments: str) -> Path:
    result = gr_train(tmp_path, recipe, *arguments)
    assert result.exception is None, result.output
    folder = tmp_path / "run" / "model"
    info = read_description(folder)
    assert info is not None
    assert info["recipe"]["recipe"] == recipe["recipe"]
    assert info["licence"] == "CC-BY-SA-4.0"
    assert all(len(digest) == 64 for each in info["data"] for digest in each["sha256"].values())
    assert info["training"]["steps"] == recipe["fit"]["steps"]
    assert info["metrics"]
    card = (folder / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card
    assert "| toy | CC-BY-SA-4.0 |" in card
    return folder


@pytest.fixture
def ranker(tiny_encoder, sources) -> dict[str, Any]:
    mining = {"dense": str(tiny_encoder), "depth": 12}
    return {"recipe": "listwise_ce", "model": str(tiny_encoder), **sources, "mining": mining, "depth": 8,
            "num_negatives": 3, "questions_per_step": 4, "validation_depth": 6, "max_tokens": 48, "serving_tokens": 64,
            "fit": FIT}  # fmt: skip


def test_listwise_ce(tmp_path, ranker):
    folder = trained(tmp_path, ranker)
    scorer = load_pair_scorer(str(folder), device="cpu")
    assert np.isfinite(scorer.score([("Who opened the Rome river?", "The old river of Rome")])).all()
    assert scorer.info.max_length == 64
    candidates = list(read_candidates(tmp_path / "run" / "candidates" / "toy.jsonl.gz"))
    assert max(candidate.rank for candidate in candidates) == 8
    metrics = read_description(folder)["metrics"]  # type: ignore[index]
    assert {"base nDCG@10", "nDCG@10", "fused nDCG@10"} <= set(metrics)


def test_rankers_are_selected_by_what_the_shipped_pipeline_makes_of_them(tmp_path, ranker, monkeypatch):
    """`fused` equals what the joiners of the pipeline `hybrid` make of the calibrated model."""
    definition = yaml.safe_load((DEFINITIONS / "hybrid.yaml").read_text())
    recipe = parse(RankerConfig, ranker, "x")
    assert definition["components"]["fusion"]["type"].endswith(".ScoreFusionJoiner")
    final = definition["components"]["final"]["init_parameters"]
    assert (final["join_mode"], final["weights"]) == ("merge", [1.0, "${ranker_weight}"])
    served = definition["parameters"]
    assert served["fusion"] == "distribution_based_rank_fusion"
    assert (served["combine"], served["ranker_weight"]) == (recipe.fusion, recipe.ranker_weight)
    defaults = {field.name: field.default for field in dataclasses.fields(RankerConfig)}
    assert (served["candidates"], served["ranked"]) == (100, defaults["validation_depth"])
    validation = load_validation(parse(ValidationConfig, ranker["validation"], "x"))
    config = MiningConfig(dense=ranker["model"], depth=100, fusion=recipe.fusion)
    judged = mine(validation, config, 6, tmp_path / "c.jsonl.gz")
    torch.manual_seed(0)
    model = PairScorerModule.from_encoder(ranker["model"], max_length=64)
    # Relevant is in turn what the model likes best and what stands at ranks 1 to 6, so that both scores count.
    positives = []
    for n, (question, rows) in enumerate(zip(validation.questions, judged.rows, strict=True)):
        texts = [_document(validation, int(row), 0.0).content for row in rows]
        with torch.no_grad():
            best = int(model(**model.inputs([(question.text, str(text)) for text in texts])).argmax())
        positives.append([int(rows[best if n % 4 else n % 6])])
    relevant = [validation.passages[rows[0]].id for rows in positives]
    qrels = {q.id: {document: 1} for q, document in zip(validation.questions, relevant, strict=True)}
    validation = dataclasses.replace(validation, positives=positives, qrels=qrels)
    monkeypatch.setattr(torch, "autocast", lambda *_: nullcontext())  # bfloat16 would blur the comparison
    with torch.no_grad():
        measured, more = (validate(model, validation, judged, 64, weight)["fused nDCG@10"] for weight in (0.7, 30.0))
    calibrate(model, validation, judged, 64)
    model.save(tmp_path / "model")
    scorer = load_pair_scorer(str(tmp_path / "model"), device="cpu")
    searches = [lexical_search(validation, 100, "english", Silent()),
                dense_search(validation, ranker["model"], 100, Silent())]  # fmt: skip
    first = ScoreFusionJoiner(combine=served["combine"], top_k=100)
    last = DocumentJoiner("merge", [1.0, 0.7])
    run = {}
    for question, *lists in zip(validation.questions, *searches, strict=True):
        found = first.run(documents=[[_document(validation, *hit) for hit in hits] for hits in lists])["documents"]
        best = found[:6]
        scores = scorer.score([(question.text, str(d.content)) for d in best])
        read = [dataclasses.replace(d, score=1 / (1 + math.exp(-s))) for d, s in zip(best, scores, strict=True)]
        run[question.id] = [(d.id, float(d.score)) for d in last.run(documents=[found, read])["documents"]]
    wanted = evaluate_run(run, qrels, ["nDCG@10"]).means["nDCG@10"]
    assert measured == pytest.approx(wanted, abs=1e-6)
    assert 0.3 < measured < 0.95
    assert abs(more - measured) > 0.04, "the probability has no effect here"


def _document(questions: QuestionSet, row: int, score: float) -> Document:
    passage = questions.passages[row]
    return Document(id=passage.id, content=searchable_text(passage.title, passage.text), score=score)


def test_listwise_ce_with_fewer_layers_a_cut_vocabulary_and_small_weights(tmp_path, ranker):
    small = {**ranker, "layers": 1, "vocabulary": ["toy"], "weights": "int8", "base_weight": 1.0}
    folder = trained(tmp_path, small)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert np.isfinite(load_pair_scorer(str(folder), device="cpu").score([("a", "b")])).all()
    assert config["vocab_size"] < json.loads((Path(ranker["model"]) / "config.json").read_text())["vocab_size"] + 1


@pytest.fixture
def dense(tiny_encoder, sources) -> dict[str, Any]:
    return {"recipe": "dpr", "model": str(tiny_encoder), **sources, "questions_per_step": 6, "num_negatives": 2,
            "max_question_tokens": 24, "max_passage_tokens": 48, "fit": FIT}  # fmt: skip


@pytest.mark.parametrize("two_towers", [False, True])
def test_dpr(tmp_path, dense, two_towers):
    folder = trained(tmp_path, {**dense, "two_towers": two_towers})
    passages = load_text_encoder(str(folder), device="cpu")
    assert passages.encode(["The old river of Rome"]).shape == (1, 32)
    assert (folder / "question").is_dir() == two_towers
    if two_towers:
        questions = load_text_encoder(str(folder / "question"), device="cpu")
        assert not np.allclose(questions.encode(["river"]), passages.encode(["river"]), atol=1e-4)


@pytest.fixture
def generator(tiny_encoder, sources) -> dict[str, Any]:
    start = {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}}
    return {"recipe": "minder", "start": start, **sources, "sources_per_step": 6, "search": {"beams": 3}, "fit": FIT}


def test_minder(tmp_path, generator):
    folder = trained(tmp_path, {**generator, "weights": "int8"})
    loaded = load_seq2seq(str(folder), device="cpu")
    assert [view["name"] for view in loaded.info["grammar"]["views"]] == ["body", "title", "query"]
    assert loaded.model.copy is not None


def test_minder_without_copy_head_and_query_view_smooths_labels(tmp_path, generator):
    start = {**generator["start"], "build": {"decoder_layers": 1}}
    pairs = {"query": 0, "unsupervised": 0.5}
    trained(tmp_path, {**generator, "start": start, "pairs": pairs, "smoothing": 0.1})


def test_label_smoothing_and_a_copy_head_exclude_each_other(tmp_path, generator):
    result = gr_train(tmp_path, {**generator, "smoothing": 0.1})
    assert "not defined for a model with a copy head" in str(result.exception)


@pytest.fixture
def pretraining(tiny_encoder, collection) -> dict[str, Any]:
    text = {"name": "toy", "path": str(collection / "corpus.jsonl"), "licence": "CC-BY-SA-4.0", "passage_words": 20}
    start = {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}}
    return {"recipe": "seq2seq_pretrain", "start": start, "text": [text], "validation": text, "sources_per_step": 4,
            "vocabulary": [str(collection / "corpus.jsonl"), str(collection / "questions.jsonl")],
            "max_passage_tokens": 100, "validation_rounds": 2, "fit": FIT}  # fmt: skip


def test_seq2seq_pretrain_is_a_start_for_minder(tmp_path, pretraining, generator):
    folder = trained(tmp_path, pretraining)
    info = load_seq2seq(str(folder), device="cpu").info
    assert info["reader"]["kind"] == "reserved"
    (tmp_path / "second").mkdir()
    second = trained(tmp_path / "second", {**generator, "start": {"model": str(folder)}})
    assert read_description(second)["base_model"] == str(folder)  # type: ignore[index]


def test_seq2seq_pretrain_reads_no_held_out_question(tmp_path, pretraining, collection):
    held = json.loads((collection / "questions.jsonl").read_text().splitlines()[0])["text"]
    text = tmp_path / "text.jsonl"
    filler = "Here are some words about Anna Smith and 1901 that nobody will ever ask for, and then more of them."
    rows = [{"title": "A", "text": f"{filler} {middle} {filler}"} for middle in ["Nothing.", held.lower(), "So."]]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {**pretraining["text"][0], "path": str(text), "passage_words": 40}
    held_out = [{"questions": str(collection / "questions.jsonl")}]
    for forbidden, seen in (
        ([], "data: passages=3 "),
        (held_out, "held out: set=toy passages_dropped=1\ndata: passages=2 "),
    ):
        out = tmp_path / f"{len(forbidden)}"
        out.mkdir()
        recipe = {**pretraining, "text": [own], "held_out": forbidden, "fit": {**FIT, "steps": 1}}
        result = gr_train(out, recipe)
        assert result.exception is None, result.output
        assert seen in result.output


@pytest.fixture
def reader(tiny_encoder, sources) -> dict[str, Any]:
    start = {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}}
    batches = {"passages": 6, "num_negatives": 2, "negative_share": 0.5, "depth": 3, "crop_share": 0.5}
    lengths = {"max_passage_tokens": 64, "max_question_tokens": 16, "max_title_tokens": 4, "max_answer_tokens": 6}
    return {"recipe": "fid", "start": start, **sources, "batches": batches, "lengths": lengths,
            "validation_passages": 2, "fit": FIT}  # fmt: skip


@pytest.mark.parametrize("kind", ["ranker", "generator", "pretraining", "dense", "reader"])
def test_an_interrupted_run_goes_on_exactly(tmp_path, request, kind):
    recipe = request.getfixturevalue(kind)
    (tmp_path / "whole").mkdir()
    whole = trained(tmp_path / "whole", recipe)
    # A run that ends after its first step, by time, leaves what a killed one leaves; the resumed one has no limit.
    first = gr_train(tmp_path, recipe, "--set", "fit.max_minutes=1e-6")
    assert first.exception is None
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json"
    state = json.loads(checkpoint.read_text())
    assert state["progress"]["ended"] == "time"
    state["progress"] = {**state["progress"], "ended": "", "best_step": 0, "best": {}, "worse": 0}
    checkpoint.write_text(json.dumps(state))
    resumed = trained(tmp_path, recipe, "--resume")
    files = sorted(path.name for path in whole.glob("*.safetensors"))
    assert files
    for name in files:
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


def test_a_run_is_not_overwritten_unasked(tmp_path, generator):
    recipe = {**generator, "fit": {**FIT, "steps": 1}}
    trained(tmp_path, recipe)
    again = gr_train(tmp_path, recipe)
    assert "holds a run already. Use --resume to continue it, --restart" in str(again.exception)
    changed = gr_train(tmp_path, {**recipe, "sources_per_step": 5, "fit": {**FIT, "steps": 1}}, "--resume")
    assert "sources_per_step differ" in str(changed.exception)
    assert gr_train(tmp_path, recipe, "--restart").exception is None


def test_what_accelerate_starts_says_one_sentence_too(tmp_path, generator):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**generator, "sources_per_stp": 1}))
    command = [sys.executable, "-m", "gr_training", str(tmp_path / "recipe.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Did you mean 'sources_per_step'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_dry_run_shows_the_whole_recipe_and_writes_nothing(tmp_path, generator):
    result = gr_train(tmp_path, generator, "--dry-run", "--set", "fit.steps=77")
    assert result.exception is None
    shown = json.loads(result.stdout)
    assert shown["fit"]["steps"] == 77
    assert shown["fit"]["clip"] == 1.0, "defaults are shown too"
    assert not (tmp_path / "run").exists()


def test_a_wrong_recipe_names_all_its_problems(tmp_path, generator):
    wrong = {**generator, "sources_per_stp": 1, "fit": {"steps": 0}}
    text = str(gr_train(tmp_path, wrong).exception)
    assert "has 2 problem(s)" in text
    assert "Did you mean 'sources_per_step'?" in text
    assert "fit.steps: Input should be greater than or equal to 1 (got 0)" in text


@pytest.mark.slow
def test_two_processes_train_the_same_dense_retriever_as_one(tmp_path, tiny_encoder, sources, together):
    recipe = {"recipe": "dpr", "model": str(tiny_encoder), **sources, "questions_per_step": 6, "num_negatives": 2,
              "max_passage_tokens": 48, "dropout": 0.0, "fit": {**FIT, "steps": 4}}  # fmt: skip
    (tmp_path / "one").mkdir()
    one = trained(tmp_path / "one", recipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    together(["-m", "gr_training", str(path), "--out", str(tmp_path / "two"), "--device", "cpu"], 2)
    first, second = (load_weights(folder / "model.safetensors") for folder in (one, tmp_path / "two" / "model"))
    start = load_weights(tiny_encoder / "model.safetensors")
    assert first.keys() == second.keys()
    moved = max(float((first[name] - start[name]).abs().max()) for name in first if name in start)
    assert moved > 1e-3, "nothing was trained, so nothing is compared"
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], rtol=0, atol=1e-5), name
