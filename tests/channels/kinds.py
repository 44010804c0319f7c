"""What a kind of model is, and what such models are made of; the kinds are in the files zoo_*.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ENTERED: list["Kind"] = []


@dataclass(frozen=True, eq=False)
class Kind:
    """A model, what goes into it, and what is expected of it.

    Attributes:
        name: of the function that makes the model.
        make: the model, from the global random state.
        inputs: the positional inputs of a forward pass.
        expected: "full": all that layers produce can be cut, but for ``ends``; "partly"; "frozen": nothing.
        atoms: exactly these: one axis of each, as "tensor:dim", and how many channels it has.
        lossy: those of ``atoms`` where to remove a channel is no identity, not even of a silent one.
        ends: the layers whose outputs leave the model.
        produces: axes along which tensors that are no layers' produce channels, as "tensor:dim".
        consumers: silence what consumes a channel, since a silent producer does not make it zero.
        oracle: torch-pruning finds groups here too, the same ones.
        slow: it takes seconds, for what it imports.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    expected: str
    atoms: Mapping[str, int] = field(default_factory=dict)
    lossy: frozenset[str] = frozenset()
    ends: tuple[str, ...] = ("head",)
    produces: frozenset[str] = frozenset()
    consumers: bool = False
    oracle: bool = False
    slow: bool = False

    def model(self) -> nn.Module:
        """A fresh one, with every parameter and statistic away from the values that hide mistakes."""
        torch.manual_seed(0)
        model = self.make()
        stir(model)
        return model


def image(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    """A batch of noise of this shape, the same whenever it is asked for."""
    return lambda: (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


def tokens(vocabulary: int, *shape: int) -> Callable[[], tuple[Tensor, ...]]:
    """A batch of word numbers."""
    return lambda: (torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1)),)


PICTURE = image(2, 3, 8, 8)


def kind(
    expected: str,
    atoms: Mapping[str, int],
    *,
    inputs: Callable[[], tuple[Any, ...]] = PICTURE,
    lossy: str = "",
    ends: str = "head",
    produces: str = "",
    consumers: bool = False,
    oracle: bool = False,
    slow: bool = False,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enter a function that makes a model into the zoo; lists are strings with spaces."""

    def enter(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        before = [one.make.__code__.co_filename for one in ENTERED if one.name == make.__name__]
        assert before in ([], [make.__code__.co_filename]), f"two kinds are called {make.__name__}"
        if before:  # pytest imports each file once more, in search of doctests
            return make
        ENTERED.append(
            Kind(
                make.__name__,
                make,
                inputs,
                expected,
                atoms,
                frozenset(lossy.split()),
                tuple(ends.split()),
                frozenset(produces.split()),
                consumers,
                oracle,
                slow,
            )
        )
        return make

    return enter


class Net(nn.Module):
    """Modules, parameters and buffers by name, and a function that uses them."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def chain(**parts: nn.Module) -> nn.Sequential:
    """Modules one after the other, by name."""
    made = nn.Sequential()
    for name, part in parts.items():
        made.add_module(name, part)
    return made


def conv(before: int, after: int, size: int = 3, **settings: Any) -> nn.Conv2d:
    """A convolution that keeps height and width, where it has no stride."""
    return nn.Conv2d(before, after, size, padding=size // 2, **settings)


def conv_bn(before: int, after: int, size: int = 3, **settings: Any) -> nn.Sequential:
    """Convolution, batch norm, relu."""
    return chain(conv=conv(before, after, size, **settings), bn=nn.BatchNorm2d(after), act=nn.ReLU())


def pooled(x: Tensor) -> Tensor:
    """Channels of a batch of pictures, averaged over each."""
    return x.mean((2, 3))


def noise(*shape: int) -> nn.Parameter:
    """A parameter of noise."""
    return nn.Parameter(torch.randn(shape))


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Move norms, biases and statistics off 0 and 1, where a wrong index would not be seen."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or tensor.dim() != 1:
            continue
        if name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("running_mean"):
            tensor.copy_(torch.randn_like(tensor) * 0.3)
        elif name.endswith("weight"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("bias"):
            tensor.copy_(torch.randn_like(tensor) * 0.3)
