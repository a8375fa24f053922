"""
`gr_model.json`: what a model folder says of itself besides the weights. Read and written without torch.

Keys: `format`, `task`, `grammar` or `reader`, `copy`, `weights`, `tokenizer_fingerprint`, `base_model`, `data` (names,
hashes, licences), `recipe`, `metrics`. Readers ignore keys that they do not know.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gr_components.errors import ModelError

FILE_NAME = "gr_model.json"
FORMAT = "gr.model/1"


def read_description(folder: str | Path) -> dict[str, Any] | None:
    """
    Read a model's description, or return None if the folder has none (a plain Hugging Face model).

    :param folder: A model folder.
    :raises ModelError: If the file is damaged or of another format version.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"'{path}' is not valid JSON: {error}"
        raise ModelError(msg) from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        msg = f"'{path}' holds format {found!r}; this version reads {FORMAT!r}. Train or save the model again."
        raise ModelError(msg)
    return dict(data)


def write_description(folder: str | Path, data: Mapping[str, Any]) -> None:
    """
    Write a model's description.

    :param folder: An existing folder.
    :param data: Plain values; `format` is added.
    """
    text = json.dumps({"format": FORMAT, **data}, indent=2, ensure_ascii=False, default=str)
    (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")
