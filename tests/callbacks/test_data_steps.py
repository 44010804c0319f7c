"""The look calls training_step as Lightning does: whatever its form, the same masks come out."""

from typing import ClassVar

import pytest
import torch
from helpers import Net, digest, loader, net, samples, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, SubsetRandomSampler

from lightning_sparse import SNIP, GraSP, MaskUpdater, Sparsifier, SynFlow

ALGORITHMS = {"snip": SNIP(batches=2), "grasp": GraSP(samples=2), "synflow": SynFlow(iterations=3)}


def masks(model, algorithm="snip", data=None, **settings):
    """Of a fit of one step."""
    updater = MaskUpdater(ALGORITHMS[algorithm], 0.25)
    trainer([updater], max_steps=1, **settings).fit(model, loader(4, 16, shuffle=True) if data is None else data)
    return updater.masks


def cost(model, batch):
    return F.cross_entropy(model.net(batch[0]), batch[1])


def raw(algorithm="snip", cost=cost):
    """The same without Lightning, on the same batches."""
    order = torch.Generator().manual_seed(0)
    data = {"batches": loader(4, 16, shuffle=True, generator=order), "example_inputs": samples(1)[0][0][None]}
    return Sparsifier(net(), ALGORITHMS[algorithm], 0.25, loss=cost, **data).masks


def made(kind):
    model = net()
    other = kind()
    other.load_state_dict(model.state_dict())
    return other


class ReturnsDict(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss, "extra": loss.detach()}


class NoIndex(Net):
    def training_step(self, batch):
        return cost(self, batch)


class OtherNames(Net):
    def training_step(self, data, index):
        assert index == 0
        return cost(self, data)


class AnyArguments(Net):
    def training_step(self, *args):
        batch, _ = args
        return cost(self, batch)


class Logs(Net):
    def training_step(self, batch, batch_idx):
        self.log("loss", 1.0, prog_bar=True)
        self.log_dict({"a": 1.0})
        assert self.trainer.global_step == self.global_step == 0
        assert self.device == batch[0].device
        return super().training_step(batch, batch_idx)


class AfterTransfer(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {"x": batch[0], "y": batch[1]}

    def training_step(self, batch, batch_idx):
        return cost(self, (batch["x"], batch["y"]))


class BeforeTransfer(AfterTransfer):
    on_before_batch_transfer = AfterTransfer.on_after_batch_transfer

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Outer(LightningModule):
    """A LightningModule inside another; names and masks have a prefix."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def training_step(self, batch, batch_idx):
        return self.inner.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return self.inner.configure_optimizers()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class Inner(Net):
    def training_step(self, batch, batch_idx):
        assert self.trainer.global_step == 0
        return super().training_step(batch, batch_idx)


KINDS = [Net, ReturnsDict, NoIndex, OtherNames, AnyArguments, Logs, AfterTransfer, BeforeTransfer, Outer]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_form_of_training_step_gives_the_masks_of_the_loss(kind):
    found = masks(made(kind))
    assert digest({name.removeprefix("inner."): mask for name, mask in found.items()}) == digest(raw())


@pytest.mark.parametrize("algorithm", ["grasp", "synflow"])
def test_a_trainer_gives_the_masks_of_a_loop_of_ones_own(algorithm):
    assert digest(masks(net(), algorithm)) == digest(raw(algorithm))


def test_accumulated_batches_change_nothing():
    assert digest(masks(net(), accumulate_grad_batches=3)) == digest(raw())


def test_scores_are_taken_in_the_precision_of_the_training():
    def autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return cost(model, batch)

    found = digest(masks(net(), precision="bf16-mixed"))
    assert found == digest(raw(cost=autocast)) != digest(raw())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_budgets_are_exact_in_any_precision(algorithm, precision):
    assert sum(int(mask.sum()) for mask in masks(net(), algorithm, precision=precision).values()) == 532



@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_compiled_model_gets_the_masks_of_the_plain_one(algorithm):
    assert digest(masks(torch.compile(net(), backend="eager"), algorithm)) == digest(raw(algorithm))



@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_compiled_part_of_a_model_gets_the_masks_of_the_plain_one(algorithm):
    model = net()
    model.net = torch.compile(model.net, backend="eager")
    assert digest(masks(model, algorithm)) == digest(raw(algorithm))


# ---- What the look sees


class Seen(Dataset):
    """Remembers what was read, by whatever copy."""

    indices: ClassVar[list] = []

    def __len__(self):
        return 48

    def __getitem__(self, i):
        self.indices.append(i)
        return samples(48)[int(i)]



@pytest.mark.parametrize(
    "sampler",
    [
        SubsetRandomSampler(range(8)),
        RandomSampler(range(8)),
        RandomSampler(range(8), replacement=True, num_samples=20),
        RandomSampler(range(8), generator=torch.Generator().manual_seed(3)),
        SequentialSampler(range(8)),
    ],
    ids=["subset", "part", "replacement", "generator", "sequential"],
)
def test_the_look_keeps_to_the_samples_of_the_users_sampler(sampler):
    Seen.indices.clear()
    masks(net(), data=DataLoader(Seen(), batch_size=4, sampler=sampler))
    assert len(Seen.indices) >= 12  # two batches looked at, one trained on
    assert set(Seen.indices) <= set(range(8)), "samples that were held out for validation"


def test_a_sampler_that_gives_few_samples_gives_as_few_to_look_at():
    Seen.indices.clear()
    sampler = RandomSampler(range(48), num_samples=8)
    updater = MaskUpdater(SNIP(batches=9), 0.25)
    trainer([updater], max_steps=1).fit(net(), DataLoader(Seen(), batch_size=4, sampler=sampler))
    assert len(Seen.indices) == 8 + 4  # all looked at, one batch trained on


def test_a_sampler_may_give_whole_batches():
    """The way of torch's documentation to read a batch at once."""
    sizes = []

    class Sizes(Net):
        def training_step(self, batch, batch_idx):
            sizes.append(len(batch[1]) if batch[1].ndim else "a single sample")
            return super().training_step(batch, batch_idx)

    rows = BatchSampler(RandomSampler(range(48)), 4, False)
    masks(Sizes(), data=DataLoader(samples(48), batch_size=None, sampler=rows))
    assert set(sizes) == {4}


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode")
def test_modules_that_are_kept_in_evaluation_mode_stay_in_it():
    modes = []

    class Frozen(Net):
        def training_step(self, batch, batch_idx):
            modes.append(self.net[3].training)
            return super().training_step(batch, batch_idx)

    model = Frozen(dropout=0.5)
    model.net[3].eval()
    masks(model)
    assert modes == [False] * 3  # two batches looked at, one trained on


def test_a_step_that_logs_past_lightning_logs_nothing_while_it_is_looked_at():
    class Counting(DummyLogger):
        lines = 0

        def log_metrics(self, metrics, step=None):
            self.lines += "mine" in metrics

    class Direct(Net):
        def training_step(self, batch, batch_idx):
            self.logger.log_metrics({"mine": 1.0})
            return super().training_step(batch, batch_idx)

    logger = Counting()
    masks(Direct(), logger=logger)
    assert logger.lines == 1
