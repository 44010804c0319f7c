"""A network of the size of ResNet-50, for measuring; not in the zoo, for it is not tiny."""

import torch.nn.functional as F
from channels.kinds import Net, chain, conv, conv_bn
from torch import nn


def resnet50(width=64):
    """Stages of 3, 4, 6 and 3 bottlenecks, 224 x 224 pictures, a thousand classes."""

    def bottleneck(before, inside, stride):
        def run(m, x):
            return F.relu(m.c(m.b(m.a(x))) + (m.down(x) if hasattr(m, "down") else x))

        after = inside * 4
        block = Net(
            run,
            a=conv_bn(before, inside, 1, bias=False),
            b=conv_bn(inside, inside, stride=stride, bias=False),
            c=chain(conv=conv(inside, after, 1, bias=False), bn=nn.BatchNorm2d(after)),
        )
        if before != after:
            block.down = chain(conv=conv(before, after, 1, stride=stride, bias=False), bn=nn.BatchNorm2d(after))
        return block

    stages, before = [], width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            stages.append(bottleneck(before, width << stage, 2 if stage and not block else 1))
            before = 4 * width << stage
    stem = chain(conv=nn.Conv2d(3, width, 7, 2, 3, bias=False), bn=nn.BatchNorm2d(width), act=nn.ReLU())
    return chain(
        stem=stem, pool=nn.MaxPool2d(3, 2, 1), stages=nn.Sequential(*stages), gap=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(before, 1000),
    )  # fmt: skip
