"""Places where activations are quantized: a range, and the hook that applies it."""

from typing import Any

import torch
from torch import Tensor, nn

_OUTWARD = torch.tensor([-torch.inf, torch.inf])


class Switches:
    """What all places of a model have in common.

    Attributes:
        open: whether places do anything.
        calibrating: whether ranges are averages of what is seen, in any mode, and activations stay as they are.
        moving: whether training moves ranges.
        pace: how far one look moves a range.
    """

    def __init__(self, device: torch.device) -> None:
        self.open, self.calibrating, self.moving, self.pace = True, False, True, 0.01
        # torch asks for tensors: turning these needs no other compiled code
        self.yes = torch.ones(1, dtype=torch.long, device=device)
        self.no = torch.zeros_like(self.yes)
        self.observe, self.simulate = self.yes.clone(), self.yes.clone()


class Place:
    """Where activations are quantized: one range for the whole tensor, affine, with zero inside.

    Args:
        bits: of the codes, which are unsigned.
        switches: of all places.
        device: of the activations.

    Attributes:
        low: the smallest value, averaged over looks; float32, of one element.
        high: the largest.
        looks: how often a calibration has looked.
        ready: whether it has seen anything.
    """

    def __init__(self, bits: int, switches: Switches, device: torch.device) -> None:
        self.bits, self.top, self._switches = bits, 2**bits - 1, switches
        self.low, self.high = (torch.full((1,), sign * torch.inf, device=device) for sign in (1, -1))
        self.scale = torch.ones(1, device=device)
        self.zero = torch.zeros(1, dtype=torch.int32, device=device)
        self.looks, self.ready = 0, False

    def quantized(self, values: Tensor, *, training: bool, owner: bool) -> Tensor:
        """The nearest on the grid; in training the range moves before, once for all layers that share the place."""
        switches = self._switches
        pace, looking = switches.pace, training and switches.moving
        if switches.calibrating:
            self.looks += owner
            pace, looking = 1.0 / max(self.looks, 1), True
        if not (self.ready or (looking and owner)) or not values.is_floating_point():
            return values
        self.ready = True
        single = values.float()
        if values.device.type == "cpu" and not torch.compiler.is_compiling():
            if looking and owner and values.numel():
                self._move(single.detach(), pace)
            if switches.calibrating:
                return values
            rounded: Tensor = _Rounded.apply(single, *self._bounds())  # type: ignore[no-untyped-call]
            return rounded.to(values.dtype)
        found: Tensor = torch.fused_moving_avg_obs_fake_quant(
            single,
            switches.observe if looking and owner else switches.no,
            switches.simulate,
            self.low,
            self.high,
            self.scale,
            self.zero,
            pace,
            0,
            self.top,
            -1,
        )
        return found.to(values.dtype)

    @torch.no_grad()
    def settle(self) -> None:
        """The grid is that of the range as it is now.

        The step is (high - low) / (2**bits - 1) with zero between low and high, the zero point the code nearest to
        zero (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3).
        """
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        self.scale.copy_(((high - low) / self.top).clamp_(min=torch.finfo(torch.float32).eps))
        self.zero.copy_((-low / self.scale).round_().clamp_(0, self.top))

    def _bounds(self) -> tuple[Tensor, Tensor, Tensor]:
        """The step, and the least and the largest multiple of it."""
        return self.scale, -self.zero.float(), self.top - self.zero.float()

    @torch.no_grad()
    def _move(self, values: Tensor, pace: float) -> None:
        for held, seen in zip((self.low, self.high), torch.aminmax(values), strict=True):
            held.copy_(torch.where(held.isfinite(), held + pace * (seen - held), seen))
        self.settle()


class _Rounded(torch.autograd.Function):
    """On a grid; the gradient passes inside of its range. What torch has for this is six times slower on a CPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, least: Tensor, most: Tensor) -> Tensor:
        """Multiples of ``scale`` from ``least`` to ``most`` times it."""
        if ctx.needs_input_grad[0]:
            edges = torch.cat((least - 0.5, most + 0.5)).mul_(scale)
            ctx.here = edges.device.type == "cpu"  # else reading numbers would wait for the device
            ctx.edges = torch.nextafter(edges, _OUTWARD).tolist() if ctx.here else ()  # what lies on an edge is inside
            ctx.save_for_backward(values, *([] if ctx.here else edges))
        codes = values.div(scale).round_()
        return torch.minimum(torch.maximum(codes, least, out=codes), most, out=codes).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Zero where the value was clipped: in one pass, where comparisons and a product take four."""
        values, *edges = ctx.saved_tensors
        if not ctx.here:
            low, high = edges
            return gradient * ((values >= low) & (values <= high)), None, None, None
        low, high = ctx.edges
        return torch.ops.aten.hardtanh_backward(gradient, values, low, high), None, None, None


class Look:
    """A hook of a module that quantizes what goes in or comes out; a copy of it, in a copied model, does nothing.

    Args:
        place: None for a copy.
        switches: of all places.
        owner: whether this hook moves the range; layers that share a place come after.
        clip: what all that comes after clips the output to; None for an input, or nothing of the kind.
    """

    def __init__(
        self,
        place: Place | None,
        switches: Switches | None = None,
        owner: bool = True,
        clip: tuple[float, float | None] | None = None,
    ) -> None:
        self.place, self.switches, self.owner, self.clip = place, switches, owner, clip

    def __deepcopy__(self, memo: Any) -> "Look":
        """Without the place: what it has seen belongs to another model."""
        return type(self)(None)

    def __reduce__(self) -> Any:
        """Pickles without the place."""
        return type(self), (None,)


class LookIn(Look):
    """Before a layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called by torch."""
        if self.place is None or self.switches is None or not self.switches.open:
            return None
        if args and isinstance(args[0], Tensor):
            found = self.place.quantized(args[0], training=module.training, owner=self.owner)
            return (found, *args[1:]), kwargs
        if isinstance(values := kwargs.get("input"), Tensor):
            found = self.place.quantized(values, training=module.training, owner=self.owner)
            return args, {**kwargs, "input": found}
        return None


class LookOut(Look):
    """After a layer, or after the norm that is folded into it."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Called by torch."""
        closed = self.place is None or self.switches is None or not self.switches.open
        if closed or not isinstance(output, Tensor) or self.place is None:
            return None
        values = output if self.clip is None else output.clamp(*self.clip)
        return self.place.quantized(values, training=module.training, owner=self.owner)
