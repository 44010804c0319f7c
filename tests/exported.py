"""Quantized models for tests of exports: ranges by minimum and maximum, and a slow restatement of what is simulated."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sparse.core.flops import call
from lightning_sparse.core.probe import eval_mode
from lightning_sparse.quant.quantization import Quantization, Range
from lightning_sparse.quant.sites import find

KINDS = (nn.Linear, nn.modules.conv._ConvNd)


def known(model, inputs, *, bits=7, act_bits=8):
    """How ``model`` is quantized, with ranges of what these inputs give; ``act_bits`` None leaves activations alone.

    Seven bits: with eight, runtimes on processors without VNNI cut off large sums.
    """
    names = {name: bits for name, part in model.named_modules() if isinstance(part, KINDS)}
    layers = find(model, lambda: call(model, inputs), names, activations=act_bits is not None)
    seen = {}

    def note(place, values):
        seen.setdefault(place, []).append(values.detach().flatten())
        return values

    with eval_mode(model), torch.no_grad(), watched(model, layers, note):
        call(model, inputs)
    return Quantization(layers, {place: grid(torch.cat(found), act_bits) for place, found in seen.items()})


def grid(values, bits):
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = max((high - low) / (2**bits - 1), 1e-6)
    return Range(scale, round(-low / scale), bits)


def simulated(model, quantization, inputs):
    """What the model answers with weights and activations on their grids, everything in float."""
    ranges, before = quantization.ranges, {n: p.detach().clone() for n, p in model.named_parameters()}

    def rounded(place, values):
        r = ranges[place]
        return ((values / r.scale).round() + r.zero_point).clamp(0, 2**r.bits - 1).sub(r.zero_point) * r.scale

    with eval_mode(model), torch.no_grad():
        for name, codes in quantization.codes(model).items():
            model.get_parameter(name).copy_(codes.weight())
        try:
            with watched(model, quantization.layers, rounded):
                return call(model, inputs)
        finally:
            for name, weight in model.named_parameters():
                weight.copy_(before[name])


@contextmanager
def watched(model, layers, change):
    """Inside, ``change(place, values)`` is done to what goes into layers and comes out of convolutions."""
    parts, handles = dict(model.named_modules()), []
    for name, layer in layers.items():
        if layer.input and layer.input.endswith(":in"):
            hook = lambda m, args, place=layer.input: (change(place, args[0]), *args[1:])  # noqa: E731
            handles.append(parts[name].register_forward_pre_hook(hook))
        if layer.output:

            def leave(m, args, out, layer=layer):
                return change(layer.output, out.clamp(*layer.clip) if layer.clip else out)

            handles.append(parts[layer.norm or name].register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def lively(model, seed=0):
    """The model with norms that do something: gammas of both signs, statistics and biases that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.3, 2.0, generator=generator)
            if part.affine:
                with torch.no_grad():
                    part.weight.normal_(0, 1, generator=generator)
                    part.bias.normal_(0, 0.3, generator=generator)
    return model.eval()


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a shortcut, then a classifier."""

    def __init__(self, channels=4):
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, channels, 3, padding=1), nn.Linear(channels, 3)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn, self.bn1, self.bn2 = (nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(y.mean((2, 3)))


class Twice(nn.Module):
    """One layer at two places, called three times."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again, self.last = self.first, nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.again(self.first(F.relu(self.first(x)))))


class Standardized(nn.Conv2d):
    """Does something of its own with its weight."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / 2
        return self._conv_forward(x, weight, self.bias)


class ActiveNorm(nn.BatchNorm2d):
    """A BatchNorm with its activation inside."""

    def forward(self, x):
        return F.relu(super().forward(x))


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def image(n=4, channels=2, size=6):
    return noise(n, channels, size, size)


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    for weight in model.parameters():  # else both layers begin alike
        nn.init.normal_(weight, 0, 0.3)
    return model


def block(i, o, norm=nn.BatchNorm2d, conv=nn.Conv2d, **how):
    return [conv(i, o, 3, padding=1, **how), norm(o), nn.ReLU()]


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)), noise(5, 6)),
    "residual": (Residual, image()),
    "relu6": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)), image()),
    "depthwise": (lambda: nn.Sequential(*block(2, 4), *block(4, 4, groups=4), nn.Conv2d(4, 3, 1)), image()),
    "grouped": (lambda: nn.Sequential(*block(2, 4), *block(4, 6, groups=2), nn.Flatten(), nn.Linear(216, 3)), image()),
    "1d": (lambda: nn.Sequential(*block(2, 4, nn.BatchNorm1d, nn.Conv1d), nn.Conv1d(4, 3, 3)), image()[:, :, 0]),
    "reflected": (lambda: nn.Sequential(*block(2, 4, padding_mode="reflect"), nn.Conv2d(4, 3, 1)), image()),
    "transposed": (lambda: nn.Sequential(*block(2, 4, conv=nn.ConvTranspose2d, stride=2), nn.Conv2d(4, 2, 1)), image()),
    "transposed groups": (
        lambda: nn.Sequential(*block(2, 4, conv=nn.ConvTranspose2d, groups=2), nn.Conv2d(4, 2, 1)), image(),
    ),
    "shared": (Twice, noise(5, 6)),
    "own weight": (lambda: nn.Sequential(Standardized(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)), image()),
    "own norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), ActiveNorm(4), nn.Conv2d(4, 3, 1)), image()),
    "encoder": (encoder, noise(3, 5, 8)),
}  # fmt: skip
