"""What the two processes of test_criteria do."""

from pathlib import Path

import torch
from channels.handmade import graph, normed
from torch import nn

from lightning_sparse.channels.collect import Collector, gather
from lightning_sparse.channels.criteria import named


def made() -> tuple[nn.Module, object]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    return model, graph(model, c=normed("0", "1", "3"))


def batches() -> list[torch.Tensor]:
    return list(torch.randn(6, 4, 1, 7, 7, generator=torch.Generator().manual_seed(5)))


def scored(data: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name in ("activation", "taylor"):
        model, own = made()
        collector = Collector(model, own, named(name))
        gather(collector, lambda: None, data, lambda model, x: model(x).square().mean())
        found[name] = collector.scores()["c"]
    return found


def alone() -> dict[str, torch.Tensor]:
    return scored(batches())


def on_a_rank(rank: int, folder: Path) -> dict[str, torch.Tensor]:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    return scored(batches()[:2] if rank else batches()[2:])  # unequal on purpose
