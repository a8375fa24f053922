"""The shared decoder module against Hugging Face, the copy head against its definition, folders against themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    T5Config,
    T5ForConditionalGeneration,
)

from gr_components.errors import ConfigError, DeviceError, ModelError, ModelNotFoundError, TokenizerMismatchError
from gr_components.models.seq2seq.building import build_seq2seq_from_encoder, cut_vocabulary
from gr_components.models.seq2seq.copying import CopyConfig, teacher_categories
from gr_components.models.seq2seq.folder import load_seq2seq, save_seq2seq
from gr_components.models.seq2seq.model import Seq2SeqModel
from gr_components.models.seq2seq.torch_decoder import TorchDecoder

V = 97
KINDS = ["bart", "t5", "t5-v1.1", "bert"]


def hugging_face_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "bart":
        config = BartConfig(
            vocab_size=V, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, scale_embedding=True,
        )  # fmt: skip
        model = BartForConditionalGeneration(config)
        model.final_logits_bias.normal_()
    elif kind.startswith("t5"):
        extra = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind == "t5-v1.1" else {}
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=V, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                     decoder_start_token_id=0, **extra)
        )  # fmt: skip
    else:
        shape = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip
        decoder = BertConfig(**shape, is_decoder=True, add_cross_attention=True)
        model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**shape), decoder))
    for parameter in model.parameters():
        # Random initial weights are so small that a wrong mask or position would hide below the tolerance.
        if parameter.dim() > 1:
            parameter.data.mul_(2.0 if kind.startswith("t5") else 6.0)
    return model.eval()


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Seq2SeqModel:
    return Seq2SeqModel(hugging_face_model(request.param)).eval()


@pytest.fixture(params=KINDS)
def copying_model(request: pytest.FixtureRequest) -> Seq2SeqModel:
    torch.manual_seed(1)
    config = CopyConfig(
        previous_state=True, position_bias=True, continuation=True, selective_read=True, initial_gate=0.5
    )
    return Seq2SeqModel(hugging_face_model(request.param), config).eval()


def sources() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, V, (3, 9), generator=generator)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 6:] = False
    mask[2, 3:] = False
    return ids, mask


def hugging_face_log_probs(model: Seq2SeqModel, inputs: torch.Tensor, per_source: int) -> torch.Tensor:
    ids, mask = sources()
    out = model.hf(
        input_ids=ids.repeat_interleave(per_source, 0),
        attention_mask=mask.repeat_interleave(per_source, 0).long(),
        decoder_input_ids=inputs,
    )
    return torch.log_softmax(out.logits.float(), -1)


def inputs(rows: int, length: int = 6) -> torch.Tensor:
    tokens = torch.randint(5, V, (rows, length), generator=torch.Generator().manual_seed(4))
    tokens[:, 0] = 2
    return tokens


@torch.no_grad()
def test_teacher_forcing_equals_hugging_face(model: Seq2SeqModel) -> None:
    fed = inputs(6)
    targets = torch.cat([fed[:, 1:], torch.full((6, 1), 7)], 1)
    real = torch.ones_like(targets, dtype=torch.bool)
    real[0, 4:] = False
    expected = hugging_face_log_probs(model, fed, 2).gather(2, targets[..., None])[..., 0]
    assert expected.std() > 0.3
    actual = model.log_probs(model.encode(*sources()), fed, targets, real)
    torch.testing.assert_close(actual[real], expected[real], atol=1e-4, rtol=0)
    assert (actual[~real] == 0).all()


def test_steps_with_moved_beams_equal_hugging_face(model: Seq2SeqModel) -> None:
    decoder = TorchDecoder(model)
    ids, mask = sources()
    beams, rng = 4, np.random.default_rng(5)
    state = decoder.start(decoder.encode(ids.numpy(), mask.numpy()), beams)
    history = np.full((3 * beams, 1), 2)
    rows = np.arange(3 * beams)
    for _ in range(5):
        got = decoder.step(history[:, -1].copy(), rows, state)
        expected = hugging_face_log_probs(model, torch.from_numpy(history), beams)[:, -1].detach().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-4)
        rows = (np.arange(3)[:, None] * beams + rng.integers(0, beams, (3, beams))).reshape(-1)
        history = np.concatenate([history[rows], rng.integers(5, V, (3 * beams, 1))], axis=1)
    assert len(set(map(tuple, history))) > 3


def test_scores_equal_steps(copying_model: Seq2SeqModel) -> None:
    decoder = TorchDecoder(copying_model)
    ids, mask = sources()
    source = decoder.encode(ids.numpy(), mask.numpy())
    state = decoder.start(source, 1)
    targets = ids[:, 1:5].numpy().copy()  # source tokens, so that copying and its continuation matter
    fed, steps = np.full(3, 2), []
    for t in range(4):
        log_probs = decoder.step(fed, np.arange(3), state)
        np.testing.assert_allclose(np.exp(log_probs.astype(np.float64)).sum(1), 1.0, atol=1e-4)
        steps.append(log_probs[np.arange(3), targets[:, t]])
        fed = targets[:, t]
    order = np.array([2, 0, 1])
    padded = np.concatenate([targets[order], np.full((3, 1), -1)], axis=1)
    scored = decoder.score(source, padded, (2,), order)
    np.testing.assert_allclose(scored[:, :4], np.stack(steps, 1)[order], atol=1e-4)
    assert (scored[:, 4] == 0).all()


def test_two_start_tokens_shift_the_scores(model: Seq2SeqModel) -> None:
    decoder = TorchDecoder(model)
    ids, mask = sources()
    source = decoder.encode(ids.numpy(), mask.numpy())
    whole = decoder.score(source, np.array([[9, 11, 13]]), (2,), np.array([1]))
    tail = decoder.score(source, np.array([[11, 13]]), (2, 9), np.array([1]))
    np.testing.assert_allclose(tail, whole[:, 1:], atol=1e-5)


def test_one_fused_passage_is_the_plain_model_and_order_does_not_matter(copying_model: Seq2SeqModel) -> None:
    decoder = TorchDecoder(copying_model)
    ids, mask = (x.numpy() for x in sources())
    plain = decoder.step(np.full(3, 2), np.arange(3), decoder.start(decoder.encode(ids, mask), 1))
    one = decoder.encode_fused(ids[:, None], mask[:, None], mask[:, None])
    np.testing.assert_allclose(decoder.step(np.full(3, 2), np.arange(3), decoder.start(one, 1)), plain, atol=1e-5)

    fused = decoder.encode_fused(ids[None], mask[None], mask[None], chunk=2)
    order = [2, 0, 1]
    shuffled = decoder.encode_fused(ids[None, order], mask[None, order], mask[None, order])
    outs = [decoder.step(np.array([2]), np.array([0]), decoder.start(s, 1)) for s in (fused, shuffled)]
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-4)
    relevance = decoder.relevance(fused, 3, 2)
    np.testing.assert_allclose(decoder.relevance(shuffled, 3, 2), relevance[:, order], atol=1e-4)
    assert np.ptp(relevance) > 0.01


@torch.no_grad()
def test_passage_relevance_equals_full_attention_maps(model: Seq2SeqModel) -> None:
    ids, mask = sources()
    memory = model.encode_fused(ids[None], mask[None])
    got = model.passage_relevance(memory, 2, 3)
    cross = model.core.project_memory(memory.states_BSE, memory.mask_BS)
    queries = model.core(torch.tensor([[2]]), cross).cross_queries_RTHD
    maps = torch.stack(
        [torch.einsum("hd,hsd->hs", q[0, 0], k[0]) for q, k in zip(queries, cross.keys_BHSD, strict=True)]
    )
    by_passage = maps.mean((0, 1)).reshape(3, -1)
    expected = torch.stack([by_passage[n][mask[n]].mean() for n in range(3)])
    torch.testing.assert_close(got[0], expected, atol=1e-4, rtol=1e-4)


def test_continuation_categories_by_hand() -> None:
    ids = torch.tensor([[10, 11, 12, 10, 13, 11]])
    copyable = torch.tensor([[True, True, True, True, True, False]])
    fed = torch.tensor([[2, 10, 11]])
    first, after_10, after_10_11 = teacher_categories(ids, copyable, fed, 6)[0].tolist()
    assert first == [0, 0, 0, 0, 0, 0]
    assert after_10 == [0, 1, 0, 0, 1, 0]  # positions after a 10 continue everything
    assert after_10_11 == [0, 0, 1, 0, 0, 0]  # only after "10 11"; the second 11 may not be copied


@torch.no_grad()
def test_mixture_by_hand() -> None:
    torch.manual_seed(2)
    model = Seq2SeqModel(hugging_face_model("bert"), CopyConfig()).eval()
    ids, mask = sources()
    memory = model.encode(ids, mask)
    cross, keys = model.project(memory)
    states = model.core(torch.full((3, 1), 2), cross).states_RTE
    vocabulary = torch.log_softmax(model.family.logits(states), -1)
    attention = model.copy.log_attention(states, keys, None).exp()
    gate = torch.sigmoid(model.copy.gate(states))[..., 0]
    expected = (1 - gate)[..., None] * vocabulary.exp()
    for b in range(3):
        for s in range(9):
            expected[b, 0, ids[b, s]] += gate[b, 0] * attention[b, 0, s]
    torch.testing.assert_close(model.copy.mix(vocabulary, states, keys, None).exp(), expected, atol=1e-5, rtol=1e-4)
    assert attention[1, 0, 6:].max() < 1e-6  # padding is never copied


def test_gradient_reaches_every_parameter(copying_model: Seq2SeqModel) -> None:
    copying_model.train()
    fed = inputs(3)
    targets = torch.cat([fed[:, 1:], torch.full((3, 1), 7)], 1)
    memory = copying_model.encode(*sources())
    copying_model.log_probs(memory, fed, targets, torch.ones_like(targets, dtype=torch.bool)).sum().backward()
    without = [n for n, p in copying_model.named_parameters() if p.grad is None and "pooler" not in n]
    assert without == []


@pytest.fixture(scope="module")
def built(minilm: Path):
    texts = ["What is the capital of France?", "Paris is the capital of France; São Paulo is not."]
    tokenizer, keep = cut_vocabulary(minilm, texts)
    model = build_seq2seq_from_encoder(minilm, keep, decoder_layers=1, copy=CopyConfig())
    return model.eval(), tokenizer


def test_cut_vocabulary_reads_the_same_tokens(built, minilm: Path) -> None:
    from gr_components.tokenization import TextTokenizer

    _, tokenizer = built
    full = TextTokenizer.from_folder(minilm)
    text = "What is the capital of France? zxq"
    cut_tokens = [tokenizer.token(i) for i in tokenizer.encode([text], special=True)[0]]
    assert cut_tokens[:-4] == [full.token(i) for i in full.encode([text[:-4]], special=True)[0]][:-1]
    assert tokenizer.special["unk"] not in tokenizer.encode([text])[0]  # unknown words fall apart into characters
    assert tokenizer.vocabulary_size < 600


@pytest.mark.parametrize(("weights", "tolerance"), [("float32", 1e-6), ("float16", 2e-2), ("int8", 0.3)])
def test_folder_round_trip(built, tmp_path: Path, weights, tolerance: float) -> None:
    model, tokenizer = built
    save_seq2seq(model, tokenizer, {"task": "test"}, tmp_path / "m", weights=weights)
    again = load_seq2seq(str(tmp_path / "m"), device="cpu")
    assert again.info["task"] == "test"
    assert again.tokenizer.fingerprint == tokenizer.fingerprint
    ids = np.array([tokenizer.encode(["what is the capital"], special=True)[0]])
    mask = np.ones_like(ids, dtype=bool)
    outs = []
    for m in (model, again.model):
        decoder = TorchDecoder(m)
        outs.append(decoder.step(np.array([1]), np.array([0]), decoder.start(decoder.encode(ids, mask), 1)))
    np.testing.assert_allclose(outs[1], outs[0], atol=tolerance)
    assert not list(tmp_path.glob("m.*"))  # nothing temporary is left


@pytest.mark.parametrize("kind", [*KINDS, "bert, one matrix", "bert, decoder's matrix", "bert, three matrices"])
@torch.no_grad()
def test_matrices_that_are_shared_or_not_stay_so(kind: str, built, tmp_path: Path) -> None:
    hf = hugging_face_model(kind.partition(",")[0])
    if kind.startswith("bert, "):
        encoder, decoder, output = _embeddings(hf)
        decoder.weight = encoder.weight if "one" in kind else torch.nn.Parameter(encoder.weight + 1)
        output.weight = decoder.weight if "three" not in kind else torch.nn.Parameter(encoder.weight + 2)
    model = Seq2SeqModel(hf).eval()
    save_seq2seq(model, built[1], {"task": "test"}, tmp_path / "model")
    again = load_seq2seq(str(tmp_path / "model"), device="cpu").model
    fed = inputs(3)
    everything = torch.ones_like(fed, dtype=torch.bool)
    scores = [m.log_probs(m.encode(*sources()), fed, fed.flip(1), everything) for m in (model, again)]
    assert scores[0].std() > 0.3
    torch.testing.assert_close(scores[1], scores[0], atol=1e-6, rtol=0)
    assert len(list(again.hf.parameters())) == len(list(hf.parameters())), "as many different matrices"


def test_sharing_that_a_folder_cannot_tell_is_refused(built, tmp_path: Path) -> None:
    odd = hugging_face_model("bert")
    encoder, decoder, output = _embeddings(odd)
    decoder.weight, output.weight = torch.nn.Parameter(encoder.weight + 1), encoder.weight
    untied = hugging_face_model("bart")
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight + 1)
    for hf, message in ((odd, "shares its matrix with the encoder"), (untied, "tie_word_embeddings is True")):
        with pytest.raises(ModelError, match=message):
            save_seq2seq(Seq2SeqModel(hf), built[1], {}, tmp_path / "model")
    assert not any(tmp_path.iterdir())


def _embeddings(hf: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Encoder embedding, decoder embedding and output layer of a BERT-to-BERT model."""
    return (hf.encoder.embeddings.word_embeddings, hf.decoder.bert.embeddings.word_embeddings,
            hf.decoder.cls.predictions.decoder)  # fmt: skip


