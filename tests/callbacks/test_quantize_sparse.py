"""QuantizeSparse in a Trainer: what forwards see, what stays float, and zeros that stay zero."""

import pytest
import torch
from grids import Seen, Watch, fit, layers, on_grid, zeros_are_the_masks
from helpers import ByHand, Net, loader, net, same, trainer, weights
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_sparse import MaskUpdater, QuantizeSparse, RigL
from lightning_sparse.quant.quantization import remembered
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find

SPARSE = {
    "static": lambda: MaskUpdater("static", 0.25),
    "rigl": lambda: MaskUpdater(RigL(every=2, stop=1.0), 0.25),
    "srste": lambda: MaskUpdater("srste", 0.25),
    "l0": lambda: MaskUpdater("l0", 0.5),
}


def steps_and_floats(seen: Seen, watch: Watch) -> None:
    """Six passes of three layers before, twelve after; no other callback meets the grid."""
    assert seen.grid["train"][:18] == [False] * 18
    assert all(seen.grid["train"][18:])
    assert not any(on_grid(state["net.4.weight"], 4) for state in watch.after)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", SPARSE)
def test_forward_passes_see_the_grid_and_nothing_else_does(kind, optimizer):
    updater, seen, watch, model = SPARSE[kind](), Seen(), Watch(), net(optimizer)
    quantize, _run = fit(model, updater, seen, watch)
    steps_and_floats(seen, watch)
    assert len(seen.grid["train"]) == 54
    assert len(seen.grid["eval"]) > 18
    zeros_are_the_masks(model, quantize, updater.masks)
    assert not on_grid(model.net[4].weight, 4)
    assert list(model.state_dict()) == list(net().state_dict())
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks]


@pytest.mark.parametrize("kind", ["topkast", "srste"])
def test_steps_of_length_zero_leave_latent_weights_as_they_are(kind):
    """MaskUpdater must meet the weights that it has shown before a step, not their grid."""

    class Still(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    torch.manual_seed(1)
    updater, starts = MaskUpdater(kind, 0.5), []

    class Start(Watch):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            starts.append({name: p.latent.clone() for name, p in updater.sparsifier.params.items()})

    fit(Still(), updater, Start(), quantize=QuantizeSparse(4, at=0), max_epochs=1)
    assert len(starts) == 6
    assert all(same(starts[0], state) for state in starts)
    assert not on_grid(starts[0]["net.4.weight"], 4)


def test_masks_that_move_are_the_zeros_of_the_integers():
    updater, model = SPARSE["rigl"](), net("adamw")
    quantize, _run = fit(model, updater)
    assert updater.sparsifier.updates >= 6
    codes = quantize.quantization.codes(model)
    for name, mask in updater.masks.items():
        grown = mask & (model.state_dict()[name] == 0)  # zero until they learn
        assert torch.equal((codes[name].codes != 0) | grown, mask)
        assert int(grown.sum()) < int(mask.sum()) / 2


def test_every_closure_of_lbfgs_sees_the_grid():
    updater, seen, watch, model = SPARSE["static"](), Seen(), Watch(), net("lbfgs")
    quantize, _ = fit(model, updater, seen, watch, batch=48)  # a step an epoch, of three closures and more
    grid = seen.grid["train"]
    assert len(grid) >= 27
    assert len(grid) % 3 == 0
    per_epoch = len(grid) // 3
    assert not any(grid[:per_epoch])
    assert all(grid[per_epoch:])
    assert not any(on_grid(state["net.4.weight"], 4) for state in watch.after)
    zeros_are_the_masks(model, quantize, updater.masks)


def pruned_by_hand(model: Net, share: float = 0.75) -> dict[str, torch.Tensor]:
    masks = {}
    for name, module in layers(model).items():
        size = module.weight.detach().abs()
        masks[f"{name}.weight"] = size > size.flatten().kthvalue(int(share * size.numel())).values
        with torch.no_grad():
            module.weight.mul_(masks[f"{name}.weight"])
    return masks


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "mixing", "lbfgs"])
def test_zeros_that_a_model_comes_with_stay_zero_without_a_mask_updater(optimizer):
    model = net(optimizer)
    masks = pruned_by_hand(model)
    quantize, _ = fit(model, quantize=QuantizeSparse(4, at=0), batch=48 if optimizer == "lbfgs" else 8)
    codes = quantize.quantization.codes(model)
    for name, mask in masks.items():
        assert torch.equal(model.state_dict()[name] != 0, mask)
        assert torch.equal(codes[name].codes != 0, mask)


def test_by_default_training_does_not_notice():
    ends, found = [], QuantizeSparse()
    for callbacks in ([], [found]):
        model = net("adamw", dropout=0.3)
        run = trainer(callbacks, max_epochs=2)
        run.fit(model, loader(8, shuffle=True), loader(24))
        ends.append({**weights(model), "random": torch.get_rng_state(), "val": run.callback_metrics["val_loss"]})
    assert same(*ends)
    assert {layer.bits for layer in found.quantization.layers.values()} == {8}
    assert sorted(found.quantization.ranges) == ["net.0:in", "net.0:out", "net.6:in"]


