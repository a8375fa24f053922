"""
Weights, optimiser state and checkpoints as safetensors, never pickle.

A checkpoint is a folder `step-00001200` with `model.safetensors`, `optimiser.safetensors`, `average.safetensors` (if a
moving average is kept) and `state.json`. It is written under another name, synced and renamed, so that it is complete
or absent. Random states are not saved: order, sampling and dropout are functions of (seed, step).
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gr_components.errors import ProvenanceError, full_disk

_FORMAT = "gr.checkpoint/1"


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """
    Return the model's own tensors by name, each shared one once: parameters and persistent buffers.

    :param model: Any module.
    """
    saved = set(model.state_dict())
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name in saved}


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """
    Copy tensors into the model in place.

    :param model: The module.
    :param weights: As `weights_of` returns them.
    :raises ProvenanceError: If names or shapes differ.
    """
    own = weights_of(model)
    if set(own) != set(weights) or any(own[name].shape != weights[name].shape for name in own):
        differing = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
        msg = f"The saved weights are of another model: {len(differing)} tensors differ, such as {differing[:3]}."
        raise ProvenanceError(msg)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """
    Write tensors to one file, which gets its name when it is complete.

    :param weights: Tensors by name.
    :param path: A `.safetensors` file.
    :raises OSError: If the disk is full; a file of that name stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, str(partial))
        _sync(partial)
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if number := full_disk(error):
            raise OSError(number, f"no room for '{path}'; go on with --resume") from error
        raise


def load_weights(path: Path) -> dict[str, Tensor]:
    """
    Read what `save_weights` wrote.

    :param path: The file.
    """
    return dict(load_file(str(path)))


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """
    Write a checkpoint and remove older ones.

    :param folder: Where checkpoints live.
    :param step: Steps done.
    :param tensors: One file for each entry.
    :param state: Plain values.
    :param keep: How many checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}"
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=folder))
    try:
        for name, weights in tensors.items():
            save_weights(weights, partial / f"{name}.safetensors")
        text = json.dumps({"format": _FORMAT, "step": step, **state}, indent=1)
        (partial / "state.json").write_text(text, encoding="utf-8")
        _sync(partial / "state.json")
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """
    Return the newest complete checkpoint; what a killed process left half-written is removed.

    :param folder: Where checkpoints live; may be absent.
    """
    if not folder.is_dir():
        return None
    for partial in folder.glob(".step-*"):
        shutil.rmtree(partial, ignore_errors=True)
    found = _checkpoints(folder)
    return found[-1] if found else None


def clear(folder: Path) -> None:
    """
    Remove the checkpoints and best weights of a run that is begun anew: a later resume must not find them.

    :param folder: Of the run.
    """
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for path in folder.glob("best-*.safetensors"):
        path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """
    Read a checkpoint.

    :param path: Its folder.
    :returns: Tensors by file, and the plain values.
    :raises ProvenanceError: If it was written by another version.
    """
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("format") != _FORMAT:
        msg = f"'{path}' holds {state.get('format')!r}, this version reads {_FORMAT!r}. Start again with --restart."
        raise ProvenanceError(msg)
    return {file.stem: load_weights(file) for file in sorted(path.glob("*.safetensors"))}, state


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """
    Return the optimiser's state as tensors named `<what>/<parameter>`.

    :param model: Names the parameters.
    :param optimiser: Its state.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[parameter]}": torch.as_tensor(value)
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    }


def put_optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """
    Restore what `optimiser_tensors` returned.

    :param model: Names the parameters.
    :param optimiser: Gets the state.
    :param tensors: Tensors by name.
    """
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        what, _, name = key.partition("/")
        parameter = parameters[name]
        device = torch.device("cpu") if what == "step" and parameter.device.type == "cpu" else parameter.device
        optimiser.state[parameter][what] = value.to(device).clone()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _is_complete(path))


def _is_complete(path: Path) -> bool:
    return (path / "state.json").is_file()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
