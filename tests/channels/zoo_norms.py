"""Norms and parametrizations, and layers that look across channels."""

import torch
import torch.nn.functional as F
from channels.kinds import Net, chain, conv, image, kind, noise, pooled
from torch import nn
from torch.nn.utils import parametrizations, prune


def ending(width, classes=5):
    return {"gap": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(width, classes)}


@kind("full", {"a.weight:0": 8, "b.weight:0": 6})
def instance_norm_with_statistics():
    return chain(
        a=conv(3, 8), norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True), act=nn.ReLU(), b=conv(8, 6),
        plain=nn.InstanceNorm2d(6), act2=nn.ReLU(), **ending(6),
    )  # fmt: skip


@kind("full", {"a.weight:0": 4, "b.weight:0": 6}, lossy="a.weight:0")
def group_norm():
    return chain(a=conv(3, 8), norm=nn.GroupNorm(2, 8), act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), **ending(6))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, inputs=image(1, 3, 8, 8), oracle=True)
def no_norm_one_picture():
    return chain(a=conv(3, 8), act=nn.ReLU(), b=conv(8, 6, stride=2), act2=nn.GELU(), **ending(6))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, oracle=True)
def norm_without_affine():
    return chain(
        a=conv(3, 8), bn=nn.BatchNorm2d(8, affine=False), act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), **ending(6)
    )


@kind("full", {"a.parametrizations.weight.original1:0": 8, "b.parametrizations.weight.original1:0": 6},
      lossy="a.parametrizations.weight.original1:0",
      produces="a.parametrizations.weight.original0:0 b.parametrizations.weight.original0:0")  # fmt: skip
def weight_norm():
    """Silent where the length is 0 (a direction of 0 would divide by 0); each length is taken over the inputs too."""
    a, b = (parametrizations.weight_norm(layer) for layer in (conv(3, 8), conv(8, 6)))
    with torch.no_grad():
        a.parametrizations.weight.original0.mul_(torch.rand(8, 1, 1, 1) + 0.5)
    return chain(a=a, act=nn.ReLU(), b=b, act2=nn.ReLU(), **ending(6))


@kind("full", {"a.parametrizations.weight.original:0": 8, "b.parametrizations.weight.original:0": 6},
      lossy="a.parametrizations.weight.original:0",
      produces="a.parametrizations.weight.original:0 b.parametrizations.weight.original:0")  # fmt: skip
def spectral_norm():
    """The vectors of the power iteration are as long as the layer is wide: an input channel owns 9 places of `_v`."""
    a, b = (parametrizations.spectral_norm(layer) for layer in (conv(3, 8), conv(8, 6)))
    return chain(a=a, act=nn.ReLU(), b=b, act2=nn.ReLU(), **ending(6))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, lossy="a.weight:0")
def weight_standardisation():
    """The mean and the deviation of a filter are taken over its inputs: one input fewer changes them."""

    def standard(layer, x):
        weight = layer.weight
        mean, var = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) * torch.rsqrt(var + 1e-5), layer.bias, padding=1)

    def run(m, x):
        return m.head(pooled(F.relu(standard(m.b, F.relu(standard(m.a, x))))))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"stem.weight:0": 8, "wide.weight:0": 12}, lossy="stem.weight:0 wide.weight:0")
def convnext():
    """LayerNorm over channels, global response norm, LayerScale."""

    def response(m, x):
        length = x.norm(p=2, dim=(1, 2), keepdim=True)
        return m.gain * (x * (length / (length.mean(dim=-1, keepdim=True) + 1e-6))) + m.shift + x

    def run(m, x):
        x = m.stem(x)
        y = m.norm(m.depth(x).permute(0, 2, 3, 1))
        y = m.scale * m.narrow(response(m, F.gelu(m.wide(y))))
        return m.head(pooled(x + y.permute(0, 3, 1, 2)))

    return Net(
        run,
        stem=conv(3, 8),
        depth=conv(8, 8, 7, groups=8),
        norm=nn.LayerNorm(8),
        wide=nn.Linear(8, 12),
        gain=noise(1, 1, 1, 12),
        shift=noise(1, 1, 1, 12),
        narrow=nn.Linear(12, 8),
        scale=noise(8),
        head=nn.Linear(8, 5),
    )


@kind("full", {"stem.weight:0": 8}, produces="scale:0")
def layer_scale():
    def run(m, x):
        x = F.relu(m.stem(x))
        x = x + m.scale.view(1, -1, 1, 1) * F.gelu(m.mix(x))
        return m.head(pooled(x))

    return Net(run, stem=conv(3, 8), mix=conv(8, 8), scale=noise(8), head=nn.Linear(8, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, lossy="a.weight:0", inputs=image(3, 4, 5))
def rms_norm():
    def run(m, x):
        x = m.a(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.gain
        return m.head(F.relu(m.b(x)))

    return Net(run, a=nn.Linear(5, 8), gain=noise(8), b=nn.Linear(8, 6), head=nn.Linear(6, 4))


@kind("full", {"a.weight_orig:0": 8, "b.weight:0": 6}, produces="a.weight_orig:0")
def masked_by_torch_prune():
    """The mask is a buffer, the weight that computes is neither parameter nor buffer but made anew each time."""
    a = conv(3, 8)
    prune.random_unstructured(a, "weight", 0.3)
    return chain(a=a, act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), **ending(6))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6})
def frozen_stem():
    a = conv(3, 8)
    a.requires_grad_(False)
    return chain(a=a, bn=nn.BatchNorm2d(8), act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), **ending(6))


@kind("full", {"a.weight:0": 8}, lossy="a.weight:0")
def softmax_over_channels():
    """A silent channel still takes its share of a softmax."""

    def run(m, x):
        x = m.a(x)
        return m.head(pooled(x * F.softmax(x, dim=1)))

    return Net(run, a=conv(3, 8), head=nn.Linear(8, 5))


@kind("full", {"a.weight:0": 8}, lossy="a.weight:0")
def mean_over_channels():
    """Spatial attention: maps of the mean and of the largest channel gate all of them."""

    def run(m, x):
        x = F.relu(m.a(x))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return m.head(pooled(x * torch.sigmoid(m.gate(maps))))

    return Net(run, a=conv(3, 8), gate=conv(2, 1), head=nn.Linear(8, 5))


@kind("partly", {"b.weight:0": 6})
def response_norm_across_neighbours():
    """Channel i is divided by channels i - 1 to i + 1: neighbours are not what they were when one goes."""
    return chain(a=conv(3, 8), lrn=nn.LocalResponseNorm(3), act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), **ending(6))


@kind("partly", {"b.weight:0": 6})
def convolution_across_channels():
    """ECA: a gate by a one-dimensional convolution along the channels."""

    def run(m, x):
        x = F.relu(m.a(x))
        gate = m.along(pooled(x).unsqueeze(1)).squeeze(1)
        x = x * torch.sigmoid(gate)[:, :, None, None]
        return m.head(pooled(F.relu(m.b(x))))

    return Net(run, a=conv(3, 8), along=nn.Conv1d(1, 1, 3, padding=1), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 7})
def cosine_similarity():
    """To a length over channels a silent one adds nothing."""

    def run(m, x):
        one, other = F.relu(m.a(x)).unbind(0)
        near = F.normalize(one, dim=0) * F.normalize(other, dim=0)
        return m.head(F.relu(m.b(near[None]))).mean((2, 3))

    return Net(run, a=conv(3, 8), b=conv(8, 7), head=conv(7, 5, 1))
