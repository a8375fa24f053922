"""Definitions: parameters, trust, and errors that name the component."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from haystack.core.errors import DeserializationError

import gr_pipelines
from gr_components.errors import ConfigError
from gr_pipelines.definition import parse, read
from gr_pipelines.interface import Interface
from gr_pipelines.loading import build

JOINER = "haystack.components.joiners.document_joiner.DocumentJoiner"
JOIN = """
parameters:
  mode: concatenate
  top_k: 3
  store: <required>
components:
  first:
    type: haystack.components.joiners.document_joiner.DocumentJoiner
    init_parameters: {join_mode: concatenate, weights: null, top_k: null, sort_by_score: true}
  last:
    type: haystack.components.joiners.document_joiner.DocumentJoiner
    init_parameters:
      join_mode: ${mode}
      top_k: ${top_k}
connections:
  - {sender: first.documents, receiver: last.documents}
metadata:
  title: store ${store}, ${top_k} best
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_parameters_keep_their_type_and_fill_strings(tmp_path: Path) -> None:
    pipeline = gr_pipelines.load(write(tmp_path, JOIN), store="s", top_k=7)
    assert pipeline.get_component("last").top_k == 7
    assert pipeline.metadata == {"title": "store s, 7 best"}


def test_a_value_cannot_change_the_structure(tmp_path: Path) -> None:
    hostile = "x\ncomponents: {}\n${top_k}"
    assert gr_pipelines.load(write(tmp_path, JOIN), store=hostile).metadata["title"] == f"store {hostile}, 3 best"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"store": "s", "topk": 3},
            r"unknown parameter 'topk'\. Did you mean 'top_k'\? Parameters: mode, top_k, store",
        ),
        ({}, r"parameter 'store' must be given"),
        ({"store": "s", "top_k": "ten"}, r"parameter 'top_k' must be of type int, like its default 3, got 'ten'"),
        ({"store": "s", "top_k": True}, r"must be of type int"),
        ({"topk": 1}, r"has 2 problems"),
    ],
)
def test_wrong_parameters(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gr_pipelines.load(write(tmp_path, JOIN), **parameters)


def test_an_undeclared_reference_is_named() -> None:
    definition = parse(JOIN.replace("${mode}", "${mood}"), "mine")
    with pytest.raises(ConfigError, match=r"'\$\{mood\}' is used but not declared"):
        definition.fill({"store": "s"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("top_k: ${top_k}", "topp_k: 1", r"component 'last': unknown init parameter 'topp_k'\. Did you mean 'top_k'\?"),
        ("join_mode: ${mode}", "join_mode: fuse", r"component 'last': .*Unknown join mode 'fuse'"),
        ("first.documents,", "frist.documents,", r"no component 'frist'\. Did you mean 'first'\?"),
        ("last.documents}", "last.docs}", r"connection first\.documents -> last\.docs: .*last.docs does not exist"),
        (
            f"    type: {JOINER}\n    init_parameters:\n",
            "    init_parameters:\n",
            r"component 'last': it needs a 'type'",
        ),
        (
            f"{JOINER}\n    init_parameters: {{",
            "haystack.No\n    init_parameters: {",
            r"component 'first': haystack.No could",
        ),
    ],
)
def test_errors_name_the_component(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in JOIN
    with pytest.raises(ConfigError, match=message):
        gr_pipelines.validate(write(tmp_path, JOIN.replace(old, new)))


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = JOIN.replace("join_mode: concatenate,", "join_mode: fuse,").replace("top_k: ${top_k}", "topp_k: 1")
    with pytest.raises(ConfigError) as caught:
        gr_pipelines.validate(write(tmp_path, text))
    assert "2 problem(s)" in str(caught.value)
    assert "component 'first'" in str(caught.value)
    assert "component 'last'" in str(caught.value)


def test_a_correct_file_validates(tmp_path: Path) -> None:
    gr_pipelines.validate(write(tmp_path, JOIN))


def test_foreign_modules_stay_refused(tmp_path: Path) -> None:
    foreign = JOIN.replace("haystack.components.joiners.document_joiner.DocumentJoiner", "subprocess.Popen", 1)
    with pytest.raises(ConfigError, match=r"component 'first': .*allowlist"):
        gr_pipelines.validate(write(tmp_path, foreign))


def test_trust_is_for_the_call_only() -> None:
    from haystack import Pipeline

    data = read("bm25").fill({"store": "unused"})
    assert build(read("bm25"), store="unused").get_component("retriever")
    with pytest.raises(DeserializationError, match="allowlist"):
        Pipeline.loads(yaml.safe_dump(data))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("components: [", "not valid YAML"),
        ("- a", "no section 'components'"),
        ("components: {}", "no section 'components'"),
        ("parameters: [a]\ncomponents: {a: {type: b}}", "'parameters' must be a mapping"),
    ],
)
def test_files_that_are_no_definition(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gr_pipelines.load(write(tmp_path, text))


def test_an_unknown_name_suggests_a_shipped_one() -> None:
    with pytest.raises(ConfigError, match=r"no pipeline 'hybird'\. Did you mean 'hybrid'\?"):
        gr_pipelines.load("hybird")


def test_inputs_and_outputs_must_exist(tmp_path: Path) -> None:
    for section, message in [
        ("inputs: {query: frist.documents}", r"names no component\. Did you mean 'first'"),
        ("inputs: {query: first.querry}", r"component 'first' has no socket 'querry'"),
        ("outputs: {documents: last.docs}", r"component 'last' has no socket 'docs'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            gr_pipelines.validate(write(tmp_path, JOIN + section))


def test_open_sockets_are_found_without_sections() -> None:
    text = """
components:
  embedder: {type: haystack.components.embedders.MockTextEmbedder, init_parameters: {}}
  prompt: {type: haystack.components.joiners.document_joiner.DocumentJoiner, init_parameters: {}}
"""
    definition = parse(text.replace("MockTextEmbedder", "mock_text_embedder.MockTextEmbedder"), "mine")
    interface = Interface.of(build(definition), definition)
    assert interface.inputs["query"] == (("embedder", "text"),)
    assert interface.inputs["top_k"] == (("prompt", "top_k"),)
    assert interface.outputs == {"documents": ("prompt", "documents")}
