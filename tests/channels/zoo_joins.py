"""Channels that meet: sums, concatenations, gates, shared layers, several inputs and outputs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from channels.kinds import PICTURE, Net, chain, conv, conv_bn, image, kind, noise, pooled
from torch import Tensor, nn


@kind("full", {"a.conv.weight:0": 8, "one.weight:0": 4}, oracle=True)
def squeeze_excite_conv():
    def run(m, x):
        x = m.a(x)
        return m.head(pooled(x * torch.sigmoid(m.two(F.relu(m.one(x.mean((2, 3), keepdim=True)))))))

    return Net(run, a=conv_bn(3, 8), one=conv(8, 4, 1), two=conv(4, 8, 1), head=nn.Linear(8, 5))


@kind("full", {"a.conv.weight:0": 8, "one.weight:0": 4}, oracle=True)
def squeeze_excite_linear():
    def run(m, x):
        x = m.a(x)
        batch, channels = x.shape[:2]
        gate = m.two(F.relu(m.one(F.adaptive_avg_pool2d(x, 1).view(batch, channels))))
        return m.head(pooled(x * torch.sigmoid(gate).view(batch, channels, 1, 1)))

    return Net(run, a=conv_bn(3, 8), one=nn.Linear(8, 4), two=nn.Linear(4, 8), head=nn.Linear(8, 5))


@kind("full", {"stem.weight:0": 8}, oracle=True)
def shared_convolution():
    def run(m, x):
        x = F.relu(m.twice(F.relu(m.stem(x))))
        return m.head(pooled(F.relu(m.twice(x))))

    return Net(run, stem=conv(3, 8), twice=conv(8, 8), head=nn.Linear(8, 5))


@kind("full", {"a.weight:0": 8}, oracle=True)
def shared_norm():
    """Two convolutions of one input, whose outputs go through the same batch norm: cut alike."""

    def run(m, x):
        return m.head(torch.cat([pooled(F.relu(m.bn(m.a(x)))), pooled(F.relu(m.bn(m.b(x))))], 1))

    return Net(run, a=conv(3, 8), b=conv(3, 8, 1), bn=nn.BatchNorm2d(8), head=nn.Linear(16, 5))


@kind("full", {"a.conv.weight:0": 8, "b.conv.weight:0": 6, "embed.weight:0": 7},
      inputs=lambda: PICTURE() + image(2, 3, 6, 6)(), oracle=True)  # fmt: skip
def siamese():
    def run(m, one, other):
        far = [m.embed(pooled(m.b(m.a(x)))) for x in (one, other)]
        return m.head((far[0] - far[1]).abs())

    return Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), embed=nn.Linear(6, 7), head=nn.Linear(7, 1))


@kind("full", {"b.weight:0": 4, "c.weight:0": 4}, oracle=True)
def concatenation_added_to_a_residual():
    """The halves of `a` belong to two axes."""

    def run(m, x):
        x = m.a(x)
        return m.head(pooled(x + torch.cat([F.relu(m.b(x)), F.relu(m.c(x))], 1)))

    return Net(run, a=conv_bn(3, 8), b=conv(8, 4), c=conv(8, 4), head=nn.Linear(8, 5))


@kind("full", {"a.weight:0": 16, "b.weight:0": 12}, inputs=image(4, 6), oracle=True)
def mlp():
    return chain(
        a=nn.Linear(6, 16), bn=nn.BatchNorm1d(16), act=nn.ReLU(), b=nn.Linear(16, 12), act2=nn.Tanh(),
        head=nn.Linear(12, 5),
    )  # fmt: skip


@kind("full", {"stem.conv.weight:0": 8, "deep.conv.weight:0": 6}, ends="near far")
def outputs_in_a_dict():
    def run(m, x):
        x = m.stem(x)
        return {"near": [m.near(pooled(x))], "more": {"far": m.far(pooled(m.deep(x))), "none": None}}

    return Net(run, stem=conv_bn(3, 8), deep=conv_bn(8, 6), near=nn.Linear(8, 5), far=nn.Linear(6, 4))


@dataclass
class Answer:
    """Not a tuple, not a dict."""

    logits: Tensor
    features: Tensor


@kind("partly", {"stem.conv.weight:0": 8})
def outputs_in_a_dataclass():
    """What leaves the model in an object of the user's own class must not be cut."""

    def run(m, x):
        features = m.deep(m.stem(x))
        return Answer(m.head(pooled(features)), features)

    return Net(run, stem=conv_bn(3, 8), deep=conv_bn(8, 6), head=nn.Linear(6, 4))


class Record:
    """A plain object, which no tree of containers looks into."""

    def __init__(self, **values):
        self.__dict__.update(values)


@kind("partly", {"stem.conv.weight:0": 8})
def outputs_in_an_object():
    def run(m, x):
        features = m.deep(m.stem(x))
        return Record(inner=[Record(features=features)], logits=m.head(pooled(features)))

    return Net(run, stem=conv_bn(3, 8), deep=conv_bn(8, 6), head=nn.Linear(6, 4))


