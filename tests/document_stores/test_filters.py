"""Filters against Haystack's own matcher, on values and filters that Hypothesis makes up."""

import math
from datetime import UTC, datetime

import pytest
from haystack import Document
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr_components.document_stores.local import LocalDocumentStore

DATES = [
    "2020-01-28", "2020-01-28T00:00:00", "2020-01-28 00:00:00", "2020-01-28T00:00:00+02:00", "2020-01-28T00:00:00Z",
    "2020-01-31", "2020-02-31", "2020-13-01", "2020-01-27T24:00:00", "2020-01-28T23:59:59.5", "0000-01-01",
    "1999-12-28", "2020-01-2", "٢٠٢٠-01-28",
]  # fmt: skip
TEXTS = ["", "a", "A", "100", "1", "true", "null", "a\x00b", "a'b\"c\\", "名", "-5", "1.0"]
NUMBERS = [0, 1, -1, 2, 2**53 + 1, 2**63 - 1, 2**63, 10**30, 0.0, -0.0, 1.0, 0.1, 0.1 + 0.2, 0.3, 1e300, 5e-324, 1e-9]
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.sampled_from(DATES),
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(codec="utf-8"), max_size=4),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "k"]), inner, max_size=2),
    max_leaves=3,
)
keys = st.sampled_from(["a", "b", "b c", 'q"x', "名", "queries"])
metas = st.dictionaries(keys, values, max_size=3)
paths = st.sampled_from(
    ["meta.a", "a", "meta.b", "meta.a.b", "meta.a.k", "meta.b c", 'meta.q"x', "meta.名", "meta.queries", "id",
     "content", "meta", "meta.", "score", "content.x", "embedding", "nothing", "nothing.at.all"]
)  # fmt: skip
odd = st.sampled_from([math.nan, math.inf, (1, 2), datetime(2020, 1, 28), datetime(2020, 1, 28, tzinfo=UTC), "\ud800"])
operands = st.one_of(scalars, scalars, values, st.lists(scalars, max_size=4), odd)
operators = st.sampled_from(["==", "!=", ">", ">=", "<", "<=", "in", "not in"])
comparisons = st.builds(lambda f, o, v: {"field": f, "operator": o, "value": v}, paths, operators, operands)
filters_ = st.recursive(
    comparisons,
    lambda inner: st.builds(
        lambda o, c: {"operator": o, "conditions": c},
        st.sampled_from(["AND", "OR", "NOT"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=4,
)
documents_ = st.lists(
    st.tuples(metas, st.none() | st.sampled_from(TEXTS + DATES), st.none() | st.tuples(st.floats(-1, 1), st.just(0.5))),
    max_size=5,
)


@pytest.fixture(scope="module")
def fuzzed(module_memory_path):
    store = LocalDocumentStore(module_memory_path)
    yield store
    store.close()


def malformed(filters):
    """Whether the store refuses the filter whatever the documents are, where Haystack may not get to the bad part."""
    if "field" in filters:
        value, operator = filters["value"], filters["operator"]
        if operator in ("in", "not in"):
            return not isinstance(value, list)
        if operator in (">", ">=", "<", "<=") and isinstance(value, str | list):
            try:
                document_matches_filter(
                    {"field": "id", "operator": operator, "value": value}, Document(id="2020-01-01")
                )
            except (FilterError, OverflowError):
                return True
        return False
    return any(malformed(part) for part in filters["conditions"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents=documents_, filters=filters_)
@pytest.mark.filterwarnings("ignore::dateutil.parser.UnknownTimezoneWarning")
def test_filters_mean_what_haystack_says(fuzzed, documents, filters):
    ids = ["id-0", "2020-01-28", "5", "", "a\x00b"]
    written = [
        Document(id=ids[d] or "empty", meta=meta, content=content, embedding=embedding and list(embedding))
        for d, (meta, content, embedding) in enumerate(documents)
    ]
    fuzzed.delete_all_documents()
    fuzzed.write_documents(written)
    stored = fuzzed.filter_documents()
    assert stored == written
    try:
        expected = [document.id for document in stored if document_matches_filter(filters, document)]
    except (FilterError, TypeError, OverflowError, ValueError):
        with pytest.raises(FilterError):
            fuzzed.filter_documents(filters)
        return
    if malformed(filters):
        with pytest.raises(FilterError):
            fuzzed.filter_documents(filters)
        return
    assert [document.id for document in fuzzed.filter_documents(filters)] == expected
    assert fuzzed.count_documents_by_filter(filters) == len(expected)


POOL = [
    None, True, False, 0, 1, -1, 1.0, 0.1, 0.1 + 0.2, 0.3, 2**53, 2**53 + 1, 2.0**53, 2**63, 1e300, "", "1", "a",
    "a\x00", *DATES, "2020-02-28T12:30:00", "2020-01-28T12:60:00", "2020-01-28T24:00:00", [1], ["a"], {"k": 1}, [],
]  # fmt: skip


def test_every_pair_of_confusable_values(fuzzed):
    fuzzed.delete_all_documents()
    fuzzed.write_documents([Document(id=f"id-{n}", meta={"a": value}) for n, value in enumerate(POOL)])
    stored = fuzzed.filter_documents()
    compared = 0
    for operand in [*POOL, datetime(2020, 1, 28), datetime(2020, 1, 28, tzinfo=UTC)]:
        for operator in ("==", "!=", ">", ">=", "<", "<=", "in", "not in"):
            condition = {"field": "a", "operator": operator, "value": [operand] if "in" in operator else operand}
            if malformed(condition):
                continue
            for document in stored:
                this = {"field": "id", "operator": "==", "value": document.id}
                only = {"operator": "AND", "conditions": [this, condition]}
                expected = outcome(condition, document)
                if expected is None:
                    with pytest.raises(FilterError):
                        fuzzed.filter_documents(only)
                else:
                    assert fuzzed.count_documents_by_filter(only) == int(expected), (document.meta, condition)
                compared += 1
    assert compared > 5000


def outcome(filters, document):
    """Whether the document matches, or None for an error."""
    try:
        return document_matches_filter(filters, document)
    except (FilterError, TypeError, OverflowError, ValueError):
        return None


@pytest.fixture
def store(tmp_path):
    store = LocalDocumentStore(str(tmp_path / "store"))
    store.write_documents(
        [Document(id=str(n), content=f"text {n}", meta={"n": n, "even": n % 2 == 0}) for n in range(2000)]
    )
    yield store
    store.close()


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"conditions": []}, "'operator' key missing"),
        ({"operator": "AND", "conditions": None}, "'conditions' must be a list, got None"),
        ({"operator": "XOR", "conditions": []}, "Unknown operator 'XOR' .* Valid here: AND, OR, NOT"),
        ({"operator": "AND", "conditions": ["a"]}, "A filter must be a dictionary, got str: 'a'"),
        ({"field": 5, "operator": "==", "value": 1}, "'field' must be a string, got 5"),
        ({"field": "meta.n", "operator": "~", "value": 1}, "Unknown operator '~' .* Valid here: ==, !=, in,"),
        ({"field": "meta.n", "operator": ["=="], "value": 1}, r"Unknown operator \['=='\]"),
        ({"field": "meta.n", "operator": ">", "value": "soon"}, "cannot be used with 'soon'"),
        ({"field": "meta.n", "operator": ">", "value": {}}, "cannot be applied to document '0'"),
        ({"field": "id", "operator": ">", "value": 5}, "only comparable if they are ISO formatted dates"),
    ],
)
def test_malformed_filters(store, filters, message):
    with pytest.raises(FilterError, match=message):
        store.filter_documents(filters)


