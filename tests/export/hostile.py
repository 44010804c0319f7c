"""Files that are not what was written, and what becomes of them."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from export.drawn import same_bits
from torch import nn

from lightning_sparse.export import load_packed, save_packed
from lightning_sparse.quant.grid import quantize


def model(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(60, 40), nn.BatchNorm1d(40), nn.Linear(40, 3), nn.Linear(3, 500))
    for weight in (net[0].weight, net[2].weight):
        weight.data.masked_fill_(torch.rand(weight.shape) < 0.9, 0.0)
    return net


@functools.cache
def written() -> bytes:
    """A file with a weight of codes and gaps ("0.weight"), and others with gaps, with values and plain."""
    net = model()
    with tempfile.TemporaryDirectory() as folder:
        report = save_packed(net, Path(folder) / "net", {"0.weight": quantize(net[0].weight, 8)})
        assert {row.kind for row in report.tensors} == {"gaps", "values", "plain"}
        return (Path(folder) / "net").read_bytes()


def refused(data, file):
    """The error of a file of these bytes; a module that it is loaded into is as it was."""
    file.write_bytes(data)
    net = model(1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError):
        load_packed(file, net)
    assert all(same_bits(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError) as error:
        load_packed(file)
    assert f"cannot load {file}: " in str(error.value)
    return str(error.value)
