"""Optional packages: imported by name from a fixed list only, and never at the request of a pipeline file."""

import tomllib
from pathlib import Path

import pytest
from haystack import Pipeline
from haystack.core.errors import DeserializationError

from gr_components.errors import ConfigError, MissingExtraError
from gr_components.extras import need

_YAML = """
components:
  llm:
    type: haystack.components.generators.chat.openai.OpenAIChatGenerator
    init_parameters:
      api_key: {type: env_var, env_vars: [NO_SUCH_KEY], strict: false}
      streaming_callback: gr_components.HANDLE
connections: []
"""


def test_only_optional_packages_are_imported():
    assert need("tantivy", "lexical").__name__ == "tantivy"
    for module in ("os", "subprocess", "gr_components.cli", "torchvision", "", "importlib"):
        with pytest.raises(ConfigError, match="is not among the optional packages"):
            need(module, "torch")


def test_every_package_of_an_extra_can_be_asked_for():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for module, distribution in (("faiss", "faiss-cpu"), ("tantivy", "tantivy"), ("numba", "numba"),
                                 ("ir_measures", "ir-measures"), ("accelerate", "accelerate")):  # fmt: skip
        assert any(distribution in line for lines in project["optional-dependencies"].values() for line in lines)
        try:
            assert need(module, "x").__name__ == module
        except MissingExtraError:
            continue


def test_a_pipeline_file_cannot_name_it():
    with pytest.raises(DeserializationError, match="importlib"):
        Pipeline.loads(_YAML.replace("HANDLE", "extras.need"), allowed_modules=["gr_components"])
    for module in ("models.onnx_session", "indexes.lexical", "retrievers.generative"):  # which import it
        with pytest.raises(DeserializationError, match="importlib"):
            Pipeline.loads(_YAML.replace("HANDLE", f"{module}.need"), allowed_modules=["gr_components"])
    Pipeline.loads(_YAML.replace("HANDLE", "extras.installed"), allowed_modules=["gr_components"])  # others load
