"""Two processes pay what one pays."""

from pathlib import Path

import pytest
import torch
from helpers import same
from penalized_ddp import PENALTIES, run

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def ranks(pair) -> list[dict]:
    """The results of both ranks."""
    return pair.results(Path(__file__).parents[1] / "penalized_ddp.py")


@pytest.mark.parametrize("name", PENALTIES)
def test_the_penalty_does_not_depend_on_how_a_batch_is_split(ranks, name):
    alone = run(name, 16)
    for first, second in zip(ranks[0][name], ranks[1][name], strict=True):
        assert same(first, second)
        for key, value in alone.items():
            torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-9)
