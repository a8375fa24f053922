"""
Run an exported model with onnxruntime, without torch.

An exported folder holds the ONNX file, `tokenizer.json`, and in `gr_model.json` under `onnx` what is needed to feed it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError, DeviceError, ModelError, ModelNotFoundError
from gr_components.extras import need
from gr_components.models.description import read_description

# Not those that write files or load libraries: settings may come from YAML files of others.
_OPTIONS = (
    "intra_op_num_threads",
    "inter_op_num_threads",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "enable_mem_reuse",
)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """
    One ONNX model in memory.

    :param path: The ONNX file.
    :param device: `cpu`, `cuda`, `cuda:1`, or None for a GPU if onnxruntime has one, else the CPU.
    :param options: Some of the attributes of onnxruntime's `SessionOptions`: `intra_op_num_threads`,
        `inter_op_num_threads`, `enable_cpu_mem_arena`, `enable_mem_pattern`, `enable_mem_reuse`.
    :raises ConfigError: If `options` has others.
    :raises DeviceError: If the device is absent.
    :raises ModelError: If the file cannot be loaded.
    """

    def __init__(self, path: Path, *, device: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        onnxruntime = need("onnxruntime", "onnx")
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in (options or {}).items():
            if name not in _OPTIONS:
                msg = f"With backend='onnx', model_kwargs may hold {', '.join(_OPTIONS)}; got {name!r}."
                raise ConfigError(msg)
            setattr(settings, name, value)
        providers = _providers(device, onnxruntime.get_available_providers())
        try:
            # This fusion makes encoders slower on CPUs (measured: 0.91x).
            self._session = onnxruntime.InferenceSession(
                str(path), settings, providers=providers, disabled_optimizers=["SkipLayerNormFusion"]
            )
        except Exception as error:
            msg = f"'{path}' could not be loaded by onnxruntime: {error}"
            raise ModelError(msg) from error
        self._names = {node.name for node in self._session.get_inputs()}

    def __call__(self, arrays: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """
        Run the model.

        :param arrays: Inputs by name; those that the model does not take are ignored.
        :returns: Its first output.
        """
        feeds = {name: array for name, array in arrays.items() if name in self._names}
        return np.asarray(self._session.run(None, feeds)[0], dtype=np.float32)


def read_export(folder: Path, task: str) -> dict[str, Any]:
    """
    Return what `gr export` wrote about a model, checked against the task.

    :param folder: An exported folder.
    :param task: `dense` or `ranker`.
    :raises ModelNotFoundError: If the folder holds no exported model.
    :raises ModelError: If the model is for another task.
    """
    description = read_description(folder) or {}
    about = description.get("onnx")
    if about is None:
        msg = f"'{folder}' holds no exported model. Run: gr export {folder} OUT, and use OUT as the model."
        raise ModelNotFoundError(msg)
    if about["task"] != task:
        component = {"dense": "DenseRetriever", "ranker": "CrossEncoderRanker"}.get(about["task"], "another component")
        msg = f"'{folder}' was exported for the task {about['task']!r}, not {task!r}. Use it in {component}."
        raise ModelError(msg)
    path = folder / Path(about["file"]).name
    if not path.is_file():
        msg = f"'{folder}' lacks {path.name}, which its gr_model.json names. Run `gr export` again."
        raise ModelNotFoundError(msg)
    return {**about, "path": path}


def _providers(device: str | None, available: list[str]) -> list[Any]:
    if device is None:
        device = "cuda" if _PROVIDERS["cuda"] in available else "cpu"
    kind, _, index = device.partition(":")
    provider = _PROVIDERS.get(kind)
    if provider is None or provider not in available:
        msg = (
            f"Device '{device}' was asked for, but this onnxruntime offers {', '.join(available)}. "
            "Use device='cpu' or null, or install onnxruntime-gpu."
        )
        raise DeviceError(msg)
    if kind == "cpu":
        return [provider]
    return [(provider, {"device_id": int(index or 0)}), _PROVIDERS["cpu"]]
