"""Convolutional networks as they are published, tiny."""

import torch
import torch.nn.functional as F
from channels.kinds import Net, chain, conv, conv_bn, image, kind, pooled
from torch import nn


@kind("full", {"a.conv.weight:0": 8, "b.conv.weight:0": 12}, oracle=True)
def vgg_bn():
    return chain(
        a=conv_bn(3, 8), pool=nn.MaxPool2d(2), b=conv_bn(8, 12), flat=nn.Flatten(), head=nn.Linear(12 * 16, 5)
    )


def basic(before, inside, after, stride=1):
    def run(m, x):
        aside = m.down(x) if hasattr(m, "down") else x
        return F.relu(m.second(F.relu(m.first(x))) + aside)

    def half(one, other, step):
        return chain(conv=conv(one, other, bias=False, stride=step), bn=nn.BatchNorm2d(other))

    block = Net(run, first=half(before, inside, stride), second=half(inside, after, 1))
    if stride > 1 or before != after:
        block.down = chain(conv=conv(before, after, 1, stride=stride, bias=False), bn=nn.BatchNorm2d(after))
    return block


@kind(
    "full",
    {
        "stem.conv.weight:0": 8,
        "one.first.conv.weight:0": 6,
        "two.first.conv.weight:0": 10,
        "two.down.conv.weight:0": 12,
    },
    oracle=True,
)
def resnet():
    def run(m, x):
        return m.head(pooled(m.two(m.one(m.stem(x)))))

    return Net(run, stem=conv_bn(3, 8), one=basic(8, 6, 8), two=basic(8, 10, 12, 2), head=nn.Linear(12, 5))


@kind("full", {"stem.weight:0": 8, "a.weight:0": 4, "b.weight:0": 6}, oracle=True)
def preactivation_bottleneck():
    def run(m, x):
        x = m.stem(x)
        y = m.a(F.relu(m.bn1(x)))
        y = m.b(F.relu(m.bn2(y)))
        y = m.c(F.relu(m.bn3(y)))
        return m.head(pooled(F.relu(m.bn4(x + y))))

    return Net(
        run,
        stem=conv(3, 8),
        bn1=nn.BatchNorm2d(8),
        a=conv(8, 4, 1),
        bn2=nn.BatchNorm2d(4),
        b=conv(4, 6),
        bn3=nn.BatchNorm2d(6),
        c=conv(6, 8, 1),
        bn4=nn.BatchNorm2d(8),
        head=nn.Linear(8, 5),
    )


def inverted(before, inside, after, stride=1):
    def run(m, x):
        y = m.project(m.depthwise(m.expand(x)))
        return x + y if m.same else y

    block = Net(
        run,
        expand=conv_bn(before, inside, 1, bias=False),
        depthwise=conv_bn(inside, inside, groups=inside, stride=stride, bias=False),
        project=chain(conv=conv(inside, after, 1, bias=False), bn=nn.BatchNorm2d(after)),
    )
    block.same = before == after and stride == 1
    return block