def test_after_the_fit_the_trainer_evaluates_the_quantized_model_and_leaves_floats():
    model, seen, quantize = net(), Seen(8), QuantizeSparse()
    run = trainer([quantize, seen], max_epochs=1)
    run.fit(model, loader(8))
    before = weights(model)
    assert not any(seen.grid["train"])
    for evaluate in (run.validate, run.test):
        seen.grid["eval"].clear()
        (found,) = evaluate(model, loader(48), verbose=False)
        assert seen.grid["eval"]
        assert all(seen.grid["eval"])
        assert found["val_loss"] == pytest.approx(by_hand(model, quantize), rel=1e-5)
    (outputs,) = predicted(run, model)
    assert not torch.equal(outputs, model.eval()(next(iter(loader(48)))[0]))
    assert same(weights(model), before)
    assert remembered(model) == quantize.quantization
    assert remembered(model.net).layers.keys() == {"0", "4", "6"}


def predicted(run, model):
    model.predict_step = lambda batch, batch_idx: model(batch[0])
    outputs = run.predict(model, loader(48))
    del model.predict_step
    return outputs


def by_hand(model: Net, quantize: QuantizeSparse) -> float:
    """The loss of the quantized network, written out."""
    at, codes = quantize.quantization.ranges, quantize.quantization.codes(model)

    def rounded(x, place):
        r = at[place]
        return (((x / r.scale).round() + r.zero_point).clamp(0, 255) - r.zero_point) * r.scale

    images, labels = next(iter(loader(48)))
    state = model.state_dict()
    with torch.no_grad():
        x = F.conv2d(rounded(images, "net.0:in"), codes["net.0.weight"].weight(), state["net.0.bias"])
        x = rounded(x.relu(), "net.0:out").flatten(1)
        x = F.linear(x, codes["net.4.weight"].weight(), state["net.4.bias"]).relu()
        x = F.linear(rounded(x, "net.6:in"), codes["net.6.weight"].weight(), state["net.6.bias"])
        return float(F.cross_entropy(x, labels))


def test_a_raw_loop_does_what_the_callback_does():
    quantize, model = QuantizeSparse(4, at=0, act_bits=None), net("adamw")
    fit(model, quantize=quantize, val=False)
    raw = net("adamw")
    optimizer, batches = raw.configure_optimizers(), list(loader(8))
    bits = dict.fromkeys(("net.0", "net.4", "net.6"), 4)
    quantizer = Quantizer(raw, find(raw, lambda: raw(batches[0][0]), bits), optimizers=[optimizer], act_bits=None)
    for x, y in batches * 3:
        optimizer.zero_grad()
        F.cross_entropy(raw(x), y).backward()
        optimizer.step()
    quantizer.detach()
    assert same(weights(model), weights(raw))
    assert not same(weights(model), weights(net()))


@pytest.mark.parametrize(
    "settings",
    [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_a_trainer(settings):
    updater, seen, watch, model = SPARSE["rigl"](), Seen(), Watch(), net("adamw")
    quantize, _run = fit(model, updater, seen, watch, **settings)
    steps_and_floats(seen, watch)
    zeros_are_the_masks(model, quantize, updater.masks)


class Two(LightningModule):
    """Two optimizers by hand; the second looks at what the first has made."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(72, 12), nn.Linear(12, 5)

    def training_step(self, batch, batch_idx):
        one, two = self.optimizers()
        hidden = self.first(batch[0].flatten(1)).relu()
        loss = F.cross_entropy(self.second(hidden), batch[1])
        two.zero_grad()
        self.manual_backward(loss, retain_graph=True)
        two.step()
        one.zero_grad()
        self.manual_backward(hidden.square().mean())
        one.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(each.parameters(), lr=1e-2) for each in (self.first, self.second)]


def test_two_optimizers_by_hand():
    torch.manual_seed(1)
    updater, seen, model = MaskUpdater("static", 0.25), Seen(), Two()
    quantize, _run = fit(model, updater, seen, quantize=QuantizeSparse(4, at=1), val=False)
    assert seen.grid["train"][:12] == [False] * 12
    assert seen.grid["train"][12:] == [True] * 24
    zeros_are_the_masks(model, quantize, updater.masks)


def test_one_optimizer_by_hand_ends_like_automatic_optimization():
    ends = []
    for kind in (Net, type("Manual", (ByHand, Net), {})):
        torch.manual_seed(1)
        model = kind("adamw")
        quantize, _ = fit(model, quantize=QuantizeSparse(3, at=1), val=False)
        ends.append((weights(model), quantize.quantization))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
