"""
Export a text encoder or a cross-encoder to ONNX and prove that the copy gives the same numbers.

The module that is exported is the one that serves. It gets its final name only after probes that vary batch size and
length gave the same output in torch and in onnxruntime.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError, ExportError, ParityError
from gr_components.extras import check_installed, need
from gr_components.models.description import read_description, write_description
from gr_components.models.encoder_layout import read_json
from gr_components.models.onnx_session import OnnxSession
from gr_components.models.resolve import resolve_model
from gr_components.progress import Reporter, Silent

Task = Literal["dense", "ranker"]
TASKS = ("dense", "ranker")
FILE_NAME = "model.onnx"
_SINGLE_FILE_BYTES = 1_900_000_000  # one ONNX file holds at most 2 GB; larger weights go into a file beside it
_PROBES = ((1, 3), (2, 7), (5, 33), (3, 64), (1, 128), (2, None))  # batch size and length; None is the longest


@dataclass(frozen=True)
class ExportReport:
    """
    What was exported.

    :param folder: The exported folder, to be used as `model` with `backend="onnx"`.
    :param task: `dense` or `ranker`.
    :param size_bytes: Size of the ONNX file and the weights beside it, if any.
    :param opset: Version of the ONNX operators.
    :param probes: Shapes (batch, length) that were compared.
    :param max_abs_diff: Largest difference between torch and onnxruntime over all probes.
    """

    folder: Path
    task: Task
    size_bytes: int
    opset: int
    probes: tuple[tuple[int, int], ...]
    max_abs_diff: float


def export_model(
    model: str,
    folder: str | Path,
    *,
    task: Task | None = None,
    opset: int | None = None,
    atol: float = 1e-4,
    pooling: str | None = None,
    label: int | str | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    report: Reporter | None = None,
) -> ExportReport:
    """
    Export a model so that `DenseRetriever` or `CrossEncoderRanker` runs it with `backend="onnx"`, without torch.

    :param model: Local folder, `package:NAME/FOLDER` or Hugging Face name.
    :param folder: Where to; must not exist yet.
    :param task: `dense` or `ranker`; None finds out from the model's files.
    :param opset: Version of the ONNX operators; None for the exporter's default.
    :param atol: Largest difference from torch that is accepted.
    :param pooling: Pooling mode of a plain text encoder.
    :param label: The class of a cross-encoder that means "relevant", if it has three classes or more.
    :param max_length: Largest number of tokens in place of the model's own.
    :param revision: Branch, tag or commit on the hub.
    :param token: Access token for the hub.
    :param local_files_only: Use only what is cached already.
    :param report: Where progress goes.
    :raises ConfigError: If an argument is out of range.
    :raises ModelError: If the model cannot be loaded.
    :raises ExportError: If the exporter fails or the folder exists.
    :raises ParityError: If the exported model gives other numbers.
    """
    folder, report = Path(folder), report or Silent()
    _check_arguments(folder, task, atol)
    check_installed(("torch", "transformers", "onnx", "onnxscript", "onnxruntime"), "export")
    source = resolve_model(model, revision=revision, token=token, local_files_only=local_files_only)
    task = detect_task(source) if task is None else task
    report.event("load", model=model, task=task)
    module = _load(source, task, pooling=pooling, label=label, max_length=max_length)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
    try:
        report.event("export", file=FILE_NAME)
        _write_onnx(module, temporary / FILE_NAME, opset)
        report.event("verify", probes=len(_PROBES))
        shapes, difference = verify(module, temporary / FILE_NAME, atol=atol)
        made = ExportReport(folder, task, _size(temporary), _opset(temporary / FILE_NAME), shapes, difference)
        _write_companions(module, source, temporary, made)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return made


def detect_task(folder: Path) -> Task:
    """
    Find out what a model is for.

    :param folder: A model folder.
    :raises ExportError: If it is for neither task.
    """
    named = (read_description(folder) or {}).get("task")
    if named is not None:
        if named not in TASKS:
            msg = f"'{folder}' is a model for the task {named!r}; only {' and '.join(TASKS)} can be exported."
            raise ExportError(msg)
        return "dense" if named == "dense" else "ranker"
    if (folder / "modules.json").is_file():
        kinds = [module["type"].rpartition(".")[2] for module in read_json(folder / "modules.json")]
        return "dense" if "Pooling" in kinds else "ranker"
    architectures = read_json(folder / "config.json").get("architectures") or []
    return "ranker" if any(name.endswith("ForSequenceClassification") for name in architectures) else "dense"


def verify(module: Any, path: Path, *, atol: float, seed: int = 0) -> tuple[tuple[tuple[int, int], ...], float]:
    """
    Compare a module with its ONNX file on probes that vary batch size, length and padding.

    :param module: A `TextEncoderModule` or `PairScorerModule`.
    :param path: The ONNX file.
    :param atol: Largest difference that is accepted.
    :param seed: Of the random token ids.
    :returns: Shapes of the probes and the largest difference.
    :raises ParityError: If a probe differs by more.
    """
    from gr_components.models.torch_runner import TorchRunner

    run_torch, run_onnx = TorchRunner(module, "cpu"), OnnxSession(path, device="cpu")
    generator = np.random.default_rng(seed)
    longest = module.info.max_length
    shapes, largest = [], 0.0
    for batch, length in _PROBES:
        shape = (batch, longest if length is None else min(length, longest))
        arrays = _probe(module, shape, generator)
        expected, found = run_torch(arrays), run_onnx(arrays)
        difference = float(np.abs(expected - found).max()) if expected.shape == found.shape else float("inf")
        if not difference <= atol:
            msg = (
                f"ONNX and torch differ by {difference:.1e} (allowed: {atol:.0e}) on inputs of shape {shape}. "
                "Nothing was written."
            )
            raise ParityError(msg)
        shapes.append(shape)
        largest = max(largest, difference)
    return tuple(shapes), largest


def _check_arguments(folder: Path, task: str | None, atol: float) -> None:
    if task is not None and task not in TASKS:
        msg = f"task must be one of {', '.join(TASKS)}, got {task!r}."
        raise ConfigError(msg)
    if not atol > 0:
        msg = f"atol must be greater than 0, got {atol}."
        raise ConfigError(msg)
    if folder.exists():
        msg = f"'{folder}' exists already. Remove it, or export to another folder."
        raise ExportError(msg)


def _load(source: Path, task: Task, *, pooling: str | None, label: int | str | None, max_length: int | None) -> Any:
    from gr_components.models.pair_scorer_torch import PairScorerModule
    from gr_components.models.text_encoder_torch import TextEncoderModule

    if task == "dense":
        return TextEncoderModule.from_folder(source, pooling=pooling, max_length=max_length)
    return PairScorerModule.from_folder(source, label=label, max_length=max_length)


def _probe(module: Any, shape: tuple[int, int], generator: np.random.Generator) -> dict[str, npt.NDArray[np.int64]]:
    """Random tokens in rows of different lengths, at least one of them without padding."""
    pad_id, vocabulary = module.tokenizer.pad_id, module.tokenizer.vocabulary_size
    lengths_B = generator.integers(1, shape[1] + 1, size=shape[0])
    lengths_B[0] = shape[1]
    mask_BL = (np.arange(shape[1]) < lengths_B[:, None]).astype(np.int64)
    # Any id but padding, by which RoBERTa counts positions.
    tokens_BL = (pad_id + 1 + generator.integers(0, vocabulary - 1, size=shape)) % vocabulary
    arrays = {"ids_BL": np.where(mask_BL == 1, tokens_BL, pad_id), "mask_BL": mask_BL}
    if module.info.type_ids:
        arrays["type_ids_BL"] = generator.integers(0, 2, size=shape) * mask_BL
    if not getattr(module.info, "include_prompt", True):
        arrays["pooled_BL"] = mask_BL * (np.arange(shape[1]) >= min(2, shape[1] - 1))
        arrays["pooled_BL"][:, 0] |= arrays["pooled_BL"].sum(axis=1) == 0
    return arrays


def _write_onnx(module: Any, path: Path, opset: int | None) -> None:
    import torch

    arrays = _probe(module, (2, 9), np.random.default_rng(1))
    example = {name: torch.from_numpy(array) for name, array in arrays.items()}
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    try:
        with torch.no_grad(), _quiet_exporter():
            torch.onnx.export(
                module,
                (),
                str(path),
                kwargs=example,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(example, axes),
                input_names=list(example),
                output_names=["output"],
                opset_version=opset,
                external_data=weights > _SINGLE_FILE_BYTES,
                verbose=False,
            )
    except Exception as error:
        kind = type(getattr(module, "encoder", None) or module.model).__name__
        msg = f"torch.onnx could not export a {kind}: {error}"
        raise ExportError(msg) from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter from warning about packages that are not needed."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _write_companions(module: Any, source: Path, folder: Path, made: ExportReport) -> None:
    module.tokenizer.save(folder)
    config_path = source / "config.json"
    if config_path.is_file():
        shutil.copyfile(config_path, folder / "config.json")
    about = {
        "task": made.task,
        "file": FILE_NAME,
        "opset": made.opset,
        "probes": [list(shape) for shape in made.probes],
        "max_abs_diff": made.max_abs_diff,
        "info": asdict(module.info),
    }
    described = read_description(source) or {}
    described.pop("format", None)
    write_description(folder, {**described, "task": made.task, "onnx": about})


def _opset(path: Path) -> int:
    model = need("onnx", "export").load(str(path), load_external_data=False)
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(FILE_NAME + "*"))
