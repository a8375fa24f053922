"""
What a generative retriever's ranking rests on: identifiers decoded once, documents scored in many ways.

    python tests/benchmarks/generative_robustness.py scores runs/merged MODEL
    python tests/benchmarks/generative_robustness.py exposure runs/merged MODEL

`scores` changes how documents are scored: exponent, cover, no corpus frequencies (language model only), wrong
identifiers. `exposure` compares, for each decoding step, where the relevant passage's best n-gram stands when the model
is told the n-gram's beginning with whether beam search still has one of the passage's n-grams.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from generative_eval import MEASURES, Collection, Run

from gr_components.data import Passage
from gr_components.decoding.config import SearchConfig
from gr_components.decoding.engine import GenerativeEngine
from gr_components.decoding.grammar import BODY, read_grammar
from gr_components.decoding.keys import Keys, join
from gr_components.decoding.results import Matches
from gr_components.decoding.scoring import score_documents
from gr_components.decoding.sources import Sources
from gr_components.decoding.weights import least_useful_log_probability
from gr_components.evaluation import evaluate_run
from gr_components.evaluation.comparison import compare
from gr_components.evaluation.reports import comparison_table, evaluation_table
from gr_components.indexes.suffix_index import SuffixIndex
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.progress import Console, Task
from gr_training.generative.search_validation import build_index

_BATCH, _DEPTH = 16, 100
_SPANS = 250  # n-grams of a passage that are scored, from its beginning
Float64 = np.ndarray
Weighing = Callable[[Matches, Keys, int], tuple[Keys, Float64]]


def matches(collection: Collection, engine: GenerativeEngine, index: SuffixIndex) -> list[Matches]:
    """
    Decode once for every question.

    :param collection: Whose questions.
    :param engine: The model.
    :param index: The passages.
    """
    texts, found = [question.text for question in collection.questions], []
    with Task(Console(), "decode", len(texts)) as task:
        for first in range(0, len(texts), _BATCH):
            found += engine.match(texts[first : first + _BATCH], index)
            task.advance(min(_BATCH, len(texts) - first))
    return found


def scores(collection: Collection, engine: GenerativeEngine, index: SuffixIndex, passages: list[Passage]) -> None:
    """
    Print a table of ways to score documents with the same identifiers.

    :param collection: What is searched.
    :param engine: The model.
    :param index: The passages.
    :param passages: The same, as texts.
    """
    found, default = matches(collection, engine, index), engine.config

    def run(config: SearchConfig, weigh: Weighing) -> Run:
        made = Run()
        for number, (question, match) in enumerate(zip(collection.questions, found, strict=True)):
            keys, weights_K = weigh(match, found[(number + 1) % len(found)].keys, number)
            scored = score_documents(keys, weights_K, index, index.live, config)
            names = [passages[int(row)].id for row in index.numbers_D[scored.documents_D[:_DEPTH]]]
            made[question.id] = list(zip(names, scored.scores_D[:_DEPTH].tolist(), strict=True))
        return made

    def as_found(match: Matches, _other: Keys, _number: int) -> tuple[Keys, Float64]:
        return match.keys, match.powers_K ** (1 / default.alpha)

    def language_model(match: Matches, _other: Keys, _number: int) -> tuple[Keys, Float64]:
        return match.keys, np.exp(match.keys.log_probs_K.astype(np.float64))

    def noisy(share: float) -> Weighing:
        def weigh(match: Matches, other: Keys, number: int) -> tuple[Keys, Float64]:
            generator = np.random.default_rng((13, number))
            keys, weights_K = as_found(match, other, number)
            wrong_K = generator.random(len(keys)) < share
            drawn_N = generator.integers(len(other), size=int(wrong_K.sum())) if len(other) else np.empty(0, np.int64)
            mixed = join(keys.views, [keys.select(~wrong_K), other.select(drawn_N)], len(index.segments))
            # A wrong identifier has the weight of the one that it replaces.
            return mixed, np.concatenate([weights_K[~wrong_K], weights_K[wrong_K][: len(drawn_N)]])

        return weigh

    runs = {
        "as it is": run(default, as_found),
        **{f"alpha {alpha:g}": run(replace(default, alpha=alpha), as_found) for alpha in (0.5, 1.0, 1.5, 3.0)},
        **{f"beta {beta:g}": run(replace(default, beta=beta), as_found) for beta in (0.0, 0.4, 1.0)},
        "P(n|q) only, no frequencies": run(replace(default, alpha=1.0), language_model),
        **{f"{share:.0%} wrong identifiers": run(default, noisy(share)) for share in (0.1, 0.3)},
    }
    measured = {name: evaluate_run(each, collection.qrels, MEASURES) for name, each in runs.items()}
    print(evaluation_table(measured, MEASURES))
    pairs = [(name, "as it is") for name in measured if name != "as it is"]
    print("\n" + comparison_table(compare(measured, pairs, "nDCG@10")))


def exposure(collection: Collection, engine: GenerativeEngine, index: SuffixIndex, passages: list[Passage]) -> None:
    """
    Print, for each decoding step of the body view, how often the relevant passage is still there.

    :param collection: What is searched.
    :param engine: The model.
    :param index: The passages.
    :param passages: The same, as texts.
    """
    row_of = {passage.id: row for row, passage in enumerate(passages)}
    view, beams = engine.grammar.view(BODY), engine.config.beams
    floor = least_useful_log_probability(index.live.size(view.field)[0], smoothing=engine.config.smoothing)
    forced, searched, total = defaultdict(int), defaultdict(int), 0
    found = matches(collection, engine, index)
    for question, match in zip(collection.questions, found, strict=True):
        judged = collection.qrels[question.id].items()
        gold = next((row_of[name] for name, grade in judged if grade > 0 and name in row_of), None)
        if gold is None:
            continue
        total += 1
        tokens = index.tokens(view.field, gold)
        starts = [s for s in range(min(len(tokens), _SPANS)) if not engine.tokenizer.continuation_V[tokens[s]]]
        spans_NT = np.full((len(starts), view.max_tokens), -1, dtype=np.int64)
        for place, start in enumerate(starts):
            own = tokens[start : start + view.max_tokens]
            spans_NT[place, : len(own)] = own
        source = Sources([question.text], engine.decoder, engine.tokenizer, engine.grammar).get(view.source_suffix)
        owners_N = np.zeros(len(spans_NT), dtype=np.int64)
        step_NT = engine.decoder.score(source, spans_NT, view.decoder_start, owners_N)
        sums_NT = np.where(spans_NT >= 0, np.cumsum(step_NT, axis=1, dtype=np.float64), -np.inf)
        keys = match.keys
        body_K = np.array([each.name == BODY for each in keys.views])[keys.views_K]
        inside = {tuple(span[:n].tolist()) for span in spans_NT for n in range(1, view.max_tokens + 1)}
        for n in range(1, view.max_tokens + 1):
            own_K = np.nonzero(body_K & (keys.lengths_K == n))[0]
            best = np.sort(keys.log_probs_K[own_K])[::-1][:beams]
            threshold = float(best[-1]) if len(best) == beams else floor  # below it search gives an n-gram up
            forced[n] += bool((sums_NT[:, n - 1] >= threshold - 1e-3).any())
            order_K = own_K[np.argsort(-keys.log_probs_K[own_K])][:beams]
            searched[n] += any(tuple(keys.tokens_KT[k, :n].tolist()) in inside for k in order_K)
    print(f"| tokens | told the beginning: an n-gram of the passage in the best {beams} | beam search has one |")
    print("| ---: | ---: | ---: |")
    for n in sorted(forced):
        print(f"| {n} | {forced[n] / total:.3f} | {searched[n] / total:.3f} |")


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("scores", "exposure"))
    parser.add_argument("collection", type=Path, help="from generative_data.py")
    parser.add_argument("model")
    options = parser.parse_args()
    collection = Collection(options.collection)
    passages = collection.passages()
    loaded = load_seq2seq(options.model, device="cpu", dtype="bfloat16")
    grammar, tokenizer = read_grammar(options.model)
    with tempfile.TemporaryDirectory() as temporary:
        queries = [passage.queries for passage in passages]
        index = build_index(passages, queries, tokenizer, grammar, Path(temporary) / "index")
        engine = GenerativeEngine(loaded.decoder, tokenizer, grammar)
        (scores if options.command == "scores" else exposure)(collection, engine, index, passages)


if __name__ == "__main__":
    main()
