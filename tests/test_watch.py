"""SparsityWatch against counts made by hand."""

import pytest
import torch
from torch import nn

from lightning_sparse import Sparsifier, Static
from lightning_sparse.watch import SparsityWatch


def grid(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


@pytest.fixture
def engine() -> Sparsifier:
    """Two layers, 2x3 and 1x2, with half of the first and all of the second alive."""
    torch.manual_seed(0)
    made = Sparsifier(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), Static(), {"0": 0.5, "1": 1.0})
    mask(made, grid("xx.", "x.."))
    return made


def mask(engine: Sparsifier, first: torch.Tensor) -> None:
    engine.params["0.weight"].set_mask(first)
    engine.params["0.weight"].place.weight.data = first.float()


def test_totals_are_over_all_weights(engine):
    watch = SparsityWatch()
    watch.note(engine.params)
    assert watch.scalars(engine.params) == {"density": 0.625, "nonzero_density": 0.625}  # 5 of 8
    assert watch.per_layer(engine.params) == {
        "density/0.weight": 0.5,
        "density/1.weight": 1.0,
        "nonzero/0.weight": 0.5,
        "nonzero/1.weight": 1.0,
    }


def test_a_live_weight_of_zero_counts_as_dense_but_not_as_nonzero(engine):
    engine.params["0.weight"].place.weight.data[0, 0] = 0.0
    scalars = SparsityWatch().scalars(engine.params)
    assert (scalars["density"], scalars["nonzero_density"]) == (0.625, 0.5)


def test_the_flops_share_counts_layers_that_stay_dense_too(engine):
    watch = SparsityWatch()
    watch.flops = {"0.weight": 12.0, "1.weight": 4.0, "embedding": 4.0}
    assert watch.scalars(engine.params)["flops_share"] == (6 + 4 + 4) / 20


def test_health_follows_masks_from_update_to_update(engine):
    watch = SparsityWatch()
    watch.note(engine.params)  # xx. / x..
    first = watch.health()
    assert first["masks/changed"] == 0
    assert first["masks/explored"] == 5 / 8
    assert first["masks/overlap"] == 1
    assert first["masks/dead_inputs"] == pytest.approx(1 / 5)  # the third input of the first layer, of 3 + 2
    assert first["masks/dead_outputs"] == 0
    mask(engine, grid("x.x", "x.."))
    watch.note(engine.params)
    mask(engine, grid("xxx", "..."))
    watch.note(engine.params)
    last = watch.health()
    assert last["masks/changed"] == 1 / 5  # one weight of five is new
    assert last["masks/explored"] == 6 / 8
    assert last["masks/overlap"] == 4 / 5
    assert last["masks/dead_inputs"] == 0
    assert last["masks/dead_outputs"] == pytest.approx(1 / 3)
    assert watch.densities == [[0.5, 1.0]] * 3


def test_masks_that_have_not_moved_are_no_news(engine):
    watch = SparsityWatch()
    for _ in range(3):
        watch.note(engine.params)
    assert len(watch.densities) == 1


def test_another_model_starts_a_new_history(engine):
    watch = SparsityWatch()
    watch.note(engine.params)
    other = Sparsifier(nn.Linear(4, 4), Static(), 0.25)
    watch.note(other.params)
    assert watch.densities == [[0.25]]
    assert watch.health()["masks/explored"] == 0.25


def test_training_flops_add_up_step_by_step(engine):
    watch = SparsityWatch()
    watch.note(engine.params)
    assert "masks/training_flops_share" not in watch.health()  # nothing is known of FLOPs yet
    watch.flops = {"0.weight": 12.0, "1.weight": 4.0}  # 10 of 16 forward
    watch.count(engine.params, dense_gradient=False)
    watch.count(engine.params, dense_gradient=True)
    assert watch.health()["masks/training_flops_share"] == pytest.approx((3 * 10 + 2 * 10 + 16) / (2 * 3 * 16))


def test_its_state_goes_through_a_checkpoint(engine, tmp_path):
    watch, other = SparsityWatch(), SparsityWatch()
    watch.flops = {"0.weight": 12.0, "1.weight": 4.0}
    watch.note(engine.params)
    mask(engine, grid("x.x", "x.."))
    watch.note(engine.params)
    watch.count(engine.params, dense_gradient=True)
    torch.save(watch.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.health() == watch.health()
    assert other.densities == watch.densities
    other.note(engine.params)
    assert len(other.densities) == 2, "masks that have not moved since the checkpoint are no news"


def test_an_empty_watch_has_no_state():
    assert SparsityWatch().state_dict() == {}


def test_the_report_names_every_layer_and_the_total(engine):
    watch = SparsityWatch()
    watch.note(engine.params)
    engine.params["0.weight"].place.weight.data[0, 0] = 0.0
    lines = [line.split() for line in watch.report(engine.params).splitlines()]
    assert lines[0] == ["layer", "shape", "density", "live", "non-zero", "weights"]
    assert ["0.weight", "2x3", "0.5000", "3", "2", "6"] in lines
    assert ["1.weight", "1x2", "1.0000", "2", "2", "2"] in lines
    assert ["total", "0.6250", "5", "4", "8"] in lines
    assert "explored 62.5%" in watch.report(engine.params)


def test_inputs_of_a_transposed_convolution_are_its_first_dimension():
    conv = nn.ConvTranspose2d(4, 8, 1)
    engine = Sparsifier(conv, Static(), 0.5)
    mask = torch.ones(4, 8, 1, 1, dtype=torch.bool)
    mask[0] = False  # one of four inputs
    engine.params["weight"].set_mask(mask)
    watch = SparsityWatch()
    watch.note(engine.params)
    assert watch.health()["masks/dead_inputs"] == 0.25
    assert watch.health()["masks/dead_outputs"] == 0.0


def test_layers_that_join_go_on_with_the_history_of_the_others(engine):
    watch = SparsityWatch()
    both = engine.params
    first = {"0.weight": both["0.weight"]}
    watch.note(first)  # xx. / x..
    mask(engine, grid("x.x", "x.."))
    watch.note(first)
    mask(engine, grid(".xx", "x.."))
    watch.note({"1.weight": both["1.weight"], **first})
    assert watch.densities == [[1.0, 0.5], [1.0, 0.5], [1.0, 0.5]]  # in the new order; dense before it joined
    assert watch.health()["masks/changed"] == 1 / 5  # what joined is not new
    assert watch.health()["masks/explored"] == 6 / 8
    assert watch.health()["masks/overlap"] == 4 / 5
    watch.note(both)
    assert len(watch.densities) == 3, "another order is no news"
