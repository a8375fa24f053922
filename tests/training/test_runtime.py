"""The training process: allocation settings, and attention that trains fast on a CPU."""

import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gr_training.attention import plain_attention, register

SHOW = (
    "import os, sys; from gr_training.runtime import tune_malloc; tune_malloc(); "
    "print(os.environ.get('MALLOC_TOP_PAD_'), sys.argv[1:], 'torch' in sys.modules)"
)


def shown(**environment: str) -> str:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "GR_TRAIN"))
    }
    command = [sys.executable, "-c", SHOW, "an argument"]
    return subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_the_process_starts_again_once_with_its_arguments(monkeypatch):
    if any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")):
        pytest.skip("accelerated machines are left alone")
    assert shown() == "500000000 ['an argument'] False"
    assert shown(GR_TRAIN_MALLOC="0") == "None ['an argument'] False"
    assert shown(MALLOC_TOP_PAD_="7") == "7 ['an argument'] False"


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_equals_the_library(masked):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 4) for length in (5, 7, 7))
    mask = torch.zeros(2, 1, 5, 7)
    if masked:
        mask[1, :, :, 4:] = -1e9
    found, weights = plain_attention(nn.Module(), query, key, value, mask)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    assert weights is None
    assert torch.allclose(found, wanted, atol=1e-6)
    assert register() == register() == "gr_plain"
    dropped, _ = plain_attention(nn.Module().train(), query, key, value, mask, dropout=0.5)
    assert not torch.allclose(dropped, found)
    kept, _ = plain_attention(nn.Module().eval(), query, key, value, mask, dropout=0.5)
    assert torch.equal(kept, found)
