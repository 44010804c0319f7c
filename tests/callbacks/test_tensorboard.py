"""What TensorBoard is given to show."""

import pytest
from helpers import DENSITY, LIVE, loader, net, trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_sparse import DensityLogger, MaskUpdater, RigL

PICTURES = {*(f"masks/{name}" for name in LIVE), "masks/density over updates"}


@pytest.fixture
def tags(tmp_path):
    """A function: what the event file holds after an epoch, by kind."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def run(**settings):
        callbacks = [MaskUpdater(RigL(every=3, stop=1.0), DENSITY), DensityLogger(**settings)]
        logger = TensorBoardLogger(tmp_path, name=None, version="", default_hp_metric=False)
        trainer(callbacks, max_epochs=1, log_every_n_steps=1, logger=logger).fit(net(), loader())
        events = accumulator.EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0})
        return events.Reload()

    return run


def test_scalars_have_their_tags_and_an_entry_each_step(tags):
    events = tags()
    found = set(events.Tags()["scalars"])
    assert {"density", "nonzero_density", "flops_share", "masks/explored"} <= found
    assert {f"{kind}/{name}" for kind in ("density", "nonzero") for name in LIVE} <= found
    assert [event.step for event in events.Scalars("density/net.4.weight")][-1] == 11
    assert all(event.value == pytest.approx(0.86) for event in events.Scalars("density/net.6.weight"))
    assert not events.Tags()["images"]
    assert "custom_scalars__config__" not in events.Tags()["tensors"]


def test_pictures_come_at_the_start_and_whenever_masks_have_moved(tags):
    events = tags(images=True)
    assert set(events.Tags()["images"]) == PICTURES
    shown = events.Images("masks/net.4.weight")
    assert [event.step for event in shown] == [0, 2, 5, 8]
    assert {(event.height, event.width) for event in shown} == {(20, 96)}
    assert [event.width for event in events.Images("masks/density over updates")] == [4, 8, 12, 16]


def test_one_chart_shows_all_layers_where_it_is_asked_for(tags):
    events = tags(layout=True)
    content = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"density/.*" in content
    assert b"nonzero/.*" in content


def test_histograms_of_live_weights_come_at_the_end_of_an_epoch(tags):
    events = tags(histograms=True)
    assert {f"weights/{name}" for name in LIVE} <= set(events.Tags()["histograms"])
    assert {name: events.Histograms(f"weights/{name}")[0].histogram_value.num for name in LIVE} == LIVE
