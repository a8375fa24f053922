"""From a model's name to its folder: local folders, installed packages, what is cached of the hub, nothing else."""

from pathlib import Path

import pytest

from gr_components.errors import ModelNotFoundError
from gr_components.models.resolve import MINILM, resolve_model


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A hub cache with two revisions of one model; returns their folders."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--acme--tiny"
    folders = {}
    (repository / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (repository / "refs" / revision).write_text(commit)
        folders[revision] = repository / "snapshots" / commit
        folders[revision].mkdir(parents=True)
        (folders[revision] / "config.json").write_text("{}")
    return folders


def test_a_hub_name_is_the_folder_of_its_revision(cached: dict[str, Path]) -> None:
    assert resolve_model("acme/tiny", local_files_only=True) == cached["main"]
    assert resolve_model("acme/tiny", revision="v2", local_files_only=True) == cached["v2"]
    assert resolve_model("acme/tiny", revision="b" * 40) == cached["v2"], "also where downloads are switched off"


@pytest.mark.parametrize(("name", "revision"), [("acme/other", None), ("acme/tiny", "v3")])
def test_what_is_not_cached_is_not_downloaded_when_that_is_switched_off(
    cached: dict[str, Path], name: str, revision: str | None
) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"'{name}' is no local folder.*downloads are switched off"):
        resolve_model(name, revision=revision, local_files_only=True)


def test_a_local_folder_comes_before_the_hub(
    cached: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    assert resolve_model("acme/tiny") == Path("acme/tiny")


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/no such model", "runs/a/model"])
def test_a_path_is_never_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no model folder"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package/model", r"not installed\. Run: pip install no-such-package"),
        ("package:os.path/model", "which is not installed"),
        ("package:gr_pipelines/none", "The package 'gr_pipelines' has no folder 'none'"),
        ("package:gr_pipelines/../gr_components", "has no folder"),
        ("package:gr_pipelines//etc", "has no folder"),
    ],
)
def test_folders_of_packages_are_found_and_not_left(name: str, message: str) -> None:
    assert (resolve_model(MINILM) / "config.json").is_file()
    with pytest.raises(ModelNotFoundError, match=message):
        resolve_model(name)
