"""The engine against Hugging Face's own generation and attention maps."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from gr_components.data.records import Passage
from gr_components.errors import ConfigError, ModelError, NumericsError
from gr_components.models.seq2seq.folder import LoadedSeq2Seq
from gr_components.readers.config import ReadConfig
from gr_components.readers.fusion import FusionReader, Reading
from gr_components.readers.layout import ReaderLayout

QUESTION = "Where was it played?"
# Answers of random models rarely end by themselves.
CONFIG = ReadConfig(max_answer_tokens=7)


def encoded(reader: FusionReader, passages: list[Passage]) -> list[list[int]]:
    layout, tokenizer = reader.layout, reader.tokenizer
    question = layout.tokenize(tokenizer, [QUESTION])[0].ids
    titles = layout.tokenize(tokenizer, [p.title for p in passages])
    texts = layout.tokenize(tokenizer, [p.text for p in passages])
    return [layout.assemble(question, t.ids, x.ids)[0] for t, x in zip(titles, texts, strict=True)]


def hugging_face_states(loaded: LoadedSeq2Seq, inputs: list[list[int]]) -> torch.Tensor:
    encoder = loaded.model.hf.get_encoder()
    return torch.cat([encoder(input_ids=torch.tensor([ids])).last_hidden_state for ids in inputs], dim=1)


@torch.no_grad()
def hugging_face_answer(loaded: LoadedSeq2Seq, layout: ReaderLayout, inputs: list[list[int]], beams: int) -> list[int]:
    states = hugging_face_states(loaded, inputs)
    loaded.model.hf.generation_config.forced_eos_token_id = None
    forced = {"forced_bos_token_id": layout.answer_start[1]} if len(layout.answer_start) > 1 else {}
    out = loaded.model.hf.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=torch.ones(1, states.shape[1]),
        decoder_start_token_id=layout.answer_start[0], eos_token_id=layout.stop, pad_token_id=loaded.tokenizer.pad_id,
        max_new_tokens=7 + len(forced), num_beams=beams, do_sample=False, length_penalty=0.0, early_stopping="never",
        suppress_tokens=list(layout.never), begin_suppress_tokens=[layout.stop], **forced,
    )[0].tolist()  # fmt: skip
    answer = out[len(layout.answer_start) :]
    return answer[: answer.index(layout.stop)] if layout.stop in answer else answer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("number", [1, 3])
def test_equals_hugging_face(plain: LoadedSeq2Seq, passages: list[Passage], number: int, beams: int) -> None:
    reader = FusionReader(plain)
    chosen = passages[:number]
    wanted = hugging_face_answer(plain, reader.layout, encoded(reader, chosen), beams)
    (reading,) = reader.read([QUESTION], [chosen], ReadConfig(max_answer_tokens=7, num_beams=beams))
    assert wanted
    assert reading.answers[0].generated == plain.tokenizer.decode(wanted).strip()


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_relevance_is_the_mean_of_attention_logits(plain: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(plain)
    inputs = encoded(reader, passages)
    (reading,) = reader.read([QUESTION], [passages], CONFIG)
    hf = plain.model.hf
    hf.set_attn_implementation("eager")
    states = hugging_face_states(plain, inputs)
    maps = hf(
        encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=torch.ones(1, states.shape[1]),
        decoder_input_ids=torch.tensor([[reader.layout.answer_start[0]]]), output_attentions=True,
    ).cross_attentions  # fmt: skip
    # Logarithms of attention are logits up to one constant per head, which the difference of two passages loses.
    logits_S = torch.stack([each[0, :, 0].log() for each in maps]).mean(dim=(0, 1))
    ends = list(itertools.accumulate(len(ids) for ids in inputs))
    means = [logits_S[end - len(ids) : end].mean().item() for ids, end in zip(inputs, ends, strict=True)]
    relevance = np.array(reading.relevance)
    assert np.ptp(relevance) > 1e-2
    np.testing.assert_allclose(relevance - relevance[0], np.array(means) - means[0], atol=1e-4)


def test_order_of_passages_makes_no_difference(any_reader: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(any_reader)
    (first,) = reader.read([QUESTION], [passages], CONFIG)
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        (other,) = reader.read([QUESTION], [[passages[n] for n in order]], CONFIG)
        assert other.answers[0].generated == first.answers[0].generated
        assert other.answers[0].log_probability == pytest.approx(first.answers[0].log_probability, abs=1e-4)
        assert other.relevance == pytest.approx([first.relevance[n] for n in order], abs=1e-4)


def test_a_batch_is_its_parts(any_reader: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(any_reader)
    questions = [QUESTION, "Who was born there?", "What covers the basin?", "x", QUESTION]
    given = [passages, passages[:1], passages[1:], [], [passages[0], Passage("none", "title", "  "), passages[2]]]
    for size in (1, 4, 32):
        config = dataclasses.replace(CONFIG, batch_size=size, num_beams=3, num_answers=2)
        together = reader.read(questions, given, config)
        for question, own, reading in zip(questions, given, together, strict=True):
            (alone,) = reader.read([question], [own], config)
            same(reading, alone)


def same(one: Reading, other: Reading) -> None:
    assert [(a.text, a.generated, a.passage, a.span) for a in one.answers] == [
        (a.text, a.generated, a.passage, a.span) for a in other.answers
    ]
    assert [a.log_probability for a in one.answers] == pytest.approx(
        [a.log_probability for a in other.answers], abs=1e-4
    )
    assert [r is None for r in one.relevance] == [r is None for r in other.relevance]
    assert [r or 0 for r in one.relevance] == pytest.approx([r or 0 for r in other.relevance], abs=1e-4)


def test_passages_without_text_count_for_nothing(any_reader: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(any_reader)
    empty = Passage("empty", "A title", " ")
    (with_it,) = reader.read([QUESTION], [[empty, *passages]], CONFIG)
    (without,) = reader.read([QUESTION], [passages], CONFIG)
    assert with_it.relevance[0] is None
    assert with_it.relevance[1:] == pytest.approx(without.relevance, abs=1e-4)
    assert with_it.answers[0].generated == without.answers[0].generated


def test_nothing_to_read(any_reader: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(any_reader)
    assert reader.read([], []) == []
    blank = Passage("blank", "", "")
    assert reader.read(["a", "b", " "], [[], [blank], passages]) == [
        Reading([], []), Reading([], [None]), Reading([], [None] * 3),
    ]  # fmt: skip


def test_closed_book(any_reader: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(any_reader)
    config = dataclasses.replace(CONFIG, closed_book=True)
    alone, blank, usual = reader.read([QUESTION] * 3, [[], [Passage("blank", "", "")], passages], config)
    assert alone.answers[0].generated
    assert alone.answers[0].passage is None
    assert (alone.relevance, blank.relevance) == ([], [None])
    assert blank.answers[0].text == alone.answers[0].text
    same(usual, reader.read([QUESTION], [passages], CONFIG)[0])


def test_what_is_beyond_the_longest_input_is_not_read(copying: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(copying)
    text = passages[0].text
    room = reader.layout.max_passage_tokens
    longer = [Passage("p", "t", text * 5 + " zebra"), Passage("p", "t", text * 5 + " elephant")]
    assert len(encoded(reader, longer)[0]) == room
    one, other = reader.read([QUESTION] * 2, [[longer[0]], [longer[1]]], CONFIG)
    same(one, other)


def test_extractive_answers_are_spans(copying: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(copying)
    config = dataclasses.replace(CONFIG, extractive=True, num_beams=4, num_answers=4)
    (reading,) = reader.read([QUESTION], [passages], config)
    assert reading.answers
    for answer in reading.answers:
        assert answer.passage is not None
        assert answer.span is not None
        assert passages[answer.passage].text[slice(*answer.span)] == answer.text
        assert answer.text[0].isalnum() or len(answer.text) == 1


def test_the_longest_answer_is_the_models_own_or_shorter(copying: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(copying)
    copying.model.copy.gate.bias.data.fill_(-30.0)  # it only writes, and random models do not stop
    word = copying.tokenizer.id("a")
    copying.model.hf.decoder.cls.predictions.decoder.bias.data[word] = 1e4
    for limit, length in ((None, reader.layout.max_answer_tokens), (3, 3), (20, 20)):
        (reading,) = reader.read([QUESTION], [passages], ReadConfig(max_answer_tokens=limit))
        assert reading.answers[0].generated.split() == ["a"] * length


def test_memory_running_out_halves_the_batch(
    copying: LoadedSeq2Seq, passages: list[Passage], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = FusionReader(copying)
    questions, given = [QUESTION, "Who was born there?", "What?"], [passages] * 3
    wanted = reader.read(questions, given, CONFIG)
    encode, sizes = copying.model.encode, []

    def small(ids: torch.Tensor, *more: torch.Tensor) -> object:
        sizes.append(len(ids))
        if len(ids) > limit:
            msg = "DefaultCPUAllocator: can't allocate memory"
            raise RuntimeError(msg)
        return encode(ids, *more)

    monkeypatch.setattr(copying.model, "encode", small)
    for limit in (4, 2, 1):
        for one, other in zip(wanted, reader.read(questions, given, CONFIG), strict=True):
            same(one, other)
        assert sizes[-1] <= limit
    assert "Out of memory with 9 passages in a batch; going on with 4." in caplog.text
    limit = 0
    with pytest.raises(ModelError, match=r"Out of memory with 3 passages of a question\. Set a smaller top_k"):
        reader.read(questions, given, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams must be a whole number of at least 1, got 0"),
        ({"num_answers": 2}, "num_answers=2 needs as many beams; num_beams is 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"max_answer_tokens": 1}, "max_answer_tokens must be a whole number of at least 2"),
    ],
)
def test_bad_settings(copying: LoadedSeq2Seq, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FusionReader(copying).read([QUESTION], [[]], ReadConfig(**changes))


def test_unequal_numbers(copying: LoadedSeq2Seq) -> None:
    with pytest.raises(ConfigError, match="There are 2 questions and 1 lists of passages"):
        FusionReader(copying).read(["a", "b"], [[]])


def test_extractive_needs_the_reserved_layout(plain: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(plain)
    if reader.layout.kind == "text":
        with pytest.raises(ConfigError, match="extractive=True needs a model with the reserved layout"):
            reader.read([QUESTION], [passages], ReadConfig(extractive=True))


def test_a_model_that_is_no_reader(copying: LoadedSeq2Seq) -> None:
    copying.info.clear()
    with pytest.raises(ModelError, match=r"is no reader: its gr_model\.json has no 'reader' entry"):
        FusionReader(copying)


def test_inputs_longer_than_the_model_takes(copying: LoadedSeq2Seq) -> None:
    with pytest.raises(ModelError, match="takes at most 256 tokens, but passages of 300"):
        FusionReader(copying, max_passage_tokens=300)


def test_damaged_weights_are_noticed(copying: LoadedSeq2Seq, passages: list[Passage]) -> None:
    copying.model.copy.key.weight.data[0, 0] = float("nan")
    copying.model.family.memory_projections(0)[0].weight.data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="attention is NaN"):
        FusionReader(copying).read([QUESTION], [passages])


def test_scores_move_the_attention_between_passages(any_reader: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(any_reader)

    def answer(scores: list[float | None], weight: float, given: list[Passage] = passages) -> tuple[str, float]:
        config = dataclasses.replace(CONFIG, retrieval_weight=weight)
        (reading,) = reader.read([QUESTION], [given], config, scores=[scores])
        return reading.answers[0].generated, reading.answers[0].log_probability

    (alike,) = reader.read([QUESTION], [passages], CONFIG)
    plain = (alike.answers[0].generated, alike.answers[0].log_probability)
    assert answer([0.9, 0.2, 0.1], 0.0) == plain
    for n, passage in enumerate(passages):
        sure = [1.0 if n == other else 0.0 for other in range(len(passages))]
        text, log_probability = answer(sure, 1e6)
        alone_text, alone = answer([1.0], 0.0, [passage])
        assert text == alone_text
        assert log_probability == pytest.approx(alone, abs=1e-3)
    text, log_probability = answer([0.5, 0.5, 0.5], 7.0)
    assert (text, log_probability) == (plain[0], pytest.approx(plain[1], abs=1e-5))
    weighed = dataclasses.replace(CONFIG, retrieval_weight=1e3)
    (reading,) = reader.read([QUESTION], [passages], weighed, scores=[[0.1, 0.2, 0.9]])
    assert int(np.argmax(reading.relevance)) == 2
    # Of the passages only the scores' differences count, and the order does not.
    moved = answer([0.9, 0.2, 0.1], 3.0)
    assert moved[1] != pytest.approx(plain[1], abs=1e-5)
    assert answer([1.9, 1.2, 1.1], 3.0)[1] == pytest.approx(moved[1], abs=1e-4)
    assert answer([0.1, 0.2, 0.9], 3.0, passages[::-1])[1] == pytest.approx(moved[1], abs=1e-4)
    assert answer([0.9, None, 0.2], 3.0)[1] == pytest.approx(answer([0.9, 0.2, 0.2], 3.0)[1], abs=1e-6)


def test_scores_that_are_no_numbers_are_refused(copying: LoadedSeq2Seq, passages: list[Passage]) -> None:
    reader = FusionReader(copying)
    config = dataclasses.replace(CONFIG, retrieval_weight=1.0)
    with pytest.raises(NumericsError, match="retrieval_weight cannot use"):
        reader.read([QUESTION], [passages], config, scores=[[1.0, float("nan"), 0.0]])
    for wrong in ([[1.0, 0.5]], [[1.0] * 4], []):
        with pytest.raises(ConfigError, match="scores must have a list for each question"):
            reader.read([QUESTION], [passages], config, scores=wrong)
    for weight in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="retrieval_weight must be"):
            ReadConfig(retrieval_weight=weight)
