"""The comparison page says what its result file says, and the probes behind it can fail."""

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # peers.py imports its neighbours

import peers  # noqa: E402
import probes  # noqa: E402

from lightning_sparse import MaskUpdater, RigL  # noqa: E402

KEPT = probes.PROBES["pruned weights are 0 in every forward pass: SGD"]
PAGE = (ROOT / "docs" / "comparison.md").read_text()


class LetsGo(MaskUpdater):
    """Makes masks, and then enforces nothing."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.sparsifier.detach()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pass  # else it would attach again


class Forgets(MaskUpdater):
    """Saves nothing."""

    def state_dict(self):
        return {}


def with_callback(kind, density=probes.DENSITY):
    return lambda model: ([kind(RigL(every=2), density=density)], probes.nothing)


def test_the_table_of_the_page_is_what_was_measured():
    assert peers.table(peers.read()) in PAGE


def test_every_probe_has_been_run_on_every_library():
    stored = peers.read()["probes"]
    assert list(stored) == list(probes.LIBRARIES)
    assert all(list(rows) == list(probes.PROBES) for rows in stored.values())


def test_every_quoted_figure_has_a_row_and_a_column():
    stored = peers.read()
    names = {*stored["reported"]["columns"], *stored["probes"]}
    lines = peers.table(stored).splitlines()
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines[2:]} >= set(stored["reported"]["cells"])
    assert all(set(cells) <= names for cells in stored["reported"]["cells"].values())


def test_the_page_is_short():
    assert len(PAGE.splitlines()) < 120


def test_it_keeps_weights_at_zero_and_a_callback_that_lets_go_does_not():
    assert KEPT(probes.mask_updater) == probes.Found(True)
    found = KEPT(with_callback(LetsGo))
    assert not found.ok
    assert re.fullmatch(r"[\d,]+ too many", found.words)


def test_a_callback_that_saves_nothing_is_found_by_the_probe_of_resuming():
    assert probes.resume(with_callback(MaskUpdater)).ok
    assert not probes.resume(with_callback(Forgets)).ok


def test_a_density_that_was_missed_by_one_weight_is_found():
    assert probes.exact(with_callback(MaskUpdater, 201 / 2000)) == probes.Found(False, "201 of 200")


def test_a_probe_that_raises_is_a_no_with_the_name_of_the_error():
    def broken(model):
        raise ArithmeticError("out of weights")

    assert peers.look(KEPT, broken) == {"ok": False, "words": "`ArithmeticError`", "error": "out of weights"}


def test_what_forward_passes_used_is_counted_by_hand():
    def prune(model):  # leaves 3 of 600 weights in the first layer, all in the two others: 1,200 and 200
        with torch.no_grad():
            model.net[0].weight.zero_().view(-1)[:3] = 1.0
            for layer in (model.net[2], model.net[4]):
                layer.weight.fill_(0.5)
        return [], probes.nothing

    assert probes.fit(prune).watch.seen[0] == (0, 1403)


def test_the_readme_needs_as_many_statements_as_the_table_says():
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S).group(1)
    ours = [line for line in block.splitlines() if "lightning_sparse" in line or "MaskUpdater(" in line]
    assert probes.statements(probes.mask_updater).words == str(len(ours)) == "2"


@pytest.mark.parametrize(("library", "count"), [("ModelPruning", "2"), ("torch.ao.pruning", "5")])
def test_statements_are_counted_as_by_hand(library, count):
    # an import and a callback; an import, the sparsifier, prepare, step, squash_mask
    assert probes.statements(probes.LIBRARIES[library]).words == count
