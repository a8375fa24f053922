"""The question generator from its recipe to a corpus with pseudo-queries."""

import dataclasses

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from gr_components.data import check_inputs, normalise, read_corpus, write_corpus
from gr_components.data.files import read_objects
from gr_components.errors import ModelError
from gr_components.models.description import read_description
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_training.cli import command
from gr_training.config import parse
from gr_training.generative import pseudo_queries, question_generator
from gr_training.generative.pseudo_queries import PseudoQueryConfig, RoundTripConfig, attach_questions, generate_queries
from gr_training.generative.question_generator import QuestionLayout, QuestionSampler, SamplingConfig, draw
from gr_training.mining import parts
from gr_training.sources import SourceConfig, load_sources

SAMPLING = SamplingConfig(per_document=4, top_k=5, top_p=0.9, batch_size=8)


@pytest.fixture(scope="module")
def generator(collection, tiny_encoder, tmp_path_factory):
    """Trained for some seconds on the collection, by its recipe."""
    folder = tmp_path_factory.mktemp("generator")
    paths = {name: str(collection / file) for name, file in
             {"corpus": "corpus.jsonl", "questions": "questions.jsonl", "qrels": "qrels.tsv"}.items()}  # fmt: skip
    held = [str(collection / "validation.txt")]
    recipe = {
        "recipe": "question_generator",
        "start": {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}, "dropout": 0.0},
        "data": [{"name": "toy", **paths, "ids": [str(collection / "train.txt")], "licence": "CC0-1.0"}],
        "held_out": [{"questions": paths["questions"], "ids": held}],
        "validation": {**paths, "ids": held},
        "passage_tokens": 40,
        "question_tokens": 14,
        "fit": {"steps": 60, "learning_rate": 5e-3, "warmup": 10, "precision": "float32", "validate_every": 50,
                "clip": 1.0},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GR_TRAIN_MALLOC", "0")
        result = CliRunner().invoke(command, [str(folder / "recipe.yaml"), "--out", str(folder), "--device", "cpu"])
    assert result.exception is None, result.output
    return folder / "model"


@pytest.fixture
def passages(collection):
    return list(read_corpus(collection / "corpus.jsonl"))


def sampler(folder, config=SAMPLING):
    loaded = load_seq2seq(str(folder), device="cpu")
    return QuestionSampler(loaded.decoder, loaded.tokenizer, QuestionLayout.from_info(loaded.info, folder), config)


def test_the_trained_model_writes_questions_about_its_passages(generator, passages):
    info = read_description(generator)
    assert info["task"] == "question_generator"
    assert info["metrics"]["log-likelihood"] > -1.5
    found = sampler(generator).sample(passages)
    assert sum(map(len, found)) > 2 * len(passages)
    about = [p.title.split()[0].lower() in q for p, several in zip(passages, found, strict=True) for q in several]
    assert np.mean(about) > 0.8, "by chance it would be 1 / 12"
    assert all(q.split()[0] in {"when", "who", "which"} for several in found for q in several)
    assert all(len(set(several)) == len(several) for several in found)


def test_what_is_drawn_depends_on_seed_and_id_alone(generator, passages):
    whole = sampler(generator).sample(passages)
    single = sampler(generator, dataclasses.replace(SAMPLING, batch_size=1))
    assert [single.sample([passage])[0] for passage in passages[:6]] == whole[:6]
    assert sampler(generator).sample(passages[5:9]) == whole[5:9]
    assert sampler(generator, dataclasses.replace(SAMPLING, seed=14)).sample(passages) != whole
    renamed = [dataclasses.replace(passage, id=f"{passage.id}x") for passage in passages]
    assert sampler(generator).sample(renamed) != whole


def test_drawing_follows_the_distribution():
    shares = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    with np.errstate(divide="ignore"):
        log_probs = np.log(shares).astype(np.float32)
    chances = (np.arange(2000) + 0.5) / 2000

    def frequencies(**settings):
        config = SamplingConfig(**{"top_k": 0, "top_p": 1.0, **settings})
        return np.bincount([draw(log_probs, chance, config) for chance in chances], minlength=5) / 2000

    assert frequencies() == pytest.approx(shares, abs=1e-3)
    assert frequencies(top_k=2) == pytest.approx([0.625, 0, 0.375, 0, 0], abs=1e-3)
    assert frequencies(top_p=0.6) == pytest.approx([0.625, 0, 0.375, 0, 0], abs=1e-3)
    assert frequencies(top_p=0.0) == pytest.approx([1, 0, 0, 0, 0])
    flat = np.sqrt(shares) / np.sqrt(shares).sum()
    assert frequencies(temperature=2.0) == pytest.approx(flat, abs=1e-3)


