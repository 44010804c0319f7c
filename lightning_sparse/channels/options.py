"""How channels are to be chosen: the words for it, and what is wrong with them."""

from typing import Literal

import torch

from lightning_sparse.core.values import is_number, is_whole, wrong_share

Scope = Literal["global", "layer"]
Target = Literal["channels", "flops", "params", "latency"]
SCOPES: tuple[Scope, ...] = ("global", "layer")
TARGETS: tuple[Target, ...] = ("channels", "flops", "params", "latency")


def choice_problems(
    *,
    keep: object,
    scope: object,
    target: object = "channels",
    threshold: object = None,
    round_to: object = 1,
    min_channels: object = 1,
    cap: object = None,
) -> list[str]:
    """What is wrong with how channels are to be chosen, a sentence each.

    Example:
        >>> choice_problems(keep=0, scope="all")
        ['keep must be in (0, 1], got 0', "scope must be 'global' or 'layer', got 'all'"]
    """
    found = [] if threshold is not None else wrong_share("keep", keep)
    if not isinstance(scope, str) or scope not in SCOPES:
        found.append(f"scope must be 'global' or 'layer', got {scope!r}")
    if not isinstance(target, str) or target not in TARGETS:
        found.append(f"target must be one of {', '.join(map(repr, TARGETS))}, got {target!r}")
    if threshold is not None and not is_number(threshold):
        found.append(f"threshold must be a number or None, got {threshold!r}")
    if round_to is not None and not (is_whole(round_to) and round_to >= 1):  # type: ignore[operator]
        found.append(f"round_to must be a positive number or None, got {round_to!r}")
    if not (is_whole(min_channels) and min_channels >= 1):  # type: ignore[operator]
        found.append(f"min_channels must be a positive number, got {min_channels!r}")
    if cap is not None and not (is_number(cap) and 0 <= cap < 1):  # type: ignore[operator]
        found.append(f"cap must be a share in [0, 1) or None, got {cap!r}")
    return found


def device_step(device: torch.device) -> int:
    """The multiple of channels that a device computes in; fewer cost as much.

    16 where a CPU has AVX-512 and PyTorch uses it, else 8: AVX2, and the tensor cores of GPUs in half precision.

    Example:
        >>> device_step(torch.device("cpu")) in (8, 16)
        True
    """
    return 16 if device.type == "cpu" and "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
