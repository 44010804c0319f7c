"""Fake quantization in loops of one's own: what forwards see, what gradients are, what the optimizer steps."""

import copy

import pytest
import torch
from grids import on_grid
from torch import nn
from torch.nn import functional as F

from lightning_sparse import SRSTE, STR, Sparsifier, Static, TopKAST
from lightning_sparse.quant.quantizer import Quantizer
from lightning_sparse.quant.sites import find

BITS = 3


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def data(seed: int = 1, n: int = 8) -> torch.Tensor:
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def quantized(net: nn.Module, bits: int = BITS, **settings) -> Quantizer:
    """Calibrated on two batches, in evaluation mode."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    quantizer = Quantizer(net, find(net, lambda: net(data()), dict.fromkeys(names, bits)), **settings)
    net.eval()
    quantizer.calibrate([lambda: net(data(1)), lambda: net(data(2))])
    net.train()
    quantizer.restore()
    return quantizer


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [net[0].weight, net[4].weight, net[6].weight]


class Straight(torch.autograd.Function):
    """Rounded to a grid; the gradient passes where ``inside``."""

    @staticmethod
    def forward(ctx, value, rounded, inside):
        ctx.save_for_backward(inside)
        return rounded

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


def weight_by_hand(w: torch.Tensor) -> torch.Tensor:
    top = 2 ** (BITS - 1)
    rows = w.detach().flatten(1)
    step = rows.abs().max(1, keepdim=True).values / top
    for _ in range(2):  # three bits: the least squared error of what the codes stand for
        codes = (rows.abs() / step).round().clamp(1, top) * (rows != 0)
        step = (rows.abs() * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True)
    step = step.bfloat16().float()
    codes = (rows.abs() / step).round().clamp(1, top) * rows.sign()
    return Straight.apply(w, (codes * step).view_as(w), torch.ones_like(w))


def activation_by_hand(x: torch.Tensor, at) -> torch.Tensor:
    codes = (x.detach() / at.scale).round() + at.zero_point
    rounded = (codes.clamp(0, 255) - at.zero_point) * at.scale
    return Straight.apply(x, rounded, ((codes >= 0) & (codes <= 255)).float())


def test_gradients_are_those_of_the_straight_through_formula():
    net = model()
    quantizer = quantized(net)
    quantizer.freeze()
    ranges = quantizer.quantization.ranges
    assert sorted(ranges) == ["0:in", "0:out", "6:in"]  # what the first Linear gets is the convolution's output
    x = 1.5 * data(3)  # some values are outside of the ranges
    net(x).square().sum().backward()
    found = [w.grad.clone() for w in net.parameters()]
    assert not torch.equal(net[0].weight, net.state_dict()["0.weight"])
    quantizer.detach()
    for p in net.parameters():
        p.grad = None
    x = activation_by_hand(x, ranges["0:in"])
    x = F.conv2d(x, weight_by_hand(net[0].weight), net[0].bias)
    x = activation_by_hand(net[1](x).clamp(min=0), ranges["0:out"]).relu().flatten(1)
    x = F.linear(x, weight_by_hand(net[4].weight), net[4].bias).relu()
    x = F.linear(activation_by_hand(x, ranges["6:in"]), weight_by_hand(net[6].weight), net[6].bias)
    x.square().sum().backward()
    for mine, (name, p) in zip(found, net.named_parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_step_applies_the_gradient_to_the_float_weights():
    net = model()
    quantizer = quantized(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
    quantizer.attach(optimizer)
    before = [w.detach().clone() for w in weights(net)]
    net(data()).square().mean().backward()
    assert all(on_grid(w, BITS) for w in weights(net))
    optimizer.step()
    for w, old in zip(weights(net), before, strict=True):
        assert torch.equal(w, torch.add(old, w.grad, alpha=-0.25))
        assert not on_grid(w, BITS)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lbfgs"])
def test_every_forward_pass_sees_the_grid_and_zeros_stay_zero(kind):
    net = model()
    sparsifier = Sparsifier(net, Static(), 0.5)
    makers = {
        "sgd": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01),
        "adamw": lambda w: torch.optim.AdamW(w, lr=0.01),
        "lbfgs": lambda w: torch.optim.LBFGS(w, lr=0.1, max_iter=3),
    }
    optimizer = makers[kind](net.parameters())
    sparsifier.attach(optimizer)
    quantizer = quantized(net, optimizers=[optimizer])
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(all(on_grid(w, BITS) for w in weights(net))))

    def closure():
        optimizer.zero_grad()
        loss = (net(data()) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        if kind == "lbfgs":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        assert not any(on_grid(w, BITS) for w in weights(net))
    assert seen == [True] * (12 if kind == "lbfgs" else 4)
    codes = quantizer.quantization.codes(net)
    for name, mask in sparsifier.masks.items():
        assert torch.equal(codes[name].codes != 0, mask)
        assert torch.equal(net.get_parameter(name) != 0, mask)


@pytest.mark.parametrize("algorithm", [TopKAST(), STR(), SRSTE()], ids=lambda each: type(each).__name__)
def test_steps_of_length_zero_leave_latent_weights_as_they_are(algorithm):
    """The engine must meet the weights that it has shown, not their grid: it would take that for new weights."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    sparsifier = Sparsifier(net, algorithm, 0.5, optimizers=[optimizer], total_steps=100)
    quantizer = quantized(net, optimizers=[optimizer])
    before = {name: p.latent.clone() for name, p in sparsifier.params.items()}
    for step in range(3):
        net(data(step)).square().mean().backward()
        assert all(on_grid(w, BITS) for w in weights(net))
        optimizer.step()
    assert quantizer.frozen is False
    for name, p in sparsifier.params.items():
        assert torch.equal(p.latent, before[name])
        assert not on_grid(p.latent, BITS)