def test_a_corpus_gets_pseudo_queries_but_no_held_out_ones(generator, collection, tmp_path):
    corpus = str(collection / "corpus.jsonl")
    free = generate_queries(generator, corpus, PseudoQueryConfig(sampling=SAMPLING), tmp_path / "a" / "corpus.jsonl.gz",
                            device="cpu")  # fmt: skip
    before, after = list(read_corpus(corpus)), list(read_corpus(free))
    assert [dataclasses.replace(p, queries=()) for p in after] == before
    written = [query for passage in after for query in passage.queries]
    assert len(written) == check_inputs(free)["summary"]["kept"]
    forbidden = sorted({normalise(query) for query in written})[::2]
    path = tmp_path / "b" / "corpus.jsonl.gz"
    config = PseudoQueryConfig(sampling=SAMPLING)
    fewer = generate_queries(generator, corpus, config, path, forbidden=forbidden, device="cpu")
    left = {normalise(query) for passage in read_corpus(fewer) for query in passage.queries}
    assert left
    assert not left & set(forbidden)
    assert check_inputs(fewer)["summary"]["held_out"] > 0


def test_held_out_questions_that_the_corpus_has_are_left_out_too(generator, passages, tmp_path):
    own = ("Who made the bells?", "When was it, and who made the bells, if anybody?", "Who rang them?")
    write_corpus(tmp_path / "own.jsonl", [dataclasses.replace(passages[0], queries=own), *passages[1:3]])
    path = generate_queries(
        generator, str(tmp_path / "own.jsonl"), PseudoQueryConfig(sampling=SAMPLING), tmp_path / "corpus.jsonl.gz",
        forbidden=["who made the bells"], device="cpu",
    )  # fmt: skip
    first = next(iter(read_corpus(path)))
    assert first.queries[0] == "Who rang them?"
    assert not {normalise(query) for query in own[:2]} & {normalise(query) for query in first.queries}
    assert check_inputs(path)["summary"]["held_out_of_corpus"] == 2


def test_the_round_trip_keeps_what_leads_back(generator, collection, tmp_path, monkeypatch):
    corpus, path = str(collection / "corpus.jsonl"), tmp_path / "corpus.jsonl"
    wild = dataclasses.replace(SAMPLING, temperature=2.5, top_k=0, top_p=1.0)
    generate_queries(generator, corpus, PseudoQueryConfig(sampling=wild), path, device="cpu")
    everything = [passage.queries for passage in read_corpus(path)]
    # Another filter needs no new sampling.
    monkeypatch.setattr(pseudo_queries, "_sample", lambda *_: pytest.fail("sampled again"))
    filtered = PseudoQueryConfig(sampling=wild, round_trip=RoundTripConfig(top=1))
    generate_queries(generator, corpus, filtered, path, device="cpu")
    kept = list(read_corpus(path))
    assert 0 < sum(len(p.queries) for p in kept) < sum(map(len, everything))
    assert all(set(p.queries) <= set(several) for p, several in zip(kept, everything, strict=True))
    named = [p.title.split()[0].lower() in query for p in kept for query in p.queries]
    assert np.mean(named) > 0.9, "BM25 finds a passage only by its place"
    # Any other retriever: here one that finds only the first passage.
    generate_queries(generator, corpus, filtered, path, retrieve=lambda texts, top: [[0]] * len(texts), device="cpu")
    assert [bool(p.queries) for p in read_corpus(path)] == [True] + [False] * 47
    assert check_inputs(path)["summary"]["passages_without"] == 47
    few = PseudoQueryConfig(sampling=wild, most=1)
    generate_queries(generator, corpus, few, path, device="cpu")
    assert max(len(p.queries) for p in read_corpus(path)) == 1
    with pytest.raises(ValueError, match=r"round_trip\.model is needed for 'dense'"):
        RoundTripConfig(by="dense")


def test_a_killed_run_goes_on_where_it_was(generator, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_queries, "_PART", 16)
    corpus, path, config = (
        str(collection / "corpus.jsonl"),
        tmp_path / "corpus.jsonl",
        PseudoQueryConfig(sampling=SAMPLING),
    )
    write = parts.Parts.write

    def killed(self, number, *rest):
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            generate_queries(generator, corpus, config, path, device="cpu")
    sampled, sample = [], question_generator.QuestionSampler.sample
    monkeypatch.setattr(question_generator.QuestionSampler, "sample",
                        lambda self, batch: (sampled.extend(batch), sample(self, batch))[1])  # fmt: skip
    generate_queries(generator, corpus, config, path, device="cpu")
    assert [passage.id for passage in sampled] == [f"p{number}" for number in range(16, 48)]
    assert [data["id"] for _, data in read_objects(tmp_path / "sampled.jsonl.gz")] == [f"p{n}" for n in range(48)]
    generate_queries(generator, corpus, config, path, device="cpu")
    assert len(sampled) == 32


def test_other_models_are_refused(tiny_encoder, collection, tmp_path):
    with pytest.raises(ModelError, match="is no question generator"):
        generate_queries(tiny_encoder, str(collection / "corpus.jsonl"), PseudoQueryConfig(), tmp_path / "c.jsonl")


def test_training_questions_as_pseudo_queries(sources, tmp_path):
    questions = load_sources([parse(SourceConfig, sources["data"][0], "x")])[0]
    path = attach_questions(questions, tmp_path / "corpus.jsonl.gz")
    queries = {passage.id: passage.queries for passage in read_corpus(path)}
    assert sorted(q for several in queries.values() for q in several) == sorted(q.text for q in questions.questions)
    first = questions.passages[questions.positives[0][0]].id
    assert questions.questions[0].text in queries[first]
    assert check_inputs(path)["summary"] == {"questions": len(questions.questions)}
