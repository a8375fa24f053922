"""The differentiable passage score: the formula, its gradient, and inference's own scores."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_components.decoding.config import SearchConfig
from gr_components.decoding.grammar import TokenizedDocument, View
from gr_components.decoding.keys import Keys, join
from gr_components.decoding.scoring import score_documents
from gr_components.decoding.weights import log_odds
from gr_components.indexes.suffix import SuffixSegment
from gr_components.indexes.suffix_index import SuffixIndex
from gr_training.losses.identifier_score import (
    as_searched,
    covers,
    identifier_weights,
    log1mexp,
    mean_cover,
    normalise,
    passage_scores,
)

BODY = View(name="body", field="body", decoder_start=(1,), max_tokens=4)
TITLE = View(name="title", field="title", decoder_start=(2,), index_prefix=(2,), max_tokens=4)
VOCABULARY = 20


def lists(seed: int = 0, shape: tuple[int, int, int] = (2, 3, 4), keys: int = 6) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return SimpleNamespace(
        log_probs=-4 * torch.rand(shape[0], keys, **draw) - 0.01,
        keys=torch.randint(keys, shape, generator=generator),
        prior=0.01 * torch.rand(shape, **draw) + 1e-5,
        cover=0.2 + 0.8 * torch.rand(shape, **draw),
        mask=torch.rand(shape, **draw) > 0.3,
    )


def scored(x: SimpleNamespace, **changes: object) -> torch.Tensor:
    return passage_scores(x.log_probs, x.keys, x.prior, x.cover, x.mask, **changes)  # type: ignore[arg-type]


def test_log1mexp_is_precise_at_both_ends():
    x = torch.tensor([-1e-12, -1e-6, -0.5, -math.log(2), -1.0, -30.0, -700.0], dtype=torch.float64)
    wanted = [math.log(-math.expm1(v)) if v > -0.7 else math.log1p(-math.exp(v)) for v in x.tolist()]
    assert log1mexp(x).tolist() == pytest.approx(wanted, rel=1e-14)
    assert torch.isfinite(log1mexp(x.float())).all()
    assert torch.autograd.gradcheck(log1mexp, x[1:6].clone().requires_grad_(), eps=1e-8, atol=1e-4, rtol=1e-3)


def test_weight_by_hand():
    # P(n|q) = 1/2 and P(n) = 1/101: odds of 1 against 1/100.
    found = identifier_weights(torch.tensor([math.log(0.5)]), torch.tensor([1 / 101]))
    assert found.item() == pytest.approx(math.log(100) ** 2, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(log_p=st.floats(-40, 0), count=st.integers(1, 10**6), alpha=st.sampled_from([1.0, 2.0, 3.0]))
def test_weights_are_those_of_inference(log_p, count, alpha):
    wanted = log_odds(np.array([log_p]), np.array([count]), 10**6)[0] ** alpha
    found = identifier_weights(torch.tensor([log_p], dtype=torch.float64),
                               torch.tensor([count / 10**6], dtype=torch.float64), alpha=alpha)  # fmt: skip
    assert found.item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_values_and_gradients_are_finite_everywhere(dtype, alpha):
    prior = 1e-4
    edge = math.log(prior)  # about where the weight begins
    points = [0.0, -1e-12, -1e-7, -1e-4, -0.69, edge + 1e-6, edge, edge - 1e-6, -50.0, -1e4, -math.inf]
    log_p = torch.tensor(points, dtype=dtype, requires_grad=True)
    weights = identifier_weights(log_p, torch.full((len(points),), prior), alpha=alpha)
    weights.sum().backward()
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    assert not weights[-3:].any()
    assert torch.isfinite(log_p.grad).all()
    assert not log_p.grad[-3:].any()
    assert (log_p.grad[:5] > 0).all(), "also a certain key can be made less certain"
    assert log_p.grad.abs().max() <= 1.1e4 * alpha * max(1.0, weights.max().item())


def test_the_slope_stops_growing_at_the_clamp_and_is_exact_before():
    log_p = torch.tensor([-1e-7, -1e-5, -9.9e-3, -1.1e-2, -1.0], dtype=torch.float64, requires_grad=True)
    identifier_weights(log_p, torch.full((5,), 1e-3), alpha=1.0, clamp=1e-2).sum().backward()
    limit = 1 / -math.expm1(-1e-2)
    wanted = [limit, limit, limit, 1 / -math.expm1(-1.1e-2), 1 / -math.expm1(-1.0)]
    assert log_p.grad.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(("alpha", "clamp"), [(0.0, 1e-4), (-1.0, 1e-4), (2.0, 0.0), (2.0, 1.0)])
def test_settings_out_of_range(alpha, clamp):
    with pytest.raises(ValueError, match="alpha must be > 0 and clamp between 0 and 1"):
        identifier_weights(torch.zeros(1), torch.ones(1), alpha=alpha, clamp=clamp)


@pytest.mark.parametrize("normalised", [False, True])
def test_scores_agree_with_a_naive_loop(normalised):
    x = lists(3)
    found = scored(x, normalised=normalised)
    for b in range(2):
        sums, amounts = [], []
        for d in range(3):
            rows = [n for n in range(4) if x.mask[b, d, n]]
            total = 0.0
            for n in rows:
                p, f = math.exp(x.log_probs[b, x.keys[b, d, n]]), x.prior[b, d, n].item()
                total += max(0.0, math.log(p * (1 - f) / (f * (1 - p)))) ** 2 * x.cover[b, d, n].item()
            sums.append(total)
            amounts.append(sum(x.cover[b, d, n].item() for n in rows))
        if normalised:
            mean = sum(amounts) / sum(amount > 0 for amount in amounts)
            sums = [math.sqrt(total / mean) for total in sums]
        assert found[b].tolist() == pytest.approx(sums)
    assert found.std() > 0.1, "nothing to compare"


def test_pseudo_queries_are_counted_as_the_search_does():
    log_probs = torch.tensor([[-20.0, -15.5, -8.0, -20.0, -0.5]], requires_grad=True)
    bias, cap = torch.tensor([[14.0, 14.0, 14.0, 0, 0]]), torch.tensor([[-1.0, -1.0, -1.0, math.inf, math.inf]])
    found = as_searched(log_probs, bias, cap)
    assert found[0].tolist() == pytest.approx([-6.0, -1.5, -1.0, -20.0, -0.5])
    identifier_weights(found, torch.full_like(found, 1e-9)).sum().backward()
    assert (log_probs.grad[0] != 0).tolist() == [True, True, False, True, True], "at the cap nothing is learnt"


@pytest.mark.parametrize("normalised", [False, True])
def test_padding_adds_nothing_whatever_it_holds(normalised):
    x = lists(1)
    x.log_probs = torch.cat([x.log_probs, torch.full((2, 1), math.nan, dtype=torch.float64)], 1).requires_grad_()
    wanted = scored(x, normalised=normalised).detach()
    assert torch.isfinite(wanted).all()
    hole = ~x.mask
    x.keys, x.prior = x.keys.masked_fill(hole, 6), x.prior.masked_fill(hole, math.nan)
    x.cover = x.cover.masked_fill(hole, math.inf)
    found = scored(x, normalised=normalised)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert torch.isfinite(x.log_probs.grad).all()
    assert not x.log_probs.grad[:, 6].any()
    assert x.log_probs.grad[:, :6].any()


@pytest.mark.parametrize("normalised", [False, True])
def test_no_keys_at_all_score_zero_without_gradient(normalised):
    x = lists(2)
    x.mask, x.log_probs = torch.zeros_like(x.mask), x.log_probs.requires_grad_()
    found = scored(x, normalised=normalised)
    assert not found.any()
    found.sum().backward()
    assert not x.log_probs.grad.any()
    x.log_probs = torch.zeros(2, 0)
    assert scored(x, normalised=normalised).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("normalised", [False, True])
def test_gradient(normalised):
    x = lists(4)
    x.mask[0, 1] = False
    check = lambda log_probs: passage_scores(log_probs, x.keys, x.prior, x.cover, x.mask, normalised=normalised)  # noqa: E731
    assert torch.autograd.gradcheck(check, x.log_probs.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = lists(5)
    x.log_probs = x.log_probs.to(dtype)
    half = scored(x)
    x.log_probs = x.log_probs.float()
    assert half.dtype == torch.float32
    assert torch.allclose(half, scored(x), rtol=1e-6)


def test_only_log_probabilities_have_a_gradient():
    x = lists(6)
    for name in ("log_probs", "prior", "cover"):
        getattr(x, name).requires_grad_()
    scored(x, normalised=True).sum().backward()
    assert x.log_probs.grad.any()
    assert x.prior.grad is None
    assert x.cover.grad is None


# Normalised scores


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 50), weight=st.floats(0.5, 15), alpha=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_equal_keys_score_their_log_odds_for_every_alpha_and_number_of_keys(seed, weight, alpha):
    number = 1 + seed % 7
    prior = torch.full((1, 2, number), 0.01, dtype=torch.float64)
    odds = math.exp(weight) * 0.01 / 0.99
    log_p = torch.full((1, 1), math.log(odds / (1 + odds)), dtype=torch.float64)
    keys, mask = torch.zeros(1, 2, number, dtype=torch.long), torch.ones(1, 2, number, dtype=torch.bool)
    cover = torch.full_like(prior, 0.3)
    found = passage_scores(log_p, keys, prior, cover, mask, alpha=alpha, normalised=True)
    assert found[0].tolist() == pytest.approx([weight, weight], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100), times=st.integers(2, 5), alpha=st.sampled_from([1.0, 2.0, 3.0]))
def test_normalised_scores_do_not_depend_on_how_often_all_keys_are_there(seed, times, alpha):
    x = lists(seed)
    once, plain = scored(x, alpha=alpha, normalised=True), scored(x, alpha=alpha)
    for name in ("keys", "prior", "cover", "mask"):
        setattr(x, name, getattr(x, name).repeat(1, 1, times))
    assert torch.allclose(scored(x, alpha=alpha, normalised=True), once)
    assert torch.allclose(scored(x, alpha=alpha), times * plain)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100), factor=st.floats(0.2, 5), alpha=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_normalised_scores_are_of_first_order_and_keep_the_order(seed, factor, alpha):
    log_odds_BDN = 1 + torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    reference = 7.0 if seed % 2 else torch.full((2, 1), 7.0, dtype=torch.float64)
    plain = (log_odds_BDN**alpha).sum(-1)
    once = normalise(plain, reference, alpha=alpha)
    more = normalise(((factor * log_odds_BDN) ** alpha).sum(-1), reference, alpha=alpha)
    assert torch.allclose(more, factor * once)
    assert torch.equal(plain.argsort(-1), once.argsort(-1))


def test_a_typical_passage_scores_one_on_the_scale_of_its_own_score():
    for alpha in (1.0, 2.0, 3.0):
        scores = scored(lists(8), alpha=alpha)
        typical = scores[:, 0].median().item()
        found = normalise(scores, typical, alpha=alpha)
        assert found[:, 0].median().item() == pytest.approx(1.0)


def test_mean_cover_by_hand():
    cover = torch.tensor([[[1.0, 0.5], [0.2, 9.0], [9.0, 9.0]], [[9.0, 9.0]] * 3])
    mask = torch.tensor([[[1, 1], [1, 0], [0, 0]], [[0, 0]] * 3]).bool()
    assert mean_cover(cover, mask).tolist() == [[pytest.approx(0.85)], [1.0]]


# Covers


def test_covers_by_hand():
    keys, weights = [[5, 6], [6, 7, 8], [5, 8], [9]], [1.0, 3.0, 2.0, 0.0]
    found = covers(keys, weights)
    assert found.tolist() == pytest.approx([0.2, 1.0, 0.2 + 0.8 * 0.5, 0.0])
    released = covers(keys, weights, mode="released")
    assert released.tolist() == pytest.approx([1.0, 0.2 + 0.8 * 2 / 3, 0.2, 0.0])
    assert covers(keys, weights, beta=0.0).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert covers([[5, 5, 6], [5]], [2.0, 1.0], beta=1.0).tolist() == [1.0, 0.0]
    assert covers([], []).tolist() == []


def test_covers_with_places_leave_out_keys_that_overlap_better_ones():
    # In the text 4 5 6 7: the second key stands within the first; the third one does not overlap it.
    keys, weights = [[4, 5, 6], [5, 6], [7]], [3.0, 2.0, 1.0]
    places = [[("body", 0)], [("body", 1)], [("body", 3)]]
    assert covers(keys, weights, places=places).tolist() == [1.0, 0.0, 1.0]
    assert covers(keys, weights).tolist() == pytest.approx([1.0, 0.2, 1.0])
    assert covers(keys, weights, places=[places[0], [("title", 1)], places[2]]).tolist() == pytest.approx([1, 0.2, 1])
    released = covers(keys, weights, mode="released", places=places)
    assert released.tolist() == pytest.approx([1.0, 0.2, 1.0])


def test_covers_of_an_unknown_mode():
    with pytest.raises(ValueError, match="mode must be 'inference' or 'released', got 'best'"):
        covers([[1]], [1.0], mode="best")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> SuffixIndex:
    rng = np.random.default_rng(5)
    bodies, titles = rng.integers(4, VOCABULARY, (12, 14)).tolist(), rng.integers(4, 9, (12, 2)).tolist()
    documents = [
        TokenizedDocument(number=number, entries={"body": [body], "title": [[2, *title]]})
        for number, (body, title) in enumerate(zip(bodies, titles, strict=True))
    ]
    segment = SuffixSegment.build(
        tmp_path_factory.mktemp("index") / "segment", documents, fields=("body", "title"), boundary=3,
        tokenizer_fingerprint="x", vocabulary_size=VOCABULARY,
    )  # fmt: skip
    return SuffixIndex([segment], None)


def occurrences(index, document, view, tokens):
    text, whole = index.tokens(view.field, document).tolist(), [*view.index_prefix, *tokens]
    return [(view.field, p) for p in range(len(text)) if text[p : p + len(whole)] == whole]


def test_scores_and_covers_equal_those_of_inference(index):
    texts = {view.name: [index.tokens(view.field, d).tolist() for d in range(12)] for view in (BODY, TITLE)}

    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def check(data):
        chosen: dict[tuple[View, tuple[int, ...]], float] = {}
        for n in range(data.draw(st.integers(1, 10))):
            view = data.draw(st.sampled_from([BODY, BODY, TITLE]))
            text = [t for t in data.draw(st.sampled_from(texts[view.name])) if t > 3]
            start = 0 if view is TITLE else data.draw(st.integers(0, len(text) - 1))
            tokens = tuple(text[start : start + data.draw(st.integers(1, 4))])
            chosen.setdefault((view, tokens), -0.01 - 0.3 * n)
        compare(chosen)

    def compare(chosen):
        parts = []
        for (view, tokens), log_p in chosen.items():
            states = index.extend(view.field, np.array([[*view.index_prefix, *tokens]]))
            padded = np.array([[*tokens, *[-1] * (4 - len(tokens))]])
            counts = index.count(states, None)
            zero = np.zeros(1, np.int64)
            parts.append(Keys((view,), zero, zero, padded, np.array([log_p], np.float32), counts, states.nodes_SR3))
        keys = join([BODY, TITLE], parts, 1)
        weights = log_odds(keys.log_probs_K, keys.counts_K, 200)
        wanted = score_documents(keys, weights, index, index.document_set(None), SearchConfig())
        assert len(wanted.scores_D), "nothing to compare"
        whole = [[*view.index_prefix, *tokens] for view, tokens in chosen]
        rows, amounts = [], []
        for document in wanted.documents_D.tolist():
            places = [occurrences(index, document, view, tokens) for view, tokens in chosen]
            own = [n for n, found in enumerate(places) if found]
            cover = np.zeros(len(chosen))
            cover[own] = covers([whole[n] for n in own], weights[own], places=[places[n] for n in own])
            rows.append(np.arange(len(chosen)))
            amounts.append(cover)
        shape = (1, len(rows), len(chosen))
        found = passage_scores(
            torch.from_numpy(keys.log_probs_K)[None].double(), torch.from_numpy(np.stack(rows)).reshape(shape),
            torch.from_numpy(keys.counts_K / 200).expand(shape), torch.from_numpy(np.stack(amounts)).reshape(shape),
            torch.ones(shape, dtype=torch.bool),
        )  # fmt: skip
        assert found[0].tolist() == pytest.approx(wanted.scores_D.tolist(), rel=1e-6)

    check()
