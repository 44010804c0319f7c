"""The same numbers as torch's optimizers, to the bit, on a model that the engine keeps sparse."""

import pytest
import torch
from torch import nn

from lightning_sparse import ConstantSchedule, RigL, Sparsifier
from lightning_sparse.core.masks import pack_bits
from lightning_sparse.optim import MaskedAdam, MaskedAdamW, MaskedSGD, ProxSGD
from lightning_sparse.optim.places import Places

PAIRS = {"sgd": (MaskedSGD, torch.optim.SGD), "adam": (MaskedAdam, torch.optim.Adam)}
PAIRS["adamw"] = (MaskedAdamW, torch.optim.AdamW)
OPTIONS = {
    "sgd plain": ("sgd", {"lr": 0.1}),
    "sgd decay": ("sgd", {"lr": 0.1, "weight_decay": 0.01}),
    "sgd momentum": ("sgd", {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "sgd nesterov": ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "sgd maximize": ("sgd", {"lr": 1e-3, "momentum": 0.9, "maximize": True}),
    "adam": ("adam", {"lr": 0.01}),
    "adam decay": ("adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
    "adam amsgrad": ("adam", {"lr": 0.01, "amsgrad": True}),
    "adam maximize": ("adam", {"lr": 1e-3, "maximize": True}),
    "adamw": ("adamw", {"lr": 0.01}),
    "adamw amsgrad": ("adamw", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
}
MOVING = RigL(every=4, stop=25, fraction=ConstantSchedule(0.4))


def net(dtype=torch.float32):
    """A convolution and a linear layer, whose sizes are no multiple of a vector's; biases and a norm stay dense."""
    torch.manual_seed(5)
    layers = [nn.Conv2d(2, 7, 3), nn.BatchNorm2d(7), nn.Tanh(), nn.Flatten(), nn.Linear(63, 11), nn.Linear(11, 3)]
    return nn.Sequential(*layers).to(dtype)


def backward(model, optimizer, step):
    generator = torch.Generator().manual_seed(step)
    like = next(model.parameters())
    x = torch.randn(6, 2, 5, 5, generator=generator).to(like.dtype)
    optimizer.zero_grad()
    loss = (model(x) - x.flatten(1)[:, :3]).square().mean()
    loss.backward()
    return loss


def entries(optimizer, weight):
    """The state of a weight with every tensor in full: zero where dead."""
    row = dict(optimizer.state[weight])
    bits = row.pop("mask", None)
    if bits is None:
        return row
    places = Places(bits, weight)
    return {name: value if name == "step" else places.spread(value, like=weight) for name, value in row.items()}


def assert_same_state(mine, mine_model, theirs, their_model):
    for weight, other in zip(mine_model.parameters(), their_model.parameters(), strict=True):
        full, expected = entries(mine, weight), theirs.state[other]
        expected = {name: value for name, value in expected.items() if value is not None}
        assert full.keys() == expected.keys()
        for name in full:
            # Under torch's Adam the engine lifts zero second moments by 1e-36 a step, where a live one may stay at it
            # (a grown weight whose gradient is zero): beside eps it is nothing, and weights are equal to the bit.
            lifted = (full[name] == 0) & (expected[name].abs() < 1e-34) if name.endswith("exp_avg_sq") else False
            assert ((full[name] == expected[name]) | lifted).all(), name


@pytest.mark.parametrize(
    ("case", "density"), [*((case, 0.05) for case in OPTIONS), ("sgd nesterov", 0.3), ("adamw amsgrad", 0.3)]
)
def test_thirty_steps_while_masks_move_are_those_of_torch_bit_for_bit(case, density):
    kind, options = OPTIONS[case]
    runs = []
    for cls, more in zip(PAIRS[kind], ({}, {"foreach": False, "fused": False}), strict=True):
        model = net()
        optimizer = cls(model.parameters(), **options, **more)
        runs.append((model, optimizer, Sparsifier(model, MOVING, density, optimizers=[optimizer])))
    (model, mine, engine), (other, theirs, reference) = runs
    for step in range(30):
        for subject, optimizer, _ in runs:
            backward(subject, optimizer, step)
            optimizer.step()
        same = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(left, right) for left, right in same), f"step {step}"
        assert all(torch.equal(engine.masks[name], mask) for name, mask in reference.masks.items())
    assert engine.updates == reference.updates == 6
    assert_same_state(mine, model, theirs, other)
    for name, p in engine.params.items():
        row = mine.state[model.get_parameter(name)]
        shape = (p.live,) if p.live < p.size else p.mask.shape  # at 0.3 ERK leaves the last layer dense
        assert ("mask" in row) == (p.live < p.size)
        assert {row[key].shape for key in mine.per_weight if key in row} <= {shape}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", PAIRS)
def test_other_precisions_agree_bit_for_bit_too(kind, dtype):
    mine, theirs, bits = *PAIRS[kind], {}
    models = [net(dtype), net(dtype)]
    optimizers = [mine(models[0].parameters(), lr=0.01), theirs(models[1].parameters(), lr=0.01, foreach=False)]
    weights = [[w for w in model.parameters() if w.ndim > 1] for model in models]
    for weight, other in zip(*weights, strict=True):
        bits[weight] = mask = torch.rand(weight.shape) < 0.2
        optimizers[0].set_mask(weight, mask)
        with torch.no_grad():
            weight.mul_(mask)
            other.mul_(mask)
    for step in range(10):
        for model, optimizer in zip(models, optimizers, strict=True):
            backward(model, optimizer, step)
            for weight, mask in zip([w for w in model.parameters() if w.ndim > 1], bits.values(), strict=True):
                weight.grad.mul_(mask)
            optimizer.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert models[0][4].weight.dtype == dtype


@pytest.mark.parametrize("kind", PAIRS)
def test_without_masks_and_with_full_ones_it_is_torchs_optimizer(kind):
    mine, theirs = PAIRS[kind]
    models = [net(), net(), net()]
    settings = {"lr": 0.01, **({"momentum": 0.9} if kind == "sgd" else {})}
    optimizers = [cls(m.parameters(), **settings) for cls, m in zip((mine, mine, theirs), models, strict=True)]
    for weight in models[1].parameters():
        optimizers[1].set_mask(weight, torch.ones_like(weight, dtype=torch.bool))
    for step in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            backward(model, optimizer, step)
            optimizer.step()
    for model, optimizer in zip(models[:2], optimizers[:2], strict=True):
        assert all(map(torch.equal, model.parameters(), models[2].parameters()))
        assert_same_state(optimizer, model, optimizers[2], models[2])
        assert all("mask" not in row for row in optimizer.state.values())


@pytest.mark.parametrize("kind", PAIRS)
def test_channels_last_weights_step_as_contiguous_ones(kind):
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(2)
        weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=form))
        optimizer = PAIRS[kind][0]([weight], lr=0.1)
        optimizer.set_mask(weight, torch.rand(weight.shape) < 0.4)
        for _ in range(3):
            weight.grad = torch.randn(4, 3, 3, 3)
            optimizer.step()
        assert weight.is_contiguous(memory_format=form)
        results.append(weight.detach().contiguous())
    assert torch.equal(*results)


@pytest.mark.parametrize("groups", ["none", "rows"])
def test_prox_sgd_steps_live_weights_as_it_steps_a_weight_whose_dead_entries_are_zero(groups):
    torch.manual_seed(1)
    mask = torch.rand(6, 5, 2) < 0.4
    start, gradients = torch.randn(6, 5, 2) * mask, torch.randn(10, 6, 5, 2) * mask
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    optimizers = [ProxSGD([w], lr=0.05, momentum=0.5, l1=1.0, groups=groups) for w in weights]
    optimizers[0].set_mask(weights[0], mask)
    for gradient in gradients:
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient
            optimizer.step()
    assert torch.equal(*weights)
    assert 0 < int((weights[0][mask] == 0).sum()) < int(mask.sum())
    assert optimizers[0].state[weights[0]]["momentum_buffer"].shape == (int(mask.sum()),)
    assert torch.equal(optimizers[0].state[weights[0]]["mask"], pack_bits(mask))
