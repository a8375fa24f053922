"""
Search a collection of `generative_data.py` and compare systems: what `docs/results/generative.md` is made with.

    python tests/benchmarks/generative_eval.py baselines runs/merged
    python tests/benchmarks/generative_eval.py search runs/merged NAME MODEL [--set beams=5] [--untrained]
    python tests/benchmarks/generative_eval.py table runs/merged NAME... [--against NAME] [--fuse]
    python tests/benchmarks/generative_eval.py seeds runs/merged 13,14,15 NAME... [--against NAME]
    python tests/benchmarks/generative_eval.py reliability runs/merged NAME MODEL

Every system leaves a TREC run of its 100 best passages in `runs/merged/eval`, so that tables cost nothing. All systems
read the same text: title, text, and the training questions as pseudo-queries.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from gr_components.data import (
    Passage,
    Question,
    read_corpus,
    read_ids,
    read_qrels,
    read_questions,
    read_run,
    searchable_text,
    select,
    write_run,
)
from gr_components.decoding.calibration import Calibration
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import Grammar, read_grammar
from gr_components.evaluation import Evaluation, evaluate_run
from gr_components.evaluation.comparison import compare
from gr_components.evaluation.reports import Cell, comparison_table, evaluation_table, markdown_table
from gr_components.indexes.lexical import Analysis, LexicalIndex
from gr_components.indexes.suffix import SuffixSegment
from gr_components.indexes.suffix_index import SuffixIndex
from gr_components.models.description import read_description
from gr_components.models.resolve import MINILM
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.models.text_encoder import load_text_encoder
from gr_components.progress import Console, Task
from gr_components.tokenization import TextTokenizer
from gr_pipelines.demo.untrained import save_untrained
from gr_training.generative.search_validation import build_index, search_config
from gr_training.mining.lists import nearest, standardise

MEASURES = ("R@1", "R@5", "R@20", "R@100", "RR@10", "nDCG@10")
DEPTH = 100
_BATCH = 16
_BINS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.97, 1.01)

Run = dict[str, list[tuple[str, float]]]


class Collection:
    """
    A collection and where its runs are.

    :param folder: Its folder.
    :param split: Which questions are asked.
    """

    def __init__(self, folder: Path, split: str = "test") -> None:
        self.folder, self.split = folder, split
        self.eval = folder / "eval" if split == "test" else folder / f"eval-{split}"
        everything = list(read_questions(folder / "questions.jsonl.gz"))
        self.questions: list[Question] = select(everything, read_ids(folder / "splits" / f"{split}.txt"))
        judged = read_qrels(folder / "qrels.tsv.gz")
        self.qrels = {question.id: judged[question.id] for question in self.questions}

    def passages(self) -> list[Passage]:
        """Return the passages with their pseudo-queries."""
        return list(read_corpus(self.folder / "indexed.jsonl.gz"))

    def run(self, name: str) -> Run:
        """
        Read a run.

        :param name: Of the system.
        """
        return read_run(self.eval / f"{name}.run.gz")

    def facts(self, name: str) -> dict[str, Any]:
        """
        Return what was written with a run; nothing for a run that was not searched for but made of others.

        :param name: Of the system.
        """
        path = self.eval / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def keep(self, name: str, run: Run, ms: float, **facts: Any) -> None:
        """
        Write a run and what is known about it.

        :param name: Of the system.
        :param run: Its results.
        :param ms: Milliseconds per question.
        :param facts: Plain values.
        """
        write_run(self.eval / f"{name}.run.gz", run, tag=name)
        means = evaluate_run(run, self.qrels, MEASURES).means
        line = {"system": name, "ms_per_query": round(ms, 2), **facts, **{k: round(v, 4) for k, v in means.items()}}
        (self.eval / f"{name}.json").write_text(json.dumps(line, indent=2) + "\n")
        print(json.dumps(line))


def baselines(collection: Collection, dense: bool) -> None:
    """
    Search with BM25, with and without pseudo-queries in its text, and with MiniLM in bfloat16.

    :param collection: Where.
    :param dense: Whether MiniLM is run, which reads every passage.
    """
    passages, texts = collection.passages(), [question.text for question in collection.questions]
    plain = [searchable_text(passage.title, passage.text) for passage in passages]
    full = [" ".join([text, *p.queries]) for text, p in zip(plain, passages, strict=True)]
    for name, documents in (("bm25", plain), ("bm25q", full)):
        index = LexicalIndex.create(None, Analysis(language="english"))
        index.apply([], enumerate(documents))
        started = time.perf_counter()
        found = index.search(texts, top_k=DEPTH)
        ms = 1000 * (time.perf_counter() - started) / len(texts)
        collection.keep(name, _named(collection, passages, found), ms)
    if dense:
        encoder = load_text_encoder(MINILM, device="cpu", dtype="bfloat16")
        passages_DE = encoder.encode(plain, report=Console())
        started = time.perf_counter()
        questions_QE = encoder.encode(texts)
        found = nearest(_unit(questions_QE), _unit(passages_DE), DEPTH)
        ms = 1000 * (time.perf_counter() - started) / len(texts)
        collection.keep("dense", _named(collection, passages, found), ms)


def search(collection: Collection, name: str, model: str, settings: dict[str, Any], untrained: bool) -> None:
    """
    Search with a generative retriever.

    :param collection: Where.
    :param name: Of the system.
    :param model: Folder of the model.
    :param settings: Of the search, such as `beams`.
    :param untrained: Whether the model is replaced by its twin before any training.
    """
    passages = collection.passages()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if untrained:
            model = str(save_untrained(model, [passage.text for passage in passages], folder / "model"))
        loaded = load_seq2seq(model, device="cpu", dtype="bfloat16")
        grammar, tokenizer = read_grammar(model)
        index = _index(collection, passages, tokenizer, grammar)
        engine = GenerativeEngine(loaded.decoder, tokenizer, grammar, search_config(settings))
        texts, run, seconds, keys = [question.text for question in collection.questions], Run(), 0.0, 0
        with Task(Console(), f"search {name}", len(texts)) as task:
            for first in range(0, len(texts), _BATCH):
                started = time.process_time()
                results = engine.search(texts[first : first + _BATCH], index, top_k=DEPTH)
                seconds += time.process_time() - started
                for question, result in zip(collection.questions[first : first + _BATCH], results, strict=True):
                    run[question.id] = [(passages[hit.number].id, hit.score) for hit in result.hits]
                    keys += len(result.keys)
                task.advance(len(results))
    collection.keep(name, run, 1000 * seconds / len(texts), model=model if not untrained else "untrained",
                    settings=settings, keys_per_query=round(keys / len(texts), 1))  # fmt: skip


def fused(runs: Sequence[Run]) -> Run:
    """
    Add up the standardised scores of several runs; a passage that a run lacks gets that run's lowest.

    :param runs: Over the same questions.
    """
    merged = Run()
    for question in dict.fromkeys(question for run in runs for question in run):
        total: dict[str, float] = {}
        parts = [run.get(question, []) for run in runs]
        scores = [dict(zip([d for d, _ in part], standardise(s for _, s in part), strict=True)) for part in parts]
        for document in {d: None for part in scores for d in part}:
            total[document] = sum(float(part.get(document, min(part.values(), default=0.0))) for part in scores)
        merged[question] = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:DEPTH]
    return merged


def table(
    collection: Collection, names: Sequence[str], against: str | None, fuse: bool, beside: Sequence[str] = ()
) -> None:
    """
    Print a table of systems, and paired tests against one of them.

    :param collection: Where.
    :param names: Systems.
    :param against: The system to compare with.
    :param fuse: Whether each system is also fused with `bm25q` and `dense`.
    :param beside: Baselines and controls that are shown, but not compared.
    """
    runs = {name: collection.run(name) for name in (*beside, *names)}
    if fuse:
        others = [collection.run(name) for name in ("bm25q", "dense")]
        runs = {"bm25q + dense": fused(others), **runs}
        runs |= {f"bm25q + dense + {name}": fused([*others, collection.run(name)]) for name in names}
    found = {name: evaluate_run(run, collection.qrels, MEASURES) for name, run in runs.items()}
    facts = {name: collection.facts(name) for name in found}
    rows: list[list[Cell]] = [
        [name, *each.means.values(), facts[name].get("keys_per_query"), facts[name].get("ms_per_query")]
        for name, each in found.items()
    ]
    print(markdown_table(["system", *MEASURES, "keys", "ms"], rows, digits=4))
    if against is not None:
        pairs = [(name, against) for name in found if name not in (against, *beside)]
        print("\n" + comparison_table(compare(found, pairs, "nDCG@10")))


def seeds(collection: Collection, numbers: Sequence[str], names: Sequence[str], against: str | None) -> None:
    """
    Print a table of systems that were trained with several seeds: each question counts with its mean over the seeds.

    :param collection: Where.
    :param numbers: Seeds; the run of a system and a seed is `NAME-SEED`.
    :param names: Systems.
    :param against: The system to compare with.
    """
    found, spread = {}, []
    for name in names:
        runs = [evaluate_run(collection.run(f"{name}-{n}"), collection.qrels, MEASURES) for n in numbers]
        found[name] = Evaluation({
            measure: {question: fmean(run.per_question[measure][question] for run in runs) for question in values}
            for measure, values in runs[0].per_question.items()
        })  # fmt: skip
        spread.append(f"{name}: nDCG@10 " + ", ".join(f"{run.means['nDCG@10']:.4f}" for run in runs))
    print(evaluation_table(found, MEASURES) + "\n\n" + "\n".join(spread))
    if against is not None:
        print("\n" + comparison_table(compare(found, [(n, against) for n in found if n != against], "nDCG@10")))


def reliability(collection: Collection, name: str, model: str) -> None:
    """
    Print how often the first hit is right where the model's calibration says that it is with some probability.

    :param collection: Where.
    :param name: Of the system.
    :param model: Folder of its model.
    """
    calibration = Calibration.from_dict((read_description(model) or {})["calibration"], model)
    said, right = [], []
    for question, hits in collection.run(name).items():
        if hits:
            said.append(calibration.probabilities(np.array([score for _, score in hits]))[0])
            right.append(collection.qrels[question].get(hits[0][0], 0) > 0)
    said_N, right_N = np.array(said), np.array(right)
    print("| said | questions | mean said | right |\n| --- | ---: | ---: | ---: |")
    for low, high in pairwise(_BINS):
        inside_N = (said_N >= low) & (said_N < high)
        if inside_N.any():
            mean, share = said_N[inside_N].mean(), right_N[inside_N].mean()
            print(f"| {low:g} to {min(high, 1.0):g} | {inside_N.sum()} | {mean:.3f} | {share:.3f} |")


def _index(
    collection: Collection, passages: Sequence[Passage], tokenizer: TextTokenizer, grammar: Grammar
) -> SuffixIndex:
    """Models of one tokenizer and grammar share an index, which is kept."""
    made_by = json.dumps([tokenizer.fingerprint, grammar.to_dict()], sort_keys=True)
    folder = collection.folder / "index" / hashlib.sha256(made_by.encode()).hexdigest()[:16]
    if folder.is_dir():
        return SuffixIndex([SuffixSegment.open(folder, tokenizer_fingerprint=tokenizer.fingerprint)])
    folder.parent.mkdir(exist_ok=True)
    return build_index(passages, [p.queries for p in passages], tokenizer, grammar, folder)


def _named(collection: Collection, passages: Sequence[Passage], found: Any) -> Run:
    return {
        question.id: [(passages[int(row)].id, float(score)) for row, score in hits]
        for question, hits in zip(collection.questions, found, strict=True)
    }


def _unit(vectors_NE: np.ndarray[Any, Any]) -> Any:
    return vectors_NE / np.maximum(np.linalg.norm(vectors_NE, axis=1, keepdims=True), 1e-12)


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("baselines")
    one.add_argument("folder", type=Path)
    one.add_argument("--no-dense", action="store_true")
    one = commands.add_parser("search")
    one.add_argument("folder", type=Path)
    one.add_argument("name")
    one.add_argument("model")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    one.add_argument("--untrained", action="store_true")
    one = commands.add_parser("table")
    one.add_argument("folder", type=Path)
    one.add_argument("names", nargs="+")
    one.add_argument("--against")
    one.add_argument("--fuse", action="store_true")
    one = commands.add_parser("seeds")
    one.add_argument("folder", type=Path)
    one.add_argument("numbers", type=lambda text: text.split(","))
    one.add_argument("names", nargs="+")
    one.add_argument("--against")
    one = commands.add_parser("reliability")
    one.add_argument("folder", type=Path)
    one.add_argument("name")
    one.add_argument("model")
    options = parser.parse_args()
    collection = Collection(options.folder, options.split)
    if options.command == "baselines":
        baselines(collection, not options.no_dense)
    elif options.command == "search":
        settings = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
        search(collection, options.name, options.model, settings, options.untrained)
    elif options.command == "seeds":
        seeds(collection, options.numbers, options.names, options.against)
    elif options.command == "reliability":
        reliability(collection, options.name, options.model)
    else:
        table(collection, options.names, options.against, options.fuse)


if __name__ == "__main__":
    main()
