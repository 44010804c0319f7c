"""Sizes in the code, control flow, shared state: what breaks tools that cut."""

import torch
import torch.nn.functional as F
from channels.kinds import Net, chain, conv, conv_bn, image, kind, pooled
from torch import nn


@kind("partly", {"b.weight:0": 6})
def slice_with_a_number():
    def run(m, x):
        x = F.relu(m.a(x))
        return m.head(pooled(F.relu(m.b(x[:, :4] + x[:, 4:]))))

    return Net(run, a=conv(3, 8), b=conv(4, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 4, "b.weight:0": 6})
def slice_by_shape():
    def run(m, x):
        x = F.relu(m.a(x))
        half = x.shape[1] // 2
        return m.head(pooled(F.relu(m.b(x[:, :half] + x[:, half:]))))

    return Net(run, a=conv(3, 8), b=conv(4, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6}, inputs=image(2, 5))
def one_channel_by_number():
    """A channel with a meaning: others may not go either, or it gets another number."""

    def run(m, x):
        x = F.relu(m.a(x))
        return m.head(F.relu(m.b(x * torch.sigmoid(x[:, 3:4]))))

    return Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6}, inputs=image(2, 5))
def last_channel_by_number():
    """Index -1 exists whatever is cut: only the values tell."""

    def run(m, x):
        x = F.relu(m.a(x))
        return m.head(F.relu(m.b(x * torch.sigmoid(x[:, -1:]))))

    return Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6}, inputs=image(2, 5))
def view_with_numbers():
    """A batch of any size and 8 x 4: 32 wide, for good."""

    def run(m, x):
        x = F.relu(m.a(x)).view(-1, 8, 4).mean(1)
        return m.head(F.relu(m.b(x)))

    return Net(run, a=nn.Linear(5, 32), b=nn.Linear(4, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 4, "b.weight:0": 6})
def capsules():
    """Vectors of 4, and the number of them from the shape: whole capsules can go."""

    def run(m, x):
        x = m.a(x)
        x = x.view(x.shape[0], -1, 4, 64)
        square = x.pow(2).sum(2, keepdim=True)
        x = x * square / (1 + square) / (square + 1e-6).sqrt()
        return m.head(F.relu(m.b(x.mean(-1).flatten(1))))

    return Net(run, a=conv(3, 16), b=nn.Linear(16, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6})
def split_with_numbers():
    def run(m, x):
        one, other = F.relu(m.a(x)).split([3, 5], 1)
        return m.head(pooled(F.relu(m.b(torch.cat([other, one], 1)))))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


class Sized(nn.Module):
    """Knows its width by heart, in a tuple and in a number, under names of its own."""

    def __init__(self, width):
        super().__init__()
        self.expected = (width, 8, 8)
        self.n = width
        self.scale = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        assert tuple(x.shape[1:]) == self.expected
        return x * self.scale.reshape(self.n, 1, 1)


@kind("partly", {"b.weight:0": 6}, produces="sized.scale:0")
def sizes_in_attributes():
    """No rule can know what these names mean; where they are not followed the probe must find out."""
    return chain(
        a=conv(3, 8), sized=Sized(8), act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), gap=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(6, 5),
    )  # fmt: skip


@kind("partly", {"stem.weight:0": 8, "one.weight:0": 6}, lossy="stem.weight:0")
def one_of_two_branches():
    """The branch that is not taken here reads the same channels; only a run that takes it would show that."""

    def run(m, x):
        x = F.relu(m.stem(x))
        return m.head(pooled(m.one(x) if x.mean() > -1 else m.other(x)))

    return Net(run, stem=conv(3, 8), one=conv(8, 6), other=conv(8, 6, 1), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 8, "mix.weight:0": 8, "b.weight:0": 6}, oracle=True)
def the_same_layer_under_two_names():
    def run(m, x):
        x = F.relu(m.a(x))
        x = F.relu(m.mix(x)) + F.relu(m.alias(F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]))
        return m.head(pooled(F.relu(m.b(x))))

    mix = conv(8, 8)
    return Net(run, a=conv(3, 8), mix=mix, alias=mix, b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, consumers=True, oracle=True)
def constant_added():
    """A channel of zeros is none at its consumer: there only the consumer can be silenced."""

    def run(m, x):
        x = torch.sigmoid(m.a(x)) + 1
        return m.head(pooled(torch.exp(m.b(x) * 0.1)))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6})
def channels_last():
    model = chain(
        a=conv(3, 8), bn=nn.BatchNorm2d(8), act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), gap=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(6, 5),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)


@kind("frozen", {}, ends="only")
def one_layer():
    return chain(only=conv(3, 8))


@kind("frozen", {}, inputs=image(2, 5), ends="head")
def everything_flows_out():
    def run(m, x):
        x = m.a(x)
        return x, m.head(x)

    return Net(run, a=nn.Linear(5, 8), head=nn.Linear(8, 3))


@kind("partly", {"deep.weight:0": 6})
def a_distance_to_the_input():
    """Eight channels meet eight rows of the picture only by accident of size: a product, not a tie of layers."""

    def run(m, x):
        x = F.relu(m.a(x))
        x = x.transpose(1, 2) * x
        return m.head(pooled(F.relu(m.deep(x))))

    return Net(run, a=conv(3, 8), deep=conv(8, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6})
def norm_over_batch_and_channels():
    """Two pictures' channels in one axis of 16, for a norm that knows the batch's size."""

    def run(m, x):
        x = F.relu(m.a(x))
        x = m.bn(x.reshape(1, 16, 8, 8)).reshape(2, 8, 8, 8)
        return m.head(pooled(F.relu(m.b(x))))

    return Net(run, a=conv(3, 8), bn=nn.BatchNorm2d(16), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.conv.weight:0": 8, "b.weight:0": 6})
def repeated_channels():
    def run(m, x):
        return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).repeat(1, 2, 1, 1)))))

    return Net(run, a=conv_bn(3, 8), b=conv(16, 6), head=nn.Linear(6, 5))
