"""What Regularizer refuses, with the way out."""

import pytest
import torch
from helpers import Net, body, loader, net, same, trainer, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import SingleDeviceStrategy
from penalized import fitted
from torch.utils.data import DataLoader, IterableDataset

from lightning_sparse import LinearSchedule, Regularizer


def refused(error, *words, callbacks, model=None, data=None, **settings):
    """The fit raises ``error`` with all of ``words`` in its message, and has not touched a weight."""
    model = model or net()
    before = weights(model)
    with pytest.raises(error) as caught:
        trainer(callbacks, **{"max_epochs": 1, **settings}).fit(model, loader() if data is None else data)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert same(weights(model), before), "weights were touched"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"penalty": "l3"}, ["'l3'", "l1, l2, elastic, group_lasso, hoyer"]),
        ({"penalty": None}, ["None", "l1"]),
        ({"strength": -1.0}, ["-1.0"]),
        ({"strength": float("inf")}, ["inf"]),
        ({"strength": "1e-4"}, ["'1e-4'"]),
        ({"strength": {"*": -1.0}}, ["-1.0"]),
        ({"strength": LinearSchedule(1e-3, -1e-3)}, ["reaches"]),
        ({"on": "biases"}, ["'biases'", "gammas"]),
        ({"penalty": "hoyer", "proximal": True}, ["Hoyer()", "proximal=False"]),
        ({"penalty": "l2", "proximal": True}, ["L2()", "proximal=False"]),
        ({"on": "activations", "proximal": True}, ["activations", "proximal=False"]),
        ({"penalty": "group_lasso", "on": "gammas"}, ["on='gammas'", "'l1'"]),
        ({"include": "net.4"}, ["include", "'net.4'"]),
        ({"exclude": None}, ["exclude", "None"]),
        ({"name": 3}, ["name", "3"]),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_when_the_callback_is_made(settings, words):
    with pytest.raises(ValueError) as caught:
        Regularizer(**settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_all_wrong_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="5 problems"):
        Regularizer("l3", -1.0, on="biases", include="net.4", name=3)


def test_a_model_without_batch_norm_has_no_gammas():
    refused(ValueError, "BatchNorm", "affine=True", "on='weights'", callbacks=[Regularizer("l1", on="gammas")])


@pytest.mark.parametrize("on", ["weights", "activations"])
def test_a_glob_that_matches_nothing_is_named_with_what_it_could_match(on):
    refused(ValueError, "encoder.*", "net.4", callbacks=[Regularizer("l1", on=on, include=["encoder.*"])])
    refused(ValueError, "encoder.*", "net.", callbacks=[Regularizer("l1", on=on, exclude=["encoder.*"])])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


def test_a_schedule_over_a_run_of_unknown_length_asks_for_it():
    data = DataLoader(Endless(), batch_size=4)
    schedule = Regularizer("l1", LinearSchedule(0.0, 1e-3))
    refused(ValueError, "length of the run is unknown", "max_steps", callbacks=[schedule], data=data)
    fitted([schedule], data=data, max_steps=4)
    fitted([Regularizer("l1", 1e-3)], data=data)


@pytest.mark.parametrize("kind", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_a_strategy_that_hides_the_weights_is_refused_before_training(kind):
    strategy = type(kind, (SingleDeviceStrategy,), {})(device="cpu")
    refused(
        MisconfigurationException, kind, "ddp", callbacks=[Regularizer()], strategy=strategy, devices="auto"
    )


def test_optimizers_that_cannot_be_followed_are_refused():
    model = net()
    model.configure_optimizers = lambda: torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    refused(ValueError, "line_search_fn=None", callbacks=[Regularizer()], model=model)


class Behind(Net):
    """Calls backward without Lightning knowing."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        super().training_step(batch, batch_idx).backward()
        optimizer.step()


def test_activations_under_a_backward_pass_that_lightning_does_not_see_are_refused():
    with pytest.raises(MisconfigurationException, match=r"self\.manual_backward\(loss\)"):
        fitted([Regularizer("l1", 1e-3, on="activations")], Behind())
    fitted([Regularizer("l1", 1e-3)], Behind())  # weights pay at the step


def test_activations_that_are_never_there_are_said_so():
    model = net()
    model.spare = body()
    with pytest.warns(UserWarning, match=r"no output of spare\.1, spare\.5 was there to be penalized"):
        fitted([Regularizer("l1", 1e-3, on="activations", include=["spare.1", "spare.5"])], model)


def test_weights_that_nobody_steps_are_said_so():
    model = net()
    model.configure_optimizers = lambda: torch.optim.SGD(model.net[:6].parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"no optimizer steps net\.6\.weight: they are not penalized"):
        fitted([Regularizer("l1", 1e-3)], model)


def test_two_callbacks_of_one_name_are_refused():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Regularizer`"):
        trainer([Regularizer("l1"), Regularizer("l2")])
