"""Beam search against an exhaustive search, spans against their definition."""

import itertools
import math

import numpy as np
import pytest

from gr_components.readers.generation import GenerationConfig, Spans, generate, span_sources

V, STOP, START = 7, 0, 6


class Table:
    """A decoder whose next-token distribution is a random function of everything generated so far."""

    vocabulary_size = V

    def __init__(self, sharpness: float = 1.5, seed: int = 0) -> None:
        self.sharpness, self.seed = sharpness, seed

    def log_probs(self, source: int, tokens: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng((self.seed, source, *tokens)).normal(size=V) * self.sharpness
        return (logits - np.logaddexp.reduce(logits)).astype(np.float32)

    def start(self, source: list[int], beams: int) -> dict[str, list]:
        return {"source": [s for s in source for _ in range(beams)], "tokens": [()] * (beams * len(source))}

    def step(self, tokens_R: np.ndarray, rows_R: np.ndarray, state: dict[str, list]) -> np.ndarray:
        before = state["tokens"]
        state["tokens"] = [(*before[row], int(token)) for token, row in zip(tokens_R, rows_R, strict=True)]
        return np.stack([self.log_probs(s, t[1:]) for s, t in zip(state["source"], state["tokens"], strict=True)])


def config(**changes: object) -> GenerationConfig:
    return GenerationConfig(**{"start": (START,), "stop": STOP, "max_tokens": 5, "never": (START,), **changes})


def everything(table: Table, source: int, max_tokens: int, penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Every possible answer with its score, best first."""
    found = []
    usable = range(1, V - 1)
    for length in range(1, max_tokens + 1):
        for tokens in itertools.product(usable, repeat=length):
            total = sum(float(table.log_probs(source, tokens[:i])[t]) for i, t in enumerate(tokens))
            written = length
            if length < max_tokens:
                total += float(table.log_probs(source, tokens)[STOP])
                written += 1
            found.append((total / written**penalty, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_the_best_answer(seed: int, penalty: float) -> None:
    table = Table(seed=seed)
    (found,) = generate(table, [3], 1, config(beams=200, max_tokens=4, length_penalty=penalty))
    best = everything(table, 3, 4, penalty)[:5]
    assert [h.tokens for h in found[:5]] == [tokens for _, tokens in best]
    assert [h.score for h in found[:5]] == pytest.approx([score for score, _ in best], abs=1e-5)


def test_one_beam_is_greedy() -> None:
    table = Table()
    for source in range(20):
        ((found,),) = generate(table, [source], 1, config())
        tokens: tuple[int, ...] = ()
        total = 0.0
        for position in range(5):
            log_probs = table.log_probs(source, tokens)
            log_probs[START] = -np.inf
            if position == 0:
                log_probs[STOP] = -np.inf
            best = int(log_probs.argmax())
            total += float(log_probs[best])
            if best == STOP:
                break
            tokens += (best,)
        assert found.tokens == tokens
        assert found.complete == (best == STOP)
        assert found.log_probability == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_a_batch_is_its_parts(beams: int) -> None:
    table = Table()
    together = generate(table, list(range(6)), 6, config(beams=beams))
    assert together == [generate(table, [source], 1, config(beams=beams))[0] for source in range(6)]
    assert all(len(found) == beams and all(h.tokens for h in found) for found in together)
    assert all(a.score >= b.score for found in together for a, b in itertools.pairwise(found))


def test_several_start_tokens_are_fed_first() -> None:
    class Fed(Table):
        def __init__(self) -> None:
            super().__init__()
            self.fed: list[int] = []

        def step(self, tokens_R: np.ndarray, rows_R: np.ndarray, state: dict[str, list]) -> np.ndarray:
            self.fed.append(int(tokens_R[0]))
            return super().step(tokens_R, rows_R, state)

    decoder = Fed()
    generate(decoder, [0], 1, config(start=(5, 4), max_tokens=2))
    assert decoder.fed[:2] == [5, 4]


def test_spans_are_whole_words_that_stand_in_a_source() -> None:
    # tokens 1 2 3 begin words, 4 and 5 continue them
    continuation = np.array([token in (4, 5) for token in range(V)])
    sources = [[1, 4, 2, -1, 3, 5], [2, 2, 3, 4, -1, -1]]
    words = [[(1, 4), (2,), None, (3, 5)], [(2,), (2,), (3, 4)]]
    for beams in (1, 3, 40):
        spans = Spans(np.array(sources), continuation, beams)
        found = generate(Table(sharpness=0.5), [0, 1], 2, config(beams=beams, max_tokens=5), spans)
        for several, own in zip(found, words, strict=True):
            runs = [list(run) for word, run in itertools.groupby(own, lambda word: word is None) if not word]
            allowed = {
                tuple(itertools.chain(*run[a:b]))
                for run in runs
                for a in range(len(run))
                for b in range(a + 1, len(run) + 1)
            }
            complete = {h.tokens for h in several if h.complete}
            assert complete <= allowed
            assert complete
            if beams == 40:
                assert complete == {span for span in allowed if len(span) < 5}
            assert all(math.isfinite(h.log_probability) for h in several)


def test_span_sources() -> None:
    ids = np.array([[[1, 2], [3, 4]]])
    context = np.array([[[False, True], [True, False]]])
    assert span_sources(ids, context).tolist() == [[-1, 2, 3, -1]]
