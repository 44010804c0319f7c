"""Processes that are killed at any moment, also while they write, go on from their newest checkpoint that loads.

``pytest -m long tests/reliability/test_kill.py`` kills a thousand times. ``KILLS=200 SEED=7`` before it kills two
hundred times, in other histories.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from stories import PHASES
from torch import Tensor

HERE = Path(__file__).parent


def histories(folder: Path, seed: int, kills: int, subject: str = "masks") -> list[dict[str, Any]]:
    """What :mod:`killed` tells of as many histories as it takes for so many kills."""
    places = [HERE, HERE.parent, HERE.parent.parent]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-W", "ignore", str(HERE / "killed.py"), str(folder), str(seed), str(kills), subject]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"after\n{done.stdout}\n{done.stderr[-6000:]}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def flat(value: object, at: str = "") -> dict[str, object]:
    """Every leaf of nested containers by its path."""
    if isinstance(value, dict | list | tuple):
        rows = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in rows for path, leaf in flat(part, f"{at}/{key}").items()}
    return {at: value}


def differences(folder: Path) -> list[str]:
    """What the killed run left that the other did not: at its end, or on its way."""
    whole, killed = (flat(torch.load(folder / name / "end.pt", weights_only=True)) for name in ("whole", "killed"))
    found = sorted(whole.keys() ^ killed.keys())
    for path in sorted(whole.keys() & killed.keys()):
        left, right = whole[path], killed[path]
        same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
        found += [] if same else [path]
    lines = set((folder / "whole" / "diary").read_text().splitlines())
    found += sorted(set((folder / "killed" / "diary").read_text().splitlines()) ^ lines)
    return found


def check(told: list[dict[str, Any]]) -> Counter[str]:
    """Every history ended as the one without a break; the deaths by kind."""
    for history in told:
        assert not (found := differences(Path(history["folder"]))), f"{history}\n" + "\n".join(found[:20])
    return Counter(kind for history in told for kind in history["deaths"])


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        (4, 3),
        pytest.param(20, 1000, marks=pytest.mark.slow),
        pytest.param(int(os.environ.get("KILLS", "1000")), int(os.environ.get("SEED", "5000")), marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_killed_goes_on_bit_for_bit(kills, seed, tmp_path):
    told = histories(tmp_path, seed, kills)
    deaths = check(told)
    print(f"{sum(deaths.values())} kills in {len(told)} histories: {dict(deaths)}")
    assert sum(deaths.values()) == kills
    assert min(deaths[kind] for kind in ("any moment", "in a write", "in a move")) >= kills // 4
    # A write leaves a torn temporary file, a move a torn checkpoint, which the next life refuses.
    assert sum(history["left"] for history in told) >= deaths["in a write"]
    assert sum(len(history["refused"]) for history in told) >= deaths["in a move"]


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "seed"), [(10, 2000)])
def test_a_run_whose_channels_leave_goes_on_bit_for_bit_after_a_kill(kills, seed, tmp_path):
    """Weights and shapes, masks, the optimizer's state and every decision: which channels, when, of what is left."""
    told = histories(tmp_path, seed, kills, "channels")
    deaths = check(told)
    print(f"{sum(deaths.values())} kills in {len(told)} histories: {dict(deaths)}")
    assert sum(deaths.values()) == kills
    assert deaths["in a write"] >= 1
    for history in told:
        end = torch.load(Path(history["folder"]) / "whole" / "end.pt", weights_only=True)
        assert len(end["cuts"][0]["history"]) == 2
        assert end["weights"]["stem.weight"].shape[0] < 16


@pytest.mark.parametrize(
    ("kills", "seed"), [pytest.param(16, 3000, marks=pytest.mark.slow), pytest.param(200, 9000, marks=pytest.mark.long)]
)
def test_a_run_that_is_quantized_goes_on_bit_for_bit_after_a_kill(kills, seed, tmp_path):
    """Float weights, masks, ranges, the optimizer's state after every step; integers, scales and ranges at the end."""
    told = histories(tmp_path, seed, kills, "quantized")
    deaths, began = check(told), Counter(phase for history in told for phase in history["phases"][1:])
    print(f"{sum(deaths.values())} kills in {len(told)} histories: {dict(deaths)}; lives went on {dict(began)}")
    assert sum(deaths.values()) == kills
    assert all(began[phase] for phase in PHASES)
    for history in told:
        (end,) = torch.load(Path(history["folder"]) / "whole" / "end.pt", weights_only=True)["quantized"]
        assert end["plan"]["ranges"]
        assert {row["bits"] for row in end["plan"]["layers"].values()} == {history["story"]["bits"]}
