"""Layers of every kind, all from vectors of eight to vectors of eight."""

from collections.abc import Callable

from torch import Tensor, nn


class Shaped(nn.Module):
    """A module between vectors of eight: they are reshaped for it, and what comes out is flat again."""

    def __init__(self, inner: nn.Module, *shape: int) -> None:
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), *self.shape)
        y = self.inner(x, x, x) if isinstance(self.inner, nn.MultiheadAttention) else self.inner(x)
        return (y[0] if isinstance(y, tuple) else y).flatten(1)


def tied() -> nn.Module:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    layers[2].weight = layers[0].weight
    return layers


def twice() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.Tanh(), layer)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 8),
    "bottleneck": lambda: nn.Sequential(nn.Linear(8, 3, bias=False), nn.ReLU(), nn.Linear(3, 8)),
    "normed": lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
    "conv1d": lambda: Shaped(nn.Conv1d(4, 4, 3, padding=1), 4, 2),
    "conv2d": lambda: Shaped(nn.Conv2d(2, 2, 3, padding=1), 2, 2, 2),
    "conv3d": lambda: Shaped(nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)), 4, 2, 1, 1),
    "grouped": lambda: Shaped(nn.Conv1d(4, 4, 3, padding=1, groups=2), 4, 2),
    "depthwise": lambda: Shaped(nn.Conv2d(8, 8, 1, groups=8), 8, 1, 1),
    "transposed1d": lambda: Shaped(nn.ConvTranspose1d(4, 4, 3, padding=1), 4, 2),
    "transposed2d": lambda: Shaped(nn.ConvTranspose2d(2, 2, 3, padding=1), 2, 2, 2),
    "transposed3d": lambda: Shaped(nn.ConvTranspose3d(4, 4, 1, groups=2), 4, 2, 1, 1),
    "rnn": lambda: Shaped(nn.RNN(4, 4, batch_first=True), 2, 4),
    "lstm": lambda: Shaped(nn.LSTM(4, 2, batch_first=True, bidirectional=True), 2, 4),
    "projected": lambda: Shaped(nn.LSTM(4, 5, proj_size=4, batch_first=True), 2, 4),
    "gru": lambda: Shaped(nn.GRU(4, 4, num_layers=2, batch_first=True), 2, 4),
    "attention": lambda: Shaped(nn.MultiheadAttention(4, 2, batch_first=True), 2, 4),
    "biased": lambda: Shaped(nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True), 2, 4),
    "tied": tied,
    "twice": twice,
}
