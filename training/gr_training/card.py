"""What is written beside trained weights: `gr_model.json` and a model card whose licence follows from the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr_components import __version__
from gr_components.models.description import read_description, write_description
from gr_training.sources import QuestionSet

# From the freest to the strictest; a model takes the strictest licence of its data.
_FREE = ("CC0-1.0", "MIT", "Apache-2.0", "BSD-3-Clause", "ODC-By-1.0", "CC-BY-3.0", "CC-BY-4.0")
_SHARE_ALIKE = ("CC-BY-SA-3.0", "CC-BY-SA-4.0")
RESTRICTED = "other (non-commercial or unstated data)"


@dataclass(frozen=True)
class DataUse:
    """
    One set that a model was trained on.

    :param name: Its name.
    :param licence: As stated by its source.
    :param examples: Questions or passages used.
    :param files: SHA-256 by path.
    """

    name: str
    licence: str
    examples: int
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """
    How a model came about.

    :param task: What it does: `ranker`, `retriever`, `encoder`, `reader`.
    :param recipe: The resolved recipe as plain values.
    :param base_model: What it started from.
    :param data: What it was trained on.
    :param metrics: On validation questions.
    :param steps: Steps trained, and the step whose weights were kept.
    :param minutes: Time taken.
    """

    task: str
    recipe: Mapping[str, Any]
    base_model: str
    data: Sequence[DataUse]
    metrics: Mapping[str, float]
    steps: tuple[int, int]
    minutes: float


def used(sets: Sequence[QuestionSet]) -> list[DataUse]:
    """
    Describe training sets.

    :param sets: From `load_sources`.
    """
    return [DataUse(each.name, each.licence, len(each.questions), each.files or {}) for each in sets]


def licence_of(data: Sequence[DataUse]) -> str:
    """
    Return the licence that follows from the data: the strictest one, and `RESTRICTED` if any is not an open licence.

    :param data: What was trained on.
    """
    licences = [each.licence for each in data]
    if any(licence not in _FREE + _SHARE_ALIKE for licence in licences):
        return RESTRICTED
    shared = [licence for licence in _SHARE_ALIKE if licence in licences]
    if shared:
        return shared[-1]
    return "CC-BY-4.0" if any(licence.startswith("CC-BY") for licence in licences) else "Apache-2.0"


def describe(folder: Path, provenance: Provenance, **more: Any) -> None:
    """
    Write `README.md` and add to `gr_model.json`, keeping what it holds already.

    :param folder: The model's folder.
    :param provenance: How it came about.
    :param more: Further keys of `gr_model.json`: tokenizer fingerprint, grammar, lengths.
    """
    licence = licence_of(provenance.data)
    data = [
        {"name": d.name, "licence": d.licence, "examples": d.examples, "sha256": dict(d.files)} for d in provenance.data
    ]
    description = {
        **(read_description(folder) or {}),
        "task": provenance.task, "base_model": provenance.base_model, "licence": licence, "data": data,
        "recipe": dict(provenance.recipe), "metrics": dict(provenance.metrics),
        "training": {"steps": provenance.steps[0], "kept_step": provenance.steps[1],
                     "minutes": round(provenance.minutes, 1), "made_with": f"gr-components {__version__}"},
        **more,
    }  # fmt: skip
    write_description(folder, description)
    (folder / "README.md").write_text(_card(provenance, licence), encoding="utf-8")


def _card(provenance: Provenance, licence: str) -> str:
    kind = provenance.recipe.get("recipe", provenance.task)
    rows = [f"| {d.name} | {d.licence} | {d.examples:,} |" for d in provenance.data]
    metrics = [f"| {name} | {value:.4f} |" for name, value in provenance.metrics.items()]
    tag = licence.lower() if licence != RESTRICTED else "other"
    lines = [
        "---", f"license: {tag}", f"tags: [{provenance.task}, gr-components]", "---", "",
        f"# {provenance.task.capitalize()} trained with the recipe `{kind}`", "",
        f"Started from `{provenance.base_model}`; {provenance.steps[0]:,} steps, the weights of step "
        f"{provenance.steps[1]:,} were kept; {provenance.minutes:.0f} minutes.", "",
        f"**Licence: {licence}**, which follows from the data:", "",
        "| data | licence | examples |", "|---|---|---|", *rows, "",
    ]  # fmt: skip
    if metrics:
        lines += [
            "On the validation questions that selected the weights:",
            "",
            "| metric | value |",
            "|---|---|",
            *metrics,
            "",
        ]
    lines += ["The whole recipe, hashes of the data and the tokenizer's fingerprint are in `gr_model.json`.", ""]
    return "\n".join(lines)
