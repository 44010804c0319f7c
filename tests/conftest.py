"""One thread, one seed, before every test."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # `from helpers import ...`

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        yield


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    """Whatever a Trainer writes by default lands in the test's own folder."""
    monkeypatch.chdir(tmp_path)
