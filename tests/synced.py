"""torch's SyncBatchNorm on the CPU: its five operations exist for GPUs only, so they are written out here."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.nn.parallel import DistributedDataParallel


def per_channel(x):
    return x.transpose(0, 1).flatten(1)


def wide(statistic, x):
    return statistic.view(1, -1, *[1] * (x.ndim - 2))


def stats(x, eps):
    rows = per_channel(x)
    return rows.mean(1), (rows.var(1, unbiased=False) + eps).rsqrt()


def gather(x, means, invstds, running_mean, running_var, momentum, eps, counts):
    share, total = (counts / counts.sum())[:, None], counts.sum()
    mean = (share * means).sum(0)
    variance = (share * (invstds**-2 - eps + (means - mean) ** 2)).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * total / (total - 1), momentum)
    return mean, (variance + eps).rsqrt()


def elemt(x, weight, bias, mean, invstd, eps):
    return (x - wide(mean, x)) * wide(invstd * weight, x) + wide(bias, x)


def backward_reduce(dy, x, mean, invstd, weight, *_):
    sum_dy, sum_dy_xmu = per_channel(dy).sum(1), per_channel(dy * (x - wide(mean, x))).sum(1)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy


def backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, count):
    n = count.sum()
    centred = (x - wide(mean, x)) * wide(invstd**2 * sum_dy_xmu / n, x)
    return (dy - wide(sum_dy / n, x) - centred) * wide(invstd * weight, x)


OPERATIONS = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather,
    "batch_norm_elemt": elemt,
    "batch_norm_backward_reduce": backward_reduce,
    "batch_norm_backward_elemt": backward_elemt,
}


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Inside, SyncBatchNorm takes tensors of the CPU, and DDP takes SyncBatchNorm."""
    library = torch.library.Library("aten", "IMPL")
    for name, operation in OPERATIONS.items():
        library.impl(name, operation, "CPU")
    device = patch.object(torch._C, "_get_privateuse1_backend_name", lambda: "cpu")  # one of those that it asks for
    with device, patch.object(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None):
        yield
    library._destroy()