@kind("partly", {"b.weight:0": 6})
def residual_with_the_input():
    def run(m, x):
        return m.head(pooled(F.relu(m.b(x + m.a(x)))))

    return Net(run, a=conv(3, 3), b=conv(3, 6), head=nn.Linear(6, 5))


@kind("full", {"a.conv.weight:0": 8}, produces="scale:1")
def gate_by_a_parameter():
    def run(m, x):
        return m.head(pooled(m.a(x) * m.scale))

    return Net(run, a=conv_bn(3, 8), scale=noise(1, 8, 1, 1), head=nn.Linear(8, 5))


@kind("full", {"a.conv.weight:0": 8})
def scale_in_a_buffer():
    def run(m, x):
        return m.head(pooled(m.a(x) * m.scale[:, None, None]))

    return Net(run, a=conv_bn(3, 8), scale=torch.rand(8), head=nn.Linear(8, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, oracle=True)
def prelu():
    return chain(
        a=conv(3, 8), act=nn.PReLU(8), b=conv(8, 6), act2=nn.PReLU(), gap=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        head=nn.Linear(6, 5),
    )  # fmt: skip


@kind("full", {"a.weight:0": 4, "up.weight:1": 6})
def transposed_in_groups():
    """Of 8 inputs in 2 groups those at the same place of each go together, and so do the 12 outputs."""
    return chain(
        a=conv(3, 8), act=nn.ReLU(), up=nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), bn=nn.BatchNorm2d(12),
        gap=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(12, 5),
    )  # fmt: skip


@kind("full", {"a.weight:0": 8})
def transposed_depthwise():
    return chain(
        a=conv(3, 8), act=nn.ReLU(), up=nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), bn=nn.BatchNorm2d(8),
        gap=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(8, 5),
    )  # fmt: skip


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, oracle=True)
def relus_in_place():
    act = nn.ReLU(inplace=True)

    def run(m, x):
        x = m.act(m.a(x)) * 0.5
        x = x + m.act(m.c(x))
        x.mul_(2.0)
        return m.head(pooled(F.leaky_relu_(m.b(x), 0.1)))

    return Net(run, a=conv(3, 8), c=conv(8, 8, 1), act=act, b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.conv.weight:0": 8, "b.conv.weight:0": 6}, oracle=True)
def upsampled_and_dropped():
    return chain(
        a=conv_bn(3, 8), up=nn.Upsample(scale_factor=2, mode="bilinear"), drop=nn.Dropout2d(0.5), b=conv_bn(8, 6),
        near=nn.Upsample(scale_factor=2), pool=nn.AvgPool2d(2), gap=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        head=nn.Linear(6, 5),
    )  # fmt: skip


@kind("full", {"a.weight:0": 6, "b.weight:0": 8})
def padded_by_other_means():
    return chain(
        a=conv(3, 6, padding_mode="reflect"), act=nn.ReLU(), pad=nn.ReplicationPad2d(1),
        b=conv(6, 8), zero=nn.ZeroPad2d(1), act2=nn.SiLU(), gap=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        head=nn.Linear(8, 5),
    )  # fmt: skip


@kind("full", {"a.weight:0": 6, "b.weight:0": 8})
def padded_in_a_circle():
    """Which torch does by copies into parts of an empty tensor."""
    return chain(
        a=conv(3, 6), act=nn.ReLU(), b=conv(6, 8, padding_mode="circular"), act2=nn.SiLU(), gap=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(8, 5),
    )  # fmt: skip


@kind("full", {"one.weight:0": 6, "two.weight:0": 5})
def stacked_and_averaged():
    def run(m, x):
        both = torch.stack([F.relu(m.one(x)), F.relu(m.other(x))])
        both = torch.stack([F.relu(m.two(y)) for y in both.unbind(0)], dim=-1)
        return m.head(both.mean(-1).amax((2, 3)))

    return Net(run, one=conv(3, 6), other=conv(3, 6, 1), two=conv(6, 5), head=nn.Linear(5, 4))


@kind("full", {"encode.weight:0": 6}, ends="", inputs=image(4, 9))
def autoencoder_with_tied_weights():
    def run(m, x):
        return F.linear(F.relu(m.encode(x)), m.encode.weight.t(), m.offset)

    return Net(run, encode=nn.Linear(9, 6), offset=noise(9))


@kind("full", {"stem.conv.weight:0": 8}, oracle=True)
def focus():
    """Space to depth by slices of height and width, then concatenation over channels."""

    def run(m, x):
        x = m.stem(x)
        corners = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return m.head(torch.cat(corners, 1)).mean((2, 3))

    return Net(run, stem=conv_bn(3, 8), head=conv(32, 5, 1))


@kind("full", {"a.conv.weight:0": 8}, oracle=True)
def coordinates_beside_channels():
    def run(m, x):
        x = m.a(x)
        rows = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1).expand(x.shape[0], 1, -1, x.shape[3])
        return m.head(torch.cat([x, rows, rows.transpose(2, 3)], 1)).mean((2, 3))

    return Net(run, a=conv_bn(3, 8), head=conv(10, 5))
