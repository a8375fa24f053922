"""Which model made these vectors? Digests of model folders, computed from files, without loading the model."""

import hashlib
import json
import mmap
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from gr_components.errors import ModelError
from gr_components.models.encoder_layout import EncoderLayout
from gr_components.tokenization import TextTokenizer

_OTHER_TOKENIZERS = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_BUFFERS = ("position_ids",)  # stored by some versions of transformers and left out by others


def encoder_fingerprint(layout: EncoderLayout) -> str:
    """
    Return the SHA-256 of what decides about a text encoder's vectors: weights, tokenizer, pooling and later steps.

    Saving a model again does not change it. Lengths, prompts and number types are left out: they may differ between
    queries and documents of one model.

    :param layout: The model's description.
    """
    parts: list[object] = [layout.pooling, layout.include_prompt, layout.lower_case, _tokenizer(layout.folder)]
    parts.append(_weights(layout.folder))
    parts += [[step.kind, step.config, step.folder and _weights(step.folder)] for step in layout.steps]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tokenizer(folder: Path) -> str | None:
    if (folder / "tokenizer.json").is_file():
        return _cached(_tokenizer_digest, folder / "tokenizer.json")
    path = next((folder / name for name in _OTHER_TOKENIZERS if (folder / name).is_file()), None)
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _weights(folder: Path) -> list[list[str]]:
    tensors = [pair for path in folder.glob("*.safetensors") for pair in json.loads(_cached(_tensor_digests, path))]
    return sorted(tensors)


def _cached(digest: Callable[[str], str], path: Path) -> str:
    status = path.stat()
    return _remembered(digest, str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _remembered(digest: Callable[[str], str], path: str, size: int, modified_ns: int) -> str:
    """Read a file once per process and version: retriever, embedder and index writer often share a model."""
    return digest(path)


def _tokenizer_digest(path: str) -> str:
    return TextTokenizer.from_folder(Path(path).parent).fingerprint


def _tensor_digests(path: str) -> str:
    """Return name and digest of each tensor of a safetensors file, as JSON; the file's own metadata do not count."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            start = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:start])
        except ValueError as error:
            msg = f"'{path}' is damaged or no safetensors file: {error}"
            raise ModelError(msg) from error
        pairs = []
        for name, entry in header.items():
            if name != "__metadata__" and not name.endswith(_BUFFERS):
                digest = hashlib.sha256(f"{entry['dtype']} {entry['shape']}".encode())
                first, last = entry["data_offsets"]
                digest.update(memoryview(data)[start + first : start + last])
                pairs.append([name, digest.hexdigest()])
    return json.dumps(pairs)