def test_small_folders_leave_out_what_nothing_reads(built, tmp_path: Path) -> None:
    model, tokenizer = built
    assert model.hf.encoder.pooler is not None
    save_seq2seq(model, tokenizer, {}, tmp_path / "m", weights="int8")
    names = load_file(tmp_path / "m" / "model.int8.safetensors")
    assert not [name for name in names if "pooler" in name]
    again = load_seq2seq(str(tmp_path / "m"), device="cpu").model
    assert again.hf.encoder.pooler is None
    save_seq2seq(again, tokenizer, {}, tmp_path / "n")  # a model without a pooler can be saved and loaded
    full = load_seq2seq(str(tmp_path / "n"), device="cpu").model
    assert all(torch.equal(a, b) for a, b in zip(full.parameters(), again.parameters(), strict=True))
    assert "_name_or_path" not in (tmp_path / "m" / "config.json").read_text()
    assert "\n" not in (tmp_path / "m" / "tokenizer.json").read_text()


def test_float_folder_of_a_bart_loads_in_transformers(tmp_path: Path, built) -> None:
    _, tokenizer = built
    model = Seq2SeqModel(hugging_face_model("bart"))
    save_seq2seq(model, tokenizer, {}, tmp_path / "bart")
    again = BartForConditionalGeneration.from_pretrained(tmp_path / "bart").eval()
    ids, mask = sources()
    with torch.no_grad():
        expected = model.hf(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=inputs(3)).logits
        got = again(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=inputs(3)).logits
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_runs(kind: str) -> None:
    model = Seq2SeqModel(hugging_face_model(kind), CopyConfig(continuation=True)).eval()
    ids, mask = (x.numpy() for x in sources())
    outs = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        decoder = TorchDecoder(model.to(dtype))
        state = decoder.start(decoder.encode(ids, mask), 1)
        outs.append(np.exp(decoder.step(np.full(3, 2), np.arange(3), state)))
    assert all(np.isfinite(out).all() for out in outs)
    np.testing.assert_allclose(outs[2], outs[0], atol=0.1)


