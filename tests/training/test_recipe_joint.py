"""`joint_generative`: gradients as the flags say, losses by hand, and the recipe on a tiny collection."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from haystack import Document
from haystack.utils import ComponentDevice
from sentence_transformers import CrossEncoder

from gr_components.errors import ConfigError, ModelError
from gr_components.models.description import read_description
from gr_components.models.seq2seq.folder import load_seq2seq
from gr_components.rankers.cross_encoder import CrossEncoderRanker
from gr_training.checkpoint import load_weights
from gr_training.config import parse
from gr_training.generative.joint_stage import JointConfig, shared_loss, supervised_loss
from gr_training.generative.rank_stage import RankBatches
from gr_training.losses.listwise import listwise_kl
from gr_training.losses.ranknet import distilled_ranknet

FIT = {"steps": 4, "learning_rate": 1e-3, "precision": "float32", "validate_every": 2, "checkpoint_every": 1,
       "log_every": 1}  # fmt: skip
LOSS = {"kind": "kl", "teachers": ["ranker"], "scale": "reference", "temperature": 0.5, "teacher_temperature": 2.0}


def config(**changes: Any) -> JointConfig:
    return parse(JointConfig, {"loss": LOSS, "likelihood_weight": 0, "ranker": {"model": "x"}, "fit": {"steps": 1},
                               **changes}, "x")  # fmt: skip


def lists(labels: list[list[int]]) -> dict[str, torch.Tensor]:
    labels_BD = torch.tensor(labels, dtype=torch.float64)
    return {"labels_BD": labels_BD.clamp(min=0), "real_BD": labels_BD >= 0, "mined_BD": torch.zeros_like(labels_BD),
            "draws_B2": torch.zeros(len(labels), 2)}  # fmt: skip


# Two lists of four, the second one of three; -1 is padding. The relevant passages lead already.
SCORES = [[0.9, 0.4, 0.7, 0.1], [0.2, 0.6, 0.3, 0.0]]
RANKER = [[3.0, -1.0, 0.5, 1.0], [2.0, 1.0, -2.0, 0.0]]
LISTS = lists([[1, 0, 0, 0], [1, 0, 0, -1]])


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.tensor(SCORES, dtype=torch.float64, requires_grad=True),
            torch.tensor(RANKER, dtype=torch.float64, requires_grad=True))  # fmt: skip


def gradients(loss_B: torch.Tensor, of: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss_B.sum(), of, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(of, found, strict=True)]


def divergence(scores: torch.Tensor, ranker: torch.Tensor) -> torch.Tensor:
    """KL(ranker || retriever) with a gradient for both."""
    real_BD = LISTS["real_BD"]
    return listwise_kl(scores, ranker, real_BD, temperature=0.5, teacher_temperature=2.0, detach_teacher=False)


@pytest.mark.parametrize("detach_teacher", [True, False])
@pytest.mark.parametrize("detach_student", [True, False])
def test_gradients_go_where_the_flags_let_them(detach_teacher: bool, detach_student: bool) -> None:
    settings = config(mutual_weight=0.3, detach_teacher=detach_teacher, detach_student=detach_student)
    scores, ranker = tensors()
    found = gradients(shared_loss(settings, scores, ranker, LISTS), (scores, ranker))
    # The two terms written once more, each with the gradient of both sides.
    real = LISTS["real_BD"]
    to_retriever = gradients(divergence(scores, ranker), (scores, ranker))
    back = listwise_kl(ranker, scores, real, temperature=2.0, teacher_temperature=0.5, detach_teacher=False)
    to_ranker = gradients(back, (scores, ranker))
    assert all(part[real].abs().min() > 1e-4 for part in (*to_retriever, *to_ranker)), "nothing to tell apart"
    wanted_scores = to_retriever[0] + 0.3 * (0 if detach_student else 1) * to_ranker[0]
    wanted_ranker = (0 if detach_teacher else 1) * to_retriever[1] + 0.3 * to_ranker[1]
    assert torch.allclose(found[0], wanted_scores, atol=1e-12)
    assert torch.allclose(found[1], wanted_ranker, atol=1e-12)


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_one_way_alone(kind: str) -> None:
    loss = {**LOSS, "kind": kind}
    scores, ranker = tensors()
    detached = gradients(shared_loss(config(loss=loss), scores, ranker, LISTS), (scores, ranker))
    assert detached[0].any()
    assert not detached[1].any()
    both = gradients(shared_loss(config(loss=loss, detach_teacher=False), scores, ranker, LISTS), (scores, ranker))
    assert torch.equal(both[0], detached[0])
    assert both[1].any()
    back = config(loss=loss, distil_weight=0.0, mutual_weight=1.0, detach_student=False)
    assert all(part.any() for part in gradients(shared_loss(back, scores, ranker, LISTS), (scores, ranker)))
    own = gradients(supervised_loss(config(loss=loss), ranker, LISTS), (scores, ranker))
    assert not own[0].any()
    assert own[1].any()


def test_a_ranker_in_the_wrong_gets_the_gradient_of_its_own_scores() -> None:
    """Labels lead: the target of the relevant passage is raised by a constant."""
    scores, _ = tensors()
    wrong = torch.tensor([[-1.0, 3.0, 0.5, 1.0], [1.0, 2.0, -2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = shared_loss(config(detach_teacher=False), scores, wrong, LISTS)
    raised = (wrong.detach() + torch.tensor([[4.0, 0, 0, 0], [1.0, 0, 0, 0]])).requires_grad_()
    wanted = listwise_kl(
        scores, raised, LISTS["real_BD"], temperature=0.5, teacher_temperature=2.0, detach_teacher=False
    )
    assert torch.allclose(found, wanted)
    assert torch.allclose(gradients(found, (wrong,))[0], gradients(wanted, (raised,))[0])


def test_losses_by_hand() -> None:
    # Two passages. Retriever: .6 and .1 at temperature .5, ranker: 3 and 1 at temperature 2: differences of 1 nat each.
    one = lists([[1, 0]])
    scores, ranker = torch.tensor([[0.6, 0.1]]).double(), torch.tensor([[3.0, 1.0]]).double()
    equal = config(mutual_weight=1.0)
    assert shared_loss(equal, scores, ranker, one).item() == pytest.approx(0.0, abs=1e-9)
    assert supervised_loss(equal, ranker, one).item() == pytest.approx(math.log(1 + math.exp(-2)))
    # The retriever sees no difference: it says 1/2, the ranker p = e / (1 + e).
    p = math.e / (1 + math.e)
    flat = torch.zeros(1, 2).double()
    forward = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    backward = -0.5 * math.log(4 * p * (1 - p))
    both = config(distil_weight=3.0, mutual_weight=0.5)
    assert shared_loss(both, flat, ranker, one).item() == pytest.approx(3 * forward + 0.5 * backward)
    squared = config(loss={**LOSS, "kind": "margin_mse"})
    assert shared_loss(squared, flat, ranker, one).item() == pytest.approx(1.0)
    ordered = config(loss={**LOSS, "kind": "dgr", "margin": 0.2, "increment": 0.1})
    wanted = distilled_ranknet(*tensors(), LISTS["labels_BD"], LISTS["real_BD"], margin=0.2, increment=0.1)
    assert torch.equal(shared_loss(ordered, *tensors(), LISTS), wanted)
    assert wanted.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"kind": "ltrgr"}}, "loss.kind ltrgr reads labels alone; choose one of dgr"),
        ({"loss": {**LOSS, "teachers": ["words"]}}, r"loss.teachers must be \[ranker\], .* got \['words'\]"),
        ({"loss": {**LOSS, "kind": "dgr"}, "detach_teacher": False}, "needs a loss with a gradient"),
        ({"distil_weight": 0, "mutual_weight": 1}, "the retriever learns nothing from the ranker"),
        ({"supervised_weight": 0}, "the ranker learns nothing: .* use the recipe dgr"),
        ({"supervised_weight": 0, "mutual_weight": 1, "head_start": 5}, "head_start needs supervised_weight"),
        ({"loss": {**LOSS, "margin": 3}}, "kl does not read loss.margin"),
        ({"loss": {**LOSS, "kind": "dgr", "pair_weights": [1, 0]}}, "dgr does not read loss.pair_weights"),
        ({"ranker": {}}, "ranker.model: this setting is required"),
        ({"mutual_weight": -1}, "mutual_weight"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


# The recipe


@pytest.fixture(autouse=True)
def _same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR_TRAIN_MALLOC", "0")


@pytest.fixture
def recipe(tiny_encoder: Path, sources: dict[str, Any]) -> dict[str, Any]:
    start = {"model": str(tiny_encoder), "build": {"decoder_layers": 1, "copy": {}}}
    ranker = {"model": str(tiny_encoder), "build": {"layers": 1}, "max_tokens": 48, "serving_tokens": 64}
    return {
        "recipe": "joint_generative",
        "likelihood": {"start": start, "sources_per_step": 6, "fit": FIT},
        **sources,
        "search": {"beams": 3},
        "mine": {"questions": 24, "top_k": 12, "keys": 6, "folds": 2},
        "joint": {"lists": {"length": 4, "keys": 6}, "loss": LOSS, "ranker": ranker, "mutual_weight": 0.5,
                  "detach_student": False, "questions_per_step": 3, "likelihood_weight": 0.5, "fit": FIT},
    }  # fmt: skip


def best(stage: Path) -> dict[str, torch.Tensor]:
    (path,) = stage.glob("best-*.safetensors")
    return load_weights(path)


def test_two_rounds_killed_and_resumed(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gr_train: Any, done: Any
) -> None:
    recipe = {**recipe, "rounds": 2}
    done(gr_train(tmp_path / "whole", recipe))
    make, seen = RankBatches.make, []

    def killed(self: RankBatches, turn: Any) -> dict[str, Any]:
        seen.append(turn.step)
        if seen == [0, 1, 2, 3, 0, 1, 2]:  # in the third step of the second round
            raise KeyboardInterrupt
        return make(self, turn)

    monkeypatch.setattr(RankBatches, "make", killed)
    assert isinstance(gr_train(tmp_path / "killed", recipe).exception, SystemExit)  # what click makes of it
    assert (tmp_path / "killed" / "run" / "joint-1" / "stage.json").is_file()
    assert not (tmp_path / "killed" / "run" / "joint-2" / "model").exists()
    done(gr_train(tmp_path / "killed", recipe, "--resume"))
    assert seen[7:] == [2, 3]
    runs = [tmp_path / name / "run" for name in ("whole", "killed")]
    first, second = (best(run / "joint-2") for run in runs)
    assert first.keys() == second.keys()
    assert {name.split(".")[0] for name in first} == {"retriever", "ranker"}
    assert all(np.array_equal(first[name], second[name]) for name in first)
    for folder, file in (("model", "model.safetensors"), ("ranker", "model.safetensors")):
        saved = [load_weights(run / folder / file) for run in runs]
        assert all(np.array_equal(saved[0][name], saved[1][name]) for name in saved[0])
    run = runs[0]
    marks = sorted(path.parent.name for path in run.glob("*/stage.json"))
    assert marks == ["calibrate", "joint-1", "joint-2", "mine-1", "mine-2", "train"]
    before = load_weights(run / "joint-1" / "ranker" / "model.safetensors")
    after = load_weights(run / "ranker" / "model.safetensors")
    assert after.keys() == before.keys(), "the second round goes on with the ranker of the first"
    moved = max(float((after[name] - before[name]).abs().max()) for name in after if "layer.0" in name)
    assert 1e-4 < moved < 0.01
    for folder, task in (("model", "generative_retriever"), ("ranker", "ranker")):
        info = read_description(run / folder)
        assert info is not None
        assert (info["task"], info["recipe"]["recipe"], info["licence"]) == (task, "joint_generative", "CC-BY-SA-4.0")
        assert set(info["metrics"]) == {"nDCG@10", "Success@1", "R@10", "ranker nDCG@10"}
    # The ranker serves.
    component = CrossEncoderRanker(model=str(run / "ranker"), device=ComponentDevice.from_str("cpu"))
    texts = ["The old river of Rome was opened in 1804.", "Many people visit this market every single summer."]
    found = component.run(query="Who opened the Rome river?", documents=[Document(content=text) for text in texts])
    scores = {document.content: document.score for document in found["documents"]}
    theirs = CrossEncoder(str(run / "ranker"), device="cpu")
    assert theirs.max_seq_length == 64
    predicted = theirs.predict([("Who opened the Rome river?", text) for text in texts])
    assert [scores[text] for text in texts] == pytest.approx(predicted.tolist(), abs=1e-5)


def test_a_head_start_trains_the_ranker_alone(tmp_path: Path, recipe: dict[str, Any], gr_train: Any, done: Any) -> None:
    recipe["joint"] = {**recipe["joint"], "head_start": 4, "likelihood_weight": 0.0}
    done(gr_train(tmp_path, recipe))
    states = [load_seq2seq(str(tmp_path / "run" / name / "model"), device="cpu").model.state_dict()
              for name in ("train", "joint-1")]  # fmt: skip
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # Then both are trained.
    done(gr_train(tmp_path, recipe, "--restart", "--set", "joint.head_start=2"))
    last = load_weights(tmp_path / "run" / "joint-1" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert any(not torch.equal(last[f"retriever.{name}"], states[0][name]) for name in states[0])


def test_lora_is_of_the_retriever(tmp_path: Path, recipe: dict[str, Any], gr_train: Any, done: Any) -> None:
    lora, fit = {"rank": 2, "pattern": "self[.]query$"}, {**FIT, "validate_every": 0}
    recipe["joint"] = {**recipe["joint"], "lora": lora, "fit": fit}
    done(gr_train(tmp_path, recipe))
    run = tmp_path / "run"
    first, last = (load_weights(run / name / "model" / "model.safetensors") for name in ("train", "joint-1"))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {name for name in first if name.endswith("self.query.weight")}
    assert len(changed) == 2 + 2
    kept = best(run / "joint-1")
    assert not any("lora" in name for name in kept if name.startswith("ranker."))
    assert any(name.endswith("lora_up") and tensor.any() for name, tensor in kept.items())


def test_a_plan_with_times(tmp_path: Path, recipe: dict[str, Any], gr_train: Any, done: Any) -> None:
    result = gr_train(tmp_path, recipe, "--dry-run")
    done(result)
    rows = [line.split() for line in result.stderr.splitlines() if line][-5:]
    assert [row[0] for row in rows] == ["train", "mine-1", "joint-1", "calibrate", "total"]
    assert rows[2][1] != "?"
    assert "4 steps of 3 lists" in " ".join(rows[2])
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_no_ranker(tmp_path: Path, recipe: dict[str, Any], tiny_encoder: Path, gr_train: Any) -> None:
    recipe["joint"]["ranker"] = {"model": str(tiny_encoder)}
    result = gr_train(tmp_path, recipe)
    assert isinstance(result.exception, ModelError)
    assert str(tiny_encoder) in str(result.exception)
    assert (tmp_path / "run" / "mine-1" / "stage.json").is_file(), "what was done before is kept"


@pytest.mark.slow
def test_two_processes_equal_one(
    tmp_path: Path, recipe: dict[str, Any], gr_train: Any, done: Any, together: Any
) -> None:
    """About a minute: one process, then the last stage again with two."""
    # Where a gradient is next to nothing Adam makes steps of its rounding, and these are as long as the learning rate.
    fit = {**FIT, "validate_every": 0, "learning_rate": 2e-4}
    recipe["joint"] = {**recipe["joint"], "dropout": 0.0, "questions_per_step": 4, "fit": fit}
    recipe["joint"]["ranker"] = {**recipe["joint"]["ranker"], "dropout": 0.0}
    done(gr_train(tmp_path, recipe))
    stage = tmp_path / "run" / "joint-1"
    one = best(stage)
    stage.rename(tmp_path / "one")
    out = ["--out", str(tmp_path / "run"), "--device", "cpu", "--stage", "joint-1"]
    together(["-m", "gr_training", str(tmp_path / "recipe.yaml"), *out], 2)
    two = best(stage)
    assert one.keys() == two.keys()
    # Biases that shift all scores of a row or a list alike have no gradient but rounding, which Adam makes large.
    shifts = ("key.bias", "previous.bias", "position.bias", "classifier.bias")
    checked = [name for name in one if not name.endswith(shifts)]
    assert len(checked) > 60
    for name in checked:
        assert torch.allclose(one[name], two[name], rtol=0, atol=1e-5), name