@kind(
    "full",
    {
        "stem.conv.weight:0": 8,
        "one.expand.conv.weight:0": 16,
        "two.expand.conv.weight:0": 12,
        "two.project.conv.weight:0": 10,
        "last.conv.weight:0": 14,
    },
    oracle=True,
)
def mobilenet_v2():
    return chain(
        stem=conv_bn(3, 8, stride=2),
        one=inverted(8, 16, 8),
        two=inverted(8, 12, 10, 2),
        last=conv_bn(10, 14, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        drop=nn.Dropout(0.2),
        head=nn.Linear(14, 5),
    )


@kind("full", {"stem.weight:0": 6, "a.weight:0": 4, "b.weight:0": 5, "squeeze.weight:0": 8}, oracle=True)
def densenet():
    def run(m, x):
        x = m.stem(x)
        x = torch.cat([x, m.a(F.relu(m.bn1(x)))], 1)
        x = torch.cat([x, m.b(F.relu(m.bn2(x)))], 1)
        x = F.avg_pool2d(m.squeeze(F.relu(m.bn3(x))), 2)
        return m.head(pooled(F.relu(x)))

    norms = {f"bn{i}": nn.BatchNorm2d(n) for i, n in ((1, 6), (2, 10), (3, 15))}
    return Net(run, stem=conv(3, 6), a=conv(6, 4), b=conv(10, 5), squeeze=conv(15, 8, 1), head=nn.Linear(8, 5), **norms)


@kind("full", {"stem.conv.weight:0": 8, "a.conv.weight:0": 4, "b.conv.weight:0": 6})
def resnext():
    """Channels at the same place of each of the four groups go together: 16 are 4 channels, and 24 are 6."""

    def run(m, x):
        x = m.stem(x)
        return m.head(pooled(x + m.c(m.b(m.a(x)))))

    return Net(
        run,
        stem=conv_bn(3, 8),
        a=conv_bn(8, 16, 1),
        b=conv_bn(16, 24, groups=4),
        c=conv(24, 8, 1),
        head=nn.Linear(8, 5),
    )


@kind(
    "full",
    {"down1.conv.weight:0": 6, "down2.conv.weight:0": 10, "up.weight:1": 5, "join.conv.weight:0": 7},
    oracle=True,
)
def unet():
    def run(m, x):
        top = m.down1(x)
        low = m.down2(F.max_pool2d(top, 2))
        return m.head(m.join(torch.cat([top, m.up(low)], 1)))

    return Net(
        run,
        down1=conv_bn(3, 6),
        down2=conv_bn(6, 10),
        up=nn.ConvTranspose2d(10, 5, 2, stride=2),
        join=conv_bn(11, 7),
        head=conv(7, 2, 1),
    )


@kind("full", {"a.conv.weight:0": 4, "c1.weight:0": 5, "last.conv.weight:0": 6})
def c2f():
    """Halves of one convolution, of which one goes on: both are cut at the same places."""

    def run(m, x):
        left, right = m.a(x).chunk(2, 1)
        more = right + F.silu(m.c2(F.silu(m.c1(right))))
        return m.head(pooled(m.last(torch.cat([left, right, more], 1))))

    return Net(
        run, a=conv_bn(3, 8), c1=conv(4, 5), c2=conv(5, 4), last=conv_bn(12, 6, 1), head=nn.Linear(6, 5)
    )


@kind("full", {"a.weight:0": 4, "b.weight:0": 6})
def pixel_shuffle():
    return chain(
        a=conv(3, 16), up=nn.PixelShuffle(2), act=nn.ReLU(), b=conv(4, 6), gap=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(6, 5),
    )  # fmt: skip


@kind("full", {"a.weight:0": 4, "b.weight:0": 6})
def pixel_unshuffle():
    return chain(
        a=conv(3, 4), down=nn.PixelUnshuffle(2), act=nn.ReLU(), b=conv(16, 6), gap=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(6, 5),
    )  # fmt: skip


@kind("full", {"stem.conv.weight:0": 6, "point.weight:0": 5})
def depthwise_multiplier():
    def run(m, x):
        return m.head(pooled(F.relu(m.point(F.relu(m.depth(m.stem(x)))))))

    return Net(
        run, stem=conv_bn(3, 6), depth=conv(6, 12, groups=6), point=conv(12, 5, 1), head=nn.Linear(5, 4)
    )


@kind("full", {"stem.conv.weight:0": 4, "c1.conv.weight:0": 5, "last.conv.weight:0": 6})
def shufflenet():
    def shuffle(x):
        batch, channels, high, wide = x.shape
        return x.view(batch, 2, channels // 2, high, wide).transpose(1, 2).reshape(batch, channels, high, wide)

    def run(m, x):
        left, right = m.stem(x).chunk(2, dim=1)
        return m.head(pooled(m.last(shuffle(torch.cat([left, m.c2(m.c1(right))], 1)))))

    return Net(
        run, stem=conv_bn(3, 8), c1=conv_bn(4, 5), c2=conv_bn(5, 4), last=conv_bn(8, 6), head=nn.Linear(6, 5)
    )


@kind("full", {"a.conv.weight:0": 6, "last.conv.weight:0": 5}, oracle=True)
def ghost():
    def run(m, x):
        x = m.a(x)
        return m.head(pooled(m.last(torch.cat([x, m.cheap(x)], 1))))

    return Net(run, a=conv_bn(3, 6), cheap=conv_bn(6, 6, groups=6), last=conv_bn(12, 5), head=nn.Linear(5, 4))


@kind("full", {"a.weight:0": 6, "b.weight:0": 8}, inputs=image(3, 4, 12), oracle=True)
def conv1d():
    return chain(
        a=nn.Conv1d(4, 6, 3), bn=nn.BatchNorm1d(6), act=nn.ReLU(), b=nn.Conv1d(6, 8, 3, dilation=2), act2=nn.ELU(),
        pool=nn.AdaptiveMaxPool1d(2), flat=nn.Flatten(), head=nn.Linear(16, 5),
    )  # fmt: skip


@kind("full", {"a.weight:0": 4, "b.weight:0": 6}, inputs=image(2, 2, 4, 6, 6), oracle=True)
def conv3d():
    return chain(
        a=nn.Conv3d(2, 4, 3, padding=1), bn=nn.BatchNorm3d(4), act=nn.ReLU(), pool=nn.MaxPool3d(2),
        b=nn.Conv3d(4, 6, 1), act2=nn.Hardswish(), gap=nn.AdaptiveAvgPool3d(1), flat=nn.Flatten(), head=nn.Linear(6, 5),
    )  # fmt: skip
