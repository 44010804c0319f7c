"""What removed channels gave to the layers that read them is added to what comes next."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.channels.activations import InputMoments, features
from lightning_sparse.channels.atoms import Graph, Kept
from lightning_sparse.channels.parts import layout
from lightning_sparse.core.select import CONVS, TRANSPOSED, clean, inputs_first

_BATCHNORM = nn.modules.batchnorm._BatchNorm
_CONSTANT = 1e-10  # variance over squared mean, of float32 numbers that are equal


@dataclass(frozen=True)
class Folding:
    """What was written, and what could not be.

    Attributes:
        written: names of the biases and running means that changed.
        notes: a sentence for each layer that lost something.
        saved: the tensors that changed, with their values before.
    """

    written: tuple[str, ...]
    notes: tuple[str, ...]
    saved: tuple[tuple[Tensor, Tensor], ...]

    @torch.no_grad()
    def undo(self) -> None:
        """Put the old values back; only before channels are cut."""
        for tensor, value in self.saved:
            tensor.copy_(value)


class Calibration:
    """Folds the mean of removed channels into the bias of the layers that read them, or into the next running mean.

    A channel with gamma 0 and beta not 0 is no zero but the constant ``act(beta)``: taking it away shifts what follows.
    Seen in a pass of the model, its mean ``m`` shifts a reader by ``W m``, which the reader's bias takes up; without a
    bias, the running mean of the BatchNorm that gets the reader's very output. For channels that vary it is their mean
    that is replaced (Ye et al. 2018, https://arxiv.org/abs/1802.00124; Berisha et al. 2025,
    https://arxiv.org/abs/2507.12988).

    Exact for constant channels before a Linear or a convolution without zero padding; at borders that are padded with
    zeros, and for transposed convolutions, whose pixels see different parts of the kernel, the shift of the interior,
    or the mean shift, is taken everywhere.

    Args:
        model: any module.
        graph: of this model.

    Example:
        >>> from lightning_sparse.channels.atoms import Atom, Place
        >>> model, index = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), torch.arange(2)[:, None]
        >>> atom = Atom("0", (Place("0.weight", 0, index), Place("1.weight", 1, index)), lossy=False)
        >>> graph = Graph((atom,), {}, {}, {}, {"0.weight": (2, 1), "1.weight": (1, 2)})
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.tensor([[1.0, 2.0]])), model[1].bias.zero_()
        >>> calibration = Calibration(model, graph)
        >>> with calibration:
        ...     _ = model[1](torch.tensor([[1.0, 3.0], [5.0, 3.0]]))
        >>> calibration.fold({"0": torch.tensor([0])}).written, model[1].bias.tolist()  # without the 3, at weight 2
        (('1.bias',), [6.0])
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model, self._layout = model, layout(model, graph)
        self._moments = InputMoments(self._layout)
        self._names = {id(module): clean(name) for name, module in model.named_modules()}
        self._norms = [module for module in model.modules() if isinstance(module, _BATCHNORM)]
        self._outputs: dict[int, tuple[weakref.ref[Tensor], nn.Module]] = {}
        self._fed: dict[int, set[nn.Module | None]] = {}  # by BatchNorm: whose outputs it was given
        self._handles: list[Any] = []

    def open(self) -> None:
        """Begin to watch forward passes."""
        if not self._handles:
            self._moments.open()
            biasless = [m for m in self._moments.readers if getattr(m, "bias", None) is None]
            self._handles = [module.register_forward_hook(self._left) for module in biasless]
            self._handles += [norm.register_forward_pre_hook(self._arrived) for norm in self._norms]

    def close(self) -> None:
        """Take the hooks off; what was seen stays."""
        self._moments.close()
        for handle in self._handles:
            handle.remove()
        self._handles, self._outputs = [], {}

    def __enter__(self) -> "Calibration":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._outputs[id(output)] = (weakref.ref(output), module)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _arrived(self, module: nn.Module, args: Any) -> None:
        reference, source = self._outputs.get(id(args[0]) if args else 0, (None, None))
        fed = source if reference is not None and reference() is args[0] else None
        self._fed.setdefault(id(module), set()).add(fed)

    @torch.no_grad()
    def fold(self, kept: Kept, *, constant_only: bool = False) -> Folding:
        """Write the shifts; call it before channels are cut, with what will stay.

        Across processes of ``torch.distributed`` means are those of all, so all must ask.

        Args:
            kept: the channels that stay, by axis.
            constant_only: leave channels out that were not constant: their mean is of inputs that may not be typical.
        """
        self._moments.agree()
        written: dict[str, tuple[Tensor, Tensor]] = {}
        notes = []
        for module, given in self._removed(kept, constant_only).items():
            name = self._names[id(module)]
            sinks = self._sinks(module) if _known(module) else None
            if sinks is None:
                notes.append(
                    f"{name}: the mean of what was removed is lost, for it has no bias and no BatchNorm of its own"
                )
                continue
            shift = _shift(module, given)
            for tensor, sign, sink in sinks:
                written.setdefault(sink, (tensor, tensor.clone()))
                tensor.add_(shift.to(tensor) * sign)
        return Folding(tuple(written), tuple(notes), tuple(written.values()))

    def _removed(self, kept: Kept, constant_only: bool) -> Mapping[nn.Module, Tensor]:
        """What removed channels give to each reader: [input features], zero for those that stay."""
        found: dict[nn.Module, Tensor] = {}
        for atom, stays in kept.items():
            for slot in self._layout[atom]:
                moments = self._moments.of(slot.module)
                if slot.role != "in" or moments is None:
                    continue
                gone = torch.ones(len(slot.place.index), dtype=torch.bool)
                gone[stays] = False
                index = features(slot)[gone].flatten().to(moments.mean.device)
                mean = moments.mean[index]
                if constant_only:
                    same = (moments.variance()[index] <= _CONSTANT * mean.square()) & (moments.count > 1)
                    mean = torch.where(same, mean, 0)
                if bool(mean.any()):
                    found.setdefault(slot.module, torch.zeros_like(moments.mean))[index] = mean
        return found

    def _sinks(self, module: nn.Module) -> list[tuple[Tensor, int, str]] | None:
        """Tensors that can take up a shift of the module's output, their signs and names; None if there is no place.

        A BatchNorm without running statistics takes out any shift by itself: then there is nothing to write.
        """
        name = self._names[id(module)]
        if (bias := module._parameters.get("bias")) is not None:
            return [(bias, 1, f"{name}.bias" if name else "bias")]
        norms = [norm for norm in self._norms if self._fed.get(id(norm)) == {module}]
        tracked = [(norm.running_mean, -1, f"{self._names[id(norm)]}.running_mean") for norm in norms]
        return [(mean, sign, sink) for mean, sign, sink in tracked if mean is not None] if norms else None


def _known(module: nn.Module) -> bool:
    """Whether the layer is linear in what it is given: a convolution, a Linear or what says that it is one."""
    if isinstance(module, CONVS + TRANSPOSED) or inputs_first(module):
        return True
    widths = (getattr(module, "out_features", 0), getattr(module, "in_features", 0))
    return tuple(getattr(module, "weight", torch.empty(0)).shape) == widths


def _shift(module: nn.Module, given: Tensor) -> Tensor:
    """What a layer puts out for a constant input [features], without its bias: [outputs]."""
    weight: Tensor = module.weight.detach().float()  # type: ignore[operator]
    if not isinstance(module, CONVS + TRANSPOSED):
        return given @ weight if inputs_first(module) else weight @ given
    groups = module.groups
    parts = given.view(groups, 1, -1)
    if isinstance(module, TRANSPOSED):
        kernel = weight.flatten(2).sum(2) / prod(module.stride)
        return (parts @ kernel.view(groups, -1, kernel.shape[1])).flatten()
    kernel = weight.flatten(2).sum(2).view(groups, -1, weight.shape[1])
    return (parts @ kernel.transpose(1, 2)).flatten()