def test_state_dict_copies_and_loading_are_about_float_weights():
    net = model()
    before = copy.deepcopy(net.state_dict())
    quantizer = quantized(net)
    net.eval()
    net(data())
    assert on_grid(net[4].weight, BITS)
    assert net.state_dict().keys() == before.keys()
    twin = copy.deepcopy(net)
    for state in (net.state_dict(), twin.state_dict()):
        assert all(torch.equal(state[name], value) for name, value in before.items() if "running" not in name)
    assert on_grid(net[4].weight, BITS)
    assert torch.equal(twin(data()), model_of(before)(data()))  # a copy is not quantized
    other = {name: value + 1 if value.is_floating_point() else value for name, value in before.items()}
    net.load_state_dict(other)
    quantizer.restore()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in other.items())


def model_of(state) -> nn.Module:
    net = model()
    net.load_state_dict(state)
    return net.eval()


def test_only_what_an_optimizer_steps_is_restored_for_it():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    net, x = nn.ModuleList([first, second]), torch.randn(8, 4)
    run = lambda: second(first(x))  # noqa: E731
    quantizer = Quantizer(net, find(net, run, {"0": BITS, "1": BITS}))
    quantizer.calibrate([run])
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in net]
    for optimizer in optimizers:
        quantizer.attach(optimizer)
    loss, other = first(x).square().mean(), second(x).square().mean()
    other.backward()
    optimizers[1].step()
    assert on_grid(first.weight, BITS)
    assert not on_grid(second.weight, BITS)
    loss.backward()  # would fail if the first weight had been written
    optimizers[0].step()
    assert not on_grid(first.weight, BITS)


def test_floats_inside_and_grids_again_after():
    net = model().eval()
    quantizer = quantized(net)
    net.eval()
    plain, rounded = model_of(net.state_dict())(data()), net(data())
    with quantizer.floats():
        assert torch.equal(net(data()), plain)
    assert torch.equal(net(data()), rounded)
    assert not torch.equal(plain, rounded)
    quantizer.detach()
    assert torch.equal(net(data()), plain)


def test_tensors_of_a_functional_call_are_the_callers():
    net = model().eval()
    quantizer = quantized(net, act_bits=None)
    net.eval()
    mine = {name: torch.ones_like(p) / 3 for name, p in net.named_parameters()}
    torch.func.functional_call(net, mine, (data(),))
    assert all(torch.equal(value, torch.ones_like(value) / 3) for value in mine.values())
    assert not on_grid(net[4].weight, BITS)  # the module's own was not there
    assert quantizer.quantization.ranges == {}


def test_the_simulated_output_of_a_layer_is_that_of_its_integers():
    """int32 sums of u8 times s8, scaled once: what a runtime computes."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(40, 7)), torch.randn(16, 40) + 0.3
    quantizer = Quantizer(net, find(net, lambda: net(x), {"0": 8}))
    quantizer.calibrate([lambda: net(x)])
    quantizer.freeze()
    simulated = net.eval()(x)
    quantizer.restore()
    at, codes = quantizer.quantization.ranges["0:in"], quantizer.quantization.codes(net)["0.weight"]
    integers = ((x / at.scale).round() + at.zero_point).clamp(0, 255).to(torch.int32)
    sums = (integers - at.zero_point) @ codes.codes.to(torch.int32).T
    assert sums.dtype == torch.int32
    torch.testing.assert_close(simulated, sums * (at.scale * codes.scale) + net[0].bias, rtol=1e-5, atol=1e-5)


def test_outputs_of_convolutions_are_clipped_to_what_follows_and_quantized():
    net = model()
    quantizer = quantized(net)
    net.eval()
    seen = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    net(data())
    at = quantizer.quantization.ranges["0:out"]
    codes = seen[0] / at.scale
    assert at.zero_point == 0
    assert float(codes.min()) == 0.0
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
