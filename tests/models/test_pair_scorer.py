"""Scores equal those of sentence-transformers' CrossEncoder; heads with several classes; saved and trained folders."""

import json
import shutil

import numpy as np
import pytest
import torch

from gr_components.errors import ConfigError, ModelError
from gr_components.models.pair_scorer import load_pair_scorer
from gr_components.models.pair_scorer_torch import PairScorerModule

_PAIRS = [
    ("what is it?", "it is a thing"),
    ("", ""),
    ("a query " * 40, "short"),
    ("short", "a passage " * 200),
    ("a query " * 40, "a passage " * 40),
    ("北京?", "Ünïcode"),
]


def _sigmoid(scores):
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


def _theirs(folder, **settings):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu", **settings)


def _assert_equal(ours, theirs):
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.ptp(theirs) > 1e-2, "all scores are the same, so this test would be vacuous"


@pytest.fixture
def with_classes(tiny_ranker, tmp_path):
    """Make a copy of the tiny ranker with several classes."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    def make(names):
        folder = tmp_path / f"classes{len(names)}"
        config = BertConfig.from_pretrained(tiny_ranker)
        config.id2label, config.label2id = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_ranker).save_pretrained(folder)
        return folder

    return make


def test_scores_equal_cross_encoder(tiny_ranker):
    expected = _theirs(tiny_ranker).predict(_PAIRS)
    scorer = load_pair_scorer(str(tiny_ranker), device="cpu")
    for batch_size in (1, 2, 100):
        _assert_equal(_sigmoid(scorer.score(_PAIRS, batch_size=batch_size)), expected)
    assert scorer.score([]).shape == (0,)


def test_a_smaller_length_cuts_as_cross_encoder_does(tiny_ranker):
    expected = _theirs(tiny_ranker, max_length=20).predict(_PAIRS)
    scorer = load_pair_scorer(str(tiny_ranker), device="cpu", max_length=20)
    _assert_equal(_sigmoid(scorer.score(_PAIRS)), expected)
    assert np.abs(expected - _theirs(tiny_ranker).predict(_PAIRS)).max() > 1e-3


def test_roberta_equals_cross_encoder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

    special = {"<s>": 0, "<pad>": 1, "</s>": 2}
    alphabet = {letter: n + 3 for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**special, **alphabet}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", cls_token="<s>", sep_token="</s>", model_max_length=48
    ).save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=len(special) + len(alphabet), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=50, num_labels=1, pad_token_id=1, initializer_range=0.3,
        type_vocab_size=1,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    scorer = load_pair_scorer(str(tmp_path), device="cpu")
    assert (scorer.info.max_length, scorer.info.type_ids) == (48, False)
    _assert_equal(_sigmoid(scorer.score(_PAIRS)), _theirs(tmp_path).predict(_PAIRS))


def test_a_folder_saved_by_cross_encoder_is_read(tiny_ranker, tmp_path):
    theirs = _theirs(tiny_ranker)
    theirs.save(str(tmp_path / "saved"))
    _assert_equal(
        _sigmoid(load_pair_scorer(str(tmp_path / "saved"), device="cpu").score(_PAIRS)), theirs.predict(_PAIRS)
    )


def test_the_sigmoid_of_a_score_is_the_probability_of_its_class(with_classes):
    two, three = with_classes(["no", "yes"]), with_classes(["contradiction", "entailment", "neutral"])
    for folder, label, column in ((two, None, 1), (two, "no", 0), (three, "entailment", 1), (three, 2, 2)):
        expected = _theirs(folder).predict(_PAIRS, apply_softmax=True)[:, column]
        found = load_pair_scorer(str(folder), device="cpu", label=label).score(_PAIRS)
        _assert_equal(_sigmoid(found), expected)


def test_many_classes_need_a_label(with_classes):
    folder = with_classes(["contradiction", "entailment", "neutral"])
    with pytest.raises(ModelError, match=r"has 3 classes: 0 \(contradiction\), 1 \(entailment\), 2 \(neutral\)"):
        load_pair_scorer(str(folder), device="cpu")
    with pytest.raises(ConfigError, match="label 'yes' is no class of"):
        load_pair_scorer(str(folder), device="cpu", label="yes")


def test_a_ranker_is_trained_from_an_encoder_and_loads_everywhere(minilm, tmp_path):
    config = {"num_hidden_layers": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    module = PairScorerModule.from_encoder(minilm, max_length=40, config=config)
    torch.nn.init.normal_(module.model.classifier.weight, std=10.0)  # scores that differ without much training
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-5)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -torch.log_softmax(module(**module.inputs(_PAIRS[:3])), dim=0)[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    module.save(tmp_path / "trained")
    module.eval()
    with torch.no_grad():
        expected = module(**module.inputs(_PAIRS)).numpy()
    scorer = load_pair_scorer(str(tmp_path / "trained"), device="cpu")
    assert scorer.info.max_length == 40
    _assert_equal(scorer.score(_PAIRS), expected)
    _assert_equal(_theirs(tmp_path / "trained").predict(_PAIRS), _sigmoid(expected))


def test_int8_rows_are_close(tiny_ranker, tmp_path):
    PairScorerModule.from_folder(tiny_ranker).save(tmp_path / "int8", weights="int8")
    assert not (tmp_path / "int8" / "model.safetensors").exists()
    assert "\n" not in (tmp_path / "int8" / "tokenizer.json").read_text()
    exact = load_pair_scorer(str(tiny_ranker), device="cpu").score(_PAIRS)
    rounded = load_pair_scorer(str(tmp_path / "int8"), device="cpu").score(_PAIRS)
    assert np.corrcoef(exact, rounded)[0, 1] > 0.9
    assert np.abs(exact - rounded).max() > 0


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["a.Transformer", "b.Pooling"], "is a text encoder, which gives vectors and no scores of pairs"),
        (["a.Transformer", "b.LogitScore"], "is a cross-encoder of the modules Transformer, LogitScore"),
    ],
)
def test_other_modules_are_refused(tiny_ranker, tmp_path, modules, message):
    shutil.copytree(tiny_ranker, tmp_path / "copy")
    entries = [{"idx": n, "name": str(n), "path": "", "type": kind} for n, kind in enumerate(modules)]
    (tmp_path / "copy" / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ModelError, match=message):
        load_pair_scorer(str(tmp_path / "copy"), device="cpu")