def test_code_and_pickles_of_a_model_are_refused_and_so_are_missing_weights(tmp_path: Path, built) -> None:
    _, tokenizer = built
    model = hugging_face_model("bart")
    model.save_pretrained(tmp_path / "bart")
    tokenizer.save(tmp_path / "bart")
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load_seq2seq(str(tmp_path / "bart"), device="cpu", model_kwargs={"trust_remote_code": True})
    weights = tmp_path / "bart" / "model.safetensors"
    state = load_file(weights)
    kept = {name: tensor for name, tensor in state.items() if "decoder.layers.1" not in name}
    assert 0 < len(kept) < len(state)
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks"):
        load_seq2seq(str(tmp_path / "bart"), device="cpu")
    weights.unlink()
    torch.save(model.state_dict(), tmp_path / "bart" / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="no weights in safetensors"):
        load_seq2seq(str(tmp_path / "bart"), device="cpu")


def test_bad_folders_say_what_is_wrong(built, tmp_path: Path) -> None:
    model, tokenizer = built
    with pytest.raises(ModelNotFoundError, match="no model folder"):
        load_seq2seq(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"float32, float16 or int8, got 'int4'"):
        save_seq2seq(model, tokenizer, {}, tmp_path / "m", weights="int4")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="CUDA device"):
        load_seq2seq(str(tmp_path), device="cuda:7")
    save_seq2seq(model, tokenizer, {}, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="damaged or truncated"):
        load_seq2seq(str(tmp_path / "m"), device="cpu")
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match="neither"):
        load_seq2seq(str(tmp_path / "m"), device="cpu")
    weights.write_bytes(whole)
    definition = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["the"], vocabulary["is"] = vocabulary["is"], vocabulary["the"]
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(TokenizerMismatchError, match="Restore the original file"):
        load_seq2seq(str(tmp_path / "m"), device="cpu")
