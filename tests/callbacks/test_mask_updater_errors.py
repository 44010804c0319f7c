"""What cannot work says so: the value, the way out, and the user's weights as they were."""

from dataclasses import dataclass

import pytest
import torch
from helpers import DENSITY, Bare, Net, body, loader, net, same, saver, trainer, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import IterableDataset

from lightning_sparse import GMP, MaskUpdater, RigL, Sparsifier, Static, Unstructured


def refused(error, *words, callbacks, model=None, data=None, **settings):
    """The fit raises ``error`` with all of ``words`` in its message, and has not touched a weight."""
    model = model or net()
    lazy = any(isinstance(w, nn.parameter.UninitializedParameter) for w in model.parameters())
    before = {} if lazy else weights(model)
    with pytest.raises(error) as caught:
        trainer(callbacks, **{"max_epochs": 1, **settings}).fit(model, loader() if data is None else data)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert lazy or same(weights(model), before), "weights were touched"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "rigel"}, ["'rigel'", "rigl"]),
        ({"allocation": "erkk"}, ["'erkk'", "erk"]),
        ({"density": 0.0}, ["(0, 1]", "0.0"]),
        ({"density": 1.5}, ["(0, 1]", "1.5"]),
        ({"density": -1}, ["(0, 1]", "-1"]),
        ({"density": float("nan")}, ["(0, 1]", "nan"]),
        ({"density": True}, ["(0, 1]", "True"]),
        ({"density": "0.1"}, ["(0, 1]", "'0.1'"]),
        ({"density": {"net.0": 2.0}}, ["(0, 1]", "2.0"]),
        ({"density": {"*": 0.5}, "allocation": "erk"}, ["allocation", "globs"]),
        ({"include": "net.4"}, ["include", "['net.4']"]),
        ({"exclude": "net.4"}, ["exclude", "['net.4']"]),
        ({"init": "zeros"}, ["'zeros'", "magnitude"]),
        ({"compute": "sparce"}, ["'sparce'", "dense"]),
        ({"pattern": "2:4"}, ["'2:4'", "Pattern"]),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_when_the_callback_is_made(settings, words):
    with pytest.raises(ValueError) as caught:
        MaskUpdater(**settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_all_wrong_arguments_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        MaskUpdater("rigel", 3.0, allocation="erkk", init="zeros", include="net.4")
    assert "5 problems" in str(caught.value)
    assert all(word in str(caught.value) for word in ("'rigel'", "3.0", "'erkk'", "'zeros'", "'net.4'"))


def test_a_wrong_argument_of_an_algorithm_is_named():
    with pytest.raises(ValueError, match=r"every must be .* got 0") as caught:
        RigL(every=0, stop=2.5)
    assert "stop must be" in str(caught.value)
    assert "2 problems" in str(caught.value)


@pytest.mark.parametrize("kind", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_named_with_what_it_could_match(kind):
    updater = MaskUpdater("rigl", DENSITY, **{kind: ["net.4", "encoder.*"]})
    refused(ValueError, "encoder.*", "net.0.weight", "net.6.weight", callbacks=[updater])


def test_a_density_glob_that_matches_nothing_is_named():
    refused(ValueError, "encoder.*", callbacks=[MaskUpdater("rigl", {"encoder.*": 0.1, "*": 0.5})])


def test_a_layer_without_a_density_is_named():
    refused(ValueError, "net.4.weight", "'*'", callbacks=[MaskUpdater("rigl", {"net.0": 0.1, "net.6": 0.5})])


def test_a_density_too_low_for_one_weight_a_layer_names_the_least():
    refused(ValueError, "0.0005", f"{3 / 2128:.3g}", callbacks=[MaskUpdater("rigl", 0.0005)])


def test_a_model_with_nothing_to_make_sparse_is_refused():
    model = net()
    model.net.requires_grad_(False)
    model.extra = nn.Parameter(torch.ones(3))
    model.configure_optimizers = lambda: torch.optim.SGD([model.extra], lr=0.1)
    refused(ValueError, "frozen", "net.0.weight", callbacks=[MaskUpdater("rigl", DENSITY)], model=model)


def test_lazy_parameters_are_named():
    model = net()
    model.net[4] = nn.LazyLinear(20)
    refused(ValueError, "lazy", "net.4.weight", "one batch", callbacks=[MaskUpdater("rigl", DENSITY)], model=model)


def test_meta_parameters_are_named():
    with torch.device("meta"):
        model = body()
    with pytest.raises(ValueError, match=r"meta device .*0\.weight.*materialise"):
        Sparsifier(model, Static(), DENSITY)


@dataclass(frozen=True)
class Half(Unstructured):
    """A pattern that has one density only, as 2:4 has."""

    def fixed_density(self) -> float:
        return 0.5


def test_a_density_that_conflicts_with_its_pattern_is_refused():
    refused(ValueError, "Half()", "0.5", "0.3", callbacks=[MaskUpdater("rigl", 0.3, pattern=Half())])


def test_without_a_density_the_patterns_own_is_taken():
    updater = MaskUpdater(RigL(every=3, stop=9), pattern=Half(), allocation="uniform")
    trainer([updater], max_epochs=1).fit(net(), loader())
    assert updater.densities() == {"net.0.weight": 0.5, "net.4.weight": 0.5, "net.6.weight": 0.5}


def test_two_callbacks_of_one_name_are_refused():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `MaskUpdater`"):
        trainer([MaskUpdater("rigl", include=["net.0"]), MaskUpdater("set", include=["net.4"])])


def test_two_callbacks_that_want_the_same_weights_are_refused():
    both = [MaskUpdater("rigl", DENSITY, name="a"), MaskUpdater("set", DENSITY, include=["net.4"], name="b")]
    refused(MisconfigurationException, "a and b", "net.4.weight", "include", callbacks=both)


def test_two_callbacks_with_weights_of_their_own_work_together():
    both = [
        MaskUpdater(RigL(every=3, stop=12), 0.1, include=["net.4"], name="a"),
        MaskUpdater("static", 0.5, exclude=["net.4"], name="b"),
    ]
    trainer(both, max_epochs=1).fit(net(), loader())
    assert [updater.density() for updater in both] == [192 / 1920, 104 / 208]


def test_an_optimizer_without_step_hooks_is_refused():
    model = net()
    model.configure_optimizers = lambda: Bare(model.parameters())
    words = ["Bare", "register_step_post_hook", "torch.optim.Optimizer"]
    refused((TypeError, ValueError), *words, callbacks=[MaskUpdater("rigl", DENSITY)], model=model)


def test_replacing_steps_is_refused_with_lbfgs():
    updater = MaskUpdater(RigL(every=3, stop=9, replace_step=True), DENSITY)
    refused(ValueError, "replace_step", "LBFGS", callbacks=[updater], model=net("lbfgs"))


def test_two_optimizers_of_the_same_weights_are_refused():
    class Two(Net):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.net[4].parameters(), lr=0.1)]

    updater = MaskUpdater(RigL(every=3, stop=9), DENSITY)
    refused(ValueError, "two optimizers", "net.4.weight", callbacks=[updater], model=Two())


