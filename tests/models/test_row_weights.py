"""Int8 rows: exact to store, small, readable in both layouts, and damage is noticed."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gr_components.errors import ModelError
from gr_components.models.row_weights import DEFLATED, FILE_NAME, SCALE, dequantised, quantise, read_rows, save_rows


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 300), nn.LayerNorm(300), nn.Linear(300, 1))
    nn.init.normal_(module[0].weight)  # as trained weights are, more or less
    return module


def test_rows_come_back_as_they_were_rounded(module, tmp_path):
    save_rows(module, tmp_path)
    state, found = module.state_dict(), read_rows(tmp_path)
    assert set(found) == set(state)
    weight, rows = state["0.weight"], found["0.weight"]
    scale_N = weight.abs().amax(dim=1) / 127
    assert torch.equal(rows, (weight / scale_N[:, None]).round() * scale_N[:, None])
    assert torch.equal(found["1.weight"], state["1.weight"].half().float())
    assert (tmp_path / FILE_NAME).stat().st_size < 0.95 * 300 * 256 + 6000  # vectors, scales, header


def test_plain_int8_rows_are_read_too(module, tmp_path):
    """As versions before the first release stored them."""
    save_rows(module, tmp_path)
    expected = read_rows(tmp_path)
    tensors = load_file(tmp_path / FILE_NAME)
    for name in [name for name in tensors if name.endswith(DEFLATED)]:
        matrix, scale_N = name.removesuffix(DEFLATED), tensors[name.removesuffix(DEFLATED) + SCALE]
        tensors[matrix] = (expected[matrix] / scale_N[:, None]).round().to(torch.int8)
        del tensors[name]
    save_file(tensors, tmp_path / FILE_NAME)
    found = read_rows(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_damaged_rows_are_refused():
    tensors = quantise("w", torch.randn(40, 50))
    assert dequantised(tensors)["w"].shape == (40, 50)
    tensors["w" + DEFLATED][200] ^= 1
    with pytest.raises(ModelError, match="The weights 'w' are damaged"):
        dequantised(tensors)


def test_an_all_zero_row_stays_zero():
    weight = torch.randn(3, 4)
    weight[1] = 0
    assert torch.equal(dequantised(quantise("w", weight))["w"][1], torch.zeros(4))
