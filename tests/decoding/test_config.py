"""Settings: published values, ranges, all problems at once."""

import pytest

from gr_components.decoding.config import SearchConfig
from gr_components.errors import ConfigError


def test_published_values():
    seal, minder = SearchConfig.seal(), SearchConfig.minder()
    assert (seal.beams, seal.alpha, seal.beta, seal.smoothing) == (15, 2.0, 0.8, 5.0)
    assert (seal.views, seal.query_ngrams, seal.max_hits, seal.full_documents) == (("body", "title"), 3, 1500, 1500)
    assert (seal.rescore, seal.rescore_source, seal.rescore_stop, seal.unigram_keys) == (True, "plain", False, True)
    assert (minder.views, minder.query_view_bias, minder.query_view_cap) == (("body", "title", "query"), 14.0, -1.0)
    assert minder.rescore_stop
    assert SearchConfig.seal(beams=5).beams == 5


def test_defaults_are_those_measured_for_small_models():
    config = SearchConfig()
    assert (config.alpha, config.beta, config.smoothing) == (2.0, 0.8, 0.0)
    assert (config.query_ngrams, config.unigram_weight, config.query_view_bias, config.rescore) == (0, 0.0, 0.0, False)


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError, match="2 problem") as error:
        SearchConfig(beams=0, beta=1.5)
    assert "beams must be a whole number of at least 1, got 0" in str(error.value)
    assert "beta must be between 0 and 1, got 1.5" in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0}, {"alpha": float("nan")}, {"smoothing": -1}, {"normaliser": "words"}, {"query_ngrams": -1},
        {"max_hits": 0}, {"full_documents": 0}, {"beams": True}, {"beams": 2.5}, {"views": ["body"]},
        {"views": ("body", "body")}, {"rescore_source": "x"}, {"constant_log_probability": 0.0},
        {"query_view_cap": 1}, {"unigram_weight": "1"},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SearchConfig(**wrong)
