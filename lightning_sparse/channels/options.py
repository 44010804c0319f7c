"""How channels are to be chosen: the words for it, and what is wrong with them."""

from dataclasses import dataclass
from typing import Literal

import torch

from lightning_sparse.core.values import is_number, is_whole, wrong_share

Scope = Literal["global", "layer"]
Target = Literal["channels", "flops", "params", "latency"]
SCOPES: tuple[Scope, ...] = ("global", "layer")
TARGETS: tuple[Target, ...] = ("channels", "flops", "params", "latency")


@dataclass(frozen=True)
class Choice:
    """How channels are to be chosen. It takes any values; :meth:`problems` tells those that cannot be right.

    Attributes:
        keep: share of the target that stays, in (0, 1].
        scope: who competes with whom.
        target: what ``keep`` is a share of: "channels", "flops", "params" or "latency".
        threshold: instead of ``keep`` and ``target``: channels with a score strictly above it stay.
        round_to: counts that stay are multiples of it, or the whole axis; None takes what the device computes in, but
            at most an eighth of the axis, as a power of two, so that small layers can shrink too.
        min_channels: at least so many stay on each axis.
        cap: no axis loses more than this share.

    Example:
        >>> Choice(keep=0, scope="all").problems()
        ['keep must be in (0, 1], got 0', "scope must be 'global' or 'layer', got 'all'"]
    """

    keep: float = 0.5
    scope: Scope = "global"
    target: Target = "channels"
    threshold: float | None = None
    round_to: int | None = 1
    min_channels: int = 1
    cap: float | None = None

    def problems(self) -> list[str]:
        """What is wrong with it, a sentence each."""
        found = [] if self.threshold is not None else wrong_share("keep", self.keep)
        if not isinstance(self.scope, str) or self.scope not in SCOPES:
            found.append(f"scope must be 'global' or 'layer', got {self.scope!r}")
        if not isinstance(self.target, str) or self.target not in TARGETS:
            found.append(f"target must be one of {', '.join(map(repr, TARGETS))}, got {self.target!r}")
        if self.threshold is not None and not is_number(self.threshold):
            found.append(f"threshold must be a number or None, got {self.threshold!r}")
        if self.round_to is not None and not (is_whole(self.round_to) and self.round_to >= 1):
            found.append(f"round_to must be a positive number or None, got {self.round_to!r}")
        if not (is_whole(self.min_channels) and self.min_channels >= 1):
            found.append(f"min_channels must be a positive number, got {self.min_channels!r}")
        if self.cap is not None and not (is_number(self.cap) and 0 <= self.cap < 1):
            found.append(f"cap must be a share in [0, 1) or None, got {self.cap!r}")
        return found


def device_step(device: torch.device) -> int:
    """The multiple of channels that a device computes in; fewer cost as much.

    16 where a CPU has AVX-512 and PyTorch uses it, else 8: AVX2, and the tensor cores of GPUs in half precision.

    Example:
        >>> device_step(torch.device("cpu")) in (8, 16)
        True
    """
    return 16 if device.type == "cpu" and "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