def test_long_lists_and_deep_filters(store):
    wanted = [str(n) for n in range(0, 2000, 3)]
    in_ids = {"field": "id", "operator": "in", "value": wanted + [f"other {n}" for n in range(20_000)]}
    assert store.count_documents_by_filter(in_ids) == len(wanted)
    in_numbers = {"field": "meta.n", "operator": "not in", "value": list(range(0, 60_000, 3))}
    assert store.count_documents_by_filter(in_numbers) == 2000 - len(wanted)
    floats = {"field": "meta.n", "operator": "in", "value": [n + 0.0 for n in range(150)]}
    assert store.count_documents_by_filter(floats) == 150
    many = {"operator": "OR", "conditions": [{"field": "n", "operator": "==", "value": n} for n in range(1500)]}
    assert store.count_documents_by_filter(many) == 1500
    nested = {"field": "n", "operator": "<", "value": 10}
    for _ in range(50):
        nested = {"operator": "NOT", "conditions": [{"operator": "NOT", "conditions": [nested]}]}
    assert store.count_documents_by_filter(nested) == 10


def test_allowed_numbers(store):
    assert store.allowed_numbers(None) is None
    assert store.allowed_numbers({}) is None
    even = store.allowed_numbers({"field": "meta.even", "operator": "==", "value": True})
    assert even.tolist() == [n + 1 for n in range(0, 2000, 2)]
    assert store.allowed_numbers({"field": "meta.unknown", "operator": "==", "value": 1}).tolist() == []