@pytest.mark.parametrize("kind", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_a_strategy_that_hides_the_weights_is_refused_before_training(kind):
    strategy = type(kind, (SingleDeviceStrategy,), {})(device="cpu")
    callbacks = [MaskUpdater("rigl", DENSITY)]
    words = (kind, "ddp", "ModelParallelStrategy")
    refused(MisconfigurationException, *words, callbacks=callbacks, strategy=strategy, devices="auto")


class Endless(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


def endless():
    return torch.utils.data.DataLoader(Endless(), batch_size=4)


@pytest.mark.parametrize("algorithm", [RigL(every=3), GMP(every=3)], ids=["rigl", "gmp"])
@pytest.mark.parametrize(
    ("data", "settings"),
    [(endless, {}), (loader, {"max_epochs": -1, "max_time": {"seconds": 5}})],
    ids=["iterable", "-1"],
)
def test_a_share_of_a_run_of_unknown_length_asks_for_steps(algorithm, data, settings):
    refused(ValueError, "stop=0.75", "unknown", "steps", callbacks=[MaskUpdater(algorithm)], data=data(), **settings)


@pytest.mark.parametrize("settings", [{"max_epochs": 1}, {"max_steps": 12, "max_epochs": -1}], ids=str)
def test_a_run_of_unknown_length_works_with_stop_in_steps_or_max_steps(settings):
    algorithm = RigL(every=3, stop=12) if "max_steps" not in settings else RigL(every=3, stop=1.0)
    updater = MaskUpdater(algorithm, DENSITY)
    trainer([updater], **settings).fit(net(), endless())
    assert updater.sparsifier.updates >= 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.5}, ["budget of 48", "net.0.weight", "density"]),
        ({"exclude": ["net.0"]}, ["net.0.weight is sparse in the checkpoint, but not here"]),
        ({"allocation": "uniform"}, ["budget of 398", "allocation"]),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_masks_is_refused(settings, words, tmp_path):
    keeping = {"max_epochs": 1, "enable_checkpointing": True}
    trainer([MaskUpdater("rigl", DENSITY), saver(tmp_path, 3)], **keeping).fit(net(), loader())
    checkpoint = torch.load(tmp_path / "step=6.ckpt", weights_only=True)["state_dict"]
    model, updater = net(seed=3), MaskUpdater("rigl", **{"density": DENSITY, **settings})
    fit = trainer([updater, saver(tmp_path, 3)], **keeping)
    with pytest.raises(ValueError) as caught:
        fit.fit(model, loader(), ckpt_path=tmp_path / "step=6.ckpt")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert same(weights(model), checkpoint)


def test_masks_that_would_never_move_are_said_so():
    with pytest.warns(UserWarning, match="masks will never move: every=100, stop=9, and the run has 12 "):
        trainer([MaskUpdater("rigl", DENSITY)], max_epochs=1).fit(net(), loader())


def test_a_ramp_that_cannot_end_is_said_so():
    with pytest.warns(UserWarning, match="before the final density at stop=1000"):
        trainer([MaskUpdater(GMP(every=3, stop=1000), DENSITY)], max_epochs=1).fit(net(), loader())


@pytest.mark.parametrize("wrong", [{"exclude": None}, {"include": 3}, {"include": [3]}, {"seed": "a"}, {"name": None}])
def test_arguments_of_the_wrong_kind_are_refused_at_once(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        MaskUpdater("rigl", **wrong)
