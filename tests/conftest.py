"""One thread, one seed, before every test; two processes for those that need them."""

import os
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


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes that talk over gloo; what they answer is shared by the workers of pytest-xdist."""
    from pair import Pair

    own = tmp_path_factory.getbasetemp()
    both = Pair(own, own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)
    yield both
    both.close()
