"""Unusual code that a model may well contain."""

import torch
import torch.nn.functional as F
from channels.kinds import Net, chain, conv, conv_bn, image, kind, noise, pooled
from torch import nn
from torch.utils.checkpoint import checkpoint


class Clipped(torch.autograd.Function):
    """A user's own function with a gradient of its own."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clamp(0, 2)

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return gradient * (x > 0)


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, oracle=True)
def custom_function():
    def run(m, x):
        return m.head(pooled(Clipped.apply(m.b(Clipped.apply(m.a(x))))))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, slow=True)
def checkpointed():
    def run(m, x):
        x = checkpoint(lambda y: F.relu(m.b(F.relu(m.a(y)))), x, use_reentrant=False)
        return m.head(pooled(x))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"weight:0": 8, "b.weight:0": 6}, produces="weight:0 column:0")
def parameter_through_views():
    """A layer that keeps its filters flat, [out, in * 9], and its bias as a column."""

    def run(m, x):
        x = F.conv2d(x, m.weight.view(-1, 3, 3, 3), m.column[:, 0], padding=1)
        return m.head(pooled(F.relu(m.b(F.relu(x)))))

    return Net(run, weight=noise(8, 27), column=noise(8, 1), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"first:0": 8, "second:1": 6}, inputs=image(4, 5), produces="first:0 second:1")
def parameters_by_hand():
    """One matrix is used as it is, the other turned."""

    def run(m, x):
        return torch.addmm(m.offset, F.relu(F.relu(x @ m.first.T) @ m.second), m.third)

    return Net(run, first=noise(8, 5), second=noise(8, 6), third=noise(6, 4), offset=noise(4))


@kind("full", {"a.weight:0": 8, "rows.0:0": 6}, inputs=image(4, 5), produces="rows.0:0")
def parameters_in_a_list():
    def run(m, x):
        x = F.relu(m.a(x))
        return m.head(F.relu(F.linear(x, m.rows[0], m.named["bias"])))

    rows, named = nn.ParameterList([noise(6, 8)]), nn.ParameterDict({"bias": nn.Parameter(torch.zeros(6))})
    return Net(run, a=nn.Linear(5, 8), rows=rows, named=named, head=nn.Linear(6, 4))


class Running(nn.Module):
    """An average of its channels, kept in buffers and used as a centre; with an attribute for their number."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.register_buffer("average", torch.zeros(width))
        self.register_buffer("seen", torch.zeros(width), persistent=False)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.average.lerp_(x.detach().float().mean((0, 2, 3)), 0.1)
            self.steps += 1
        assert x.shape[1] == self.width
        return x - self.average.view(1, self.width, 1, 1)


@kind("full", {"a.weight:0": 8, "b.weight:0": 6})
def average_in_a_buffer():
    """The attribute must follow, or the view fails."""
    return chain(
        a=conv(3, 8), run=Running(8), act=nn.ReLU(), b=conv(8, 6), act2=nn.ReLU(), gap=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(6, 5),
    )  # fmt: skip


@kind("partly", {"b.weight:0": 6}, ends="head")
def fourier():
    """Complex numbers in the way."""

    def run(m, x):
        x = torch.fft.irfft2(torch.fft.rfft2(F.relu(m.a(x))) * torch.view_as_complex(m.filter), s=(8, 8))
        return m.head(pooled(F.relu(m.b(x))))

    return Net(run, a=conv(3, 8), filter=noise(8, 8, 5, 2), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 4})
def maxout():
    """Neighbours of `b` compete in pairs; a pair is a channel."""

    def run(m, x):
        x = m.b(F.relu(m.a(x)))
        x = x.view(x.shape[0], -1, 2, 8, 8).amax(2)
        return m.head(pooled(x))

    return Net(run, a=conv(3, 8), b=conv(8, 8), head=nn.Linear(4, 5))


@kind("partly", {"b.weight:0": 6})
def channels_rolled():
    def run(m, x):
        return m.head(pooled(F.relu(m.b(torch.roll(F.relu(m.a(x)), 1, dims=1)))))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"a.weight:0": 8, "b.weight:0": 6}, oracle=True)
def pictures_rolled_and_flipped():
    def run(m, x):
        x = torch.roll(F.relu(m.a(x)), (1, -1), dims=(2, 3)).flip(-1)
        return m.head(pooled(F.relu(m.b(x))))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6})
def channels_in_a_fixed_order():
    """The order is a buffer of channel numbers: when one goes, the numbers are wrong."""

    def run(m, x):
        return m.head(pooled(F.relu(m.b(F.relu(m.a(x))[:, m.order]))))

    return Net(run, a=conv(3, 8), order=torch.randperm(8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("full", {"stem.weight:0": 4, "inside.weight:0": 5})
def shortcut_padded_with_zeros():
    """Option A of the ResNets for CIFAR: two new channels on either side; of `out` those in the middle can go."""

    def run(m, x):
        x = F.relu(m.stem(x))
        y = m.out(F.relu(m.inside(x)))
        return m.head(pooled(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))))

    return Net(
        run, stem=conv(3, 4), inside=conv(4, 5, stride=2), out=conv(5, 8), head=nn.Linear(8, 5)
    )


@kind("partly", {"b.weight:0": 6})
def cumulative_over_channels():
    def run(m, x):
        return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).cumsum(1)))))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6})
def sorted_channels():
    def run(m, x):
        return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).sort(1)[0]))))

    return Net(run, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6})
def strongest_channels_only():
    def run(m, x):
        return m.head(pooled(F.relu(m.b(F.relu(m.a(x)).topk(5, 1)[0]))))

    return Net(run, a=conv(3, 8), b=conv(5, 6), head=nn.Linear(6, 5))


@kind("partly", {"code:0": 4, "b.weight:0": 6}, lossy="code:0", produces="code:0")
def weights_made_by_another_layer():
    """A hypernetwork: the filters of the second convolution are the outputs of a linear layer."""

    def run(m, x):
        made = m.maker(torch.tanh(m.code)).view(8, 3, 3, 3)
        return m.head(pooled(F.relu(m.b(F.relu(F.conv2d(x, made, padding=1))))))

    return Net(run, code=noise(4), maker=nn.Linear(4, 216), b=conv(8, 6), head=nn.Linear(6, 5))


@kind("partly", {"b.weight:0": 6})
def products_of_all_pairs():
    """Bilinear pooling: [channels, channels] flattened; a channel owns a row and a column."""

    def run(m, x):
        x = F.relu(m.a(x)).flatten(2)
        return m.head(F.relu(m.b((x @ x.transpose(1, 2) / 64).flatten(1))))

    return Net(run, a=conv(3, 8), b=nn.Linear(64, 6), head=nn.Linear(6, 5))


@kind("full", {"a.conv.weight:0": 8, "weight:0": 6}, produces="weight:0")
def patches_by_unfold():
    """Convolution by im2col: [batch, channels * 9, places]."""

    def run(m, x):
        return m.head(F.relu(m.weight @ F.unfold(m.a(x), 3, padding=1)).mean(-1))

    return Net(run, a=conv_bn(3, 8), weight=noise(6, 72), head=nn.Linear(6, 5))
