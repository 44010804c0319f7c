"""FLOPs against published networks and counts worked by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_sparse.core.flops import FlopCounter, count_flops
from lightning_sparse.core.plan import make_plan, plan
from lightning_sparse.core.select import select

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden.json").read_text())["flops"]


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Residual(nn.Module):
    def __init__(self, body, shortcut=None):
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def bottleneck(inputs, width, stride):
    """v1.5: the stride is in the 3x3 convolution."""
    layers = [conv(inputs, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)]
    fits = inputs == 4 * width and stride == 1
    return Residual(nn.Sequential(*layers), None if fits else conv(inputs, 4 * width, 1, stride))


def resnet50():
    stages, inputs = [], 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stages.append(bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    stem = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def wide_block(inputs, outputs, stride):
    body = nn.Sequential(conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3))
    return Residual(body, None if inputs == outputs else conv(inputs, outputs, 1, stride))


def wrn_22_2():
    stages, inputs = [conv(3, 16, 3)], 16
    for width, stride in ((32, 1), (64, 2), (128, 2)):
        for block in range(3):
            stages.append(wide_block(inputs, width, stride if block == 0 else 1))
            inputs = width
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


@pytest.fixture(scope="module")
def resnet():
    net = resnet50()
    return net, count_flops(net, torch.zeros(1, 3, 224, 224))


@pytest.fixture(scope="module")
def wrn():
    net = wrn_22_2()
    return net, count_flops(net, torch.zeros(1, 3, 32, 32))


def share(counted, density, allocation="erk", exclude=()):
    """Forward FLOPs of the sparse network over those of the dense one."""
    net, costs = counted
    table = make_plan(select(net, exclude=exclude), density, allocation).counted(costs)
    return table.flops / table.dense_flops


def test_resnet50_has_the_published_weights_and_multiply_adds(resnet):
    net, costs = resnet
    assert sum(t.weight.numel() for t in select(net)) == 25_502_912
    assert len(costs) == 54
    assert sum(costs.values()) / 2 == pytest.approx(4.089e9, abs=5e5)


def test_wrn_22_2_has_the_published_weights_and_multiply_adds(wrn):
    net, costs = wrn
    assert sum(t.weight.numel() for t in select(net)) == 1_076_912
    assert len(costs) == 23
    assert sum(costs.values()) / 2 == pytest.approx(1.577e8, abs=5e4)


@pytest.mark.parametrize(("density", "expected"), GOLDEN[0]["erk_forward_share"].items())
def test_resnet50_under_erk_has_the_published_share(resnet, density, expected):
    assert round(share(resnet, float(density)), 4) == expected


@pytest.mark.parametrize(("density", "expected"), GOLDEN[0]["uniform_first_layer_dense_forward_share"].items())
def test_resnet50_under_uniform_with_a_dense_first_layer_has_the_published_share(resnet, density, expected):
    assert round(share(resnet, float(density), "uniform", exclude=["0.weight"]), 4) == expected


@pytest.mark.parametrize(("density", "expected"), GOLDEN[1]["erk_forward_share"].items())
def test_wrn_22_2_under_erk_has_the_published_share(wrn, density, expected):
    assert round(share(wrn, float(density)), 4) == expected


# Multiply-adds by hand: weights a group x output positions x groups = weights x output positions; 2 FLOPs each.
LAYERS = {
    "Linear": (nn.Linear(6, 4), (3, 6), 2 * 24),
    "Linear on 3-D input": (nn.Linear(6, 4), (3, 5, 6), 2 * 24 * 5),
    "Conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 6 * 4 * 3 * 8),  # 10 - 3 + 1 = 8 positions
    "Conv1d grouped": (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 10), 2 * 6 * 2 * 3 * 8),
    "Conv2d strided": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 8, 8), 2 * 5 * 3 * 9 * 16),  # 4 x 4
    "Conv2d grouped": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5), 2 * 8 * 1 * 9 * 9),  # 3 x 3
    "Conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 3, 3), 2 * 3 * 2 * 8 * 12),  # 3 x 2 x 2
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5), 2 * 4 * 6 * 3 * 5),  # each input spreads
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 3, 5), 2 * 4 * 6 * 4 * 15),
    "ConvTranspose2d grouped": (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 3, 5), 2 * 4 * 3 * 4 * 15),
}


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_costs_what_is_counted_by_hand(case):
    layer, shape, expected = LAYERS[case]
    assert count_flops(layer, torch.zeros(shape)) == {"weight": float(expected)}


def test_a_sample_without_a_batch_dimension_costs_the_same_as_in_a_batch():
    layer = nn.Conv2d(3, 5, 3)
    with FlopCounter(layer) as counter:
        layer(torch.zeros(3, 6, 6))
    assert counter.flops == count_flops(layer, torch.zeros(4, 3, 6, 6)) == {"weight": 2.0 * 5 * 27 * 16}


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_weights_multiply_at_every_step(kind, gates):
    # 7 steps; layer 0 reads 5 features, layer 1 reads both directions of layer 0
    costs = count_flops(kind(5, 6, num_layers=2, bidirectional=True, batch_first=True), torch.zeros(2, 7, 5))
    for end in ("", "_reverse"):
        assert costs[f"weight_ih_l0{end}"] == 2 * gates * 6 * 5 * 7
        assert costs[f"weight_ih_l1{end}"] == 2 * gates * 6 * 12 * 7
        assert costs[f"weight_hh_l0{end}"] == costs[f"weight_hh_l1{end}"] == 2 * gates * 6 * 6 * 7
    assert len(costs) == 8


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_recurrent_cells_multiply_once_a_call(kind, gates):
    assert count_flops(kind(5, 6), torch.zeros(2, 5)) == {"weight_ih": 2.0 * gates * 30, "weight_hh": 2.0 * gates * 36}


def test_attention_projects_query_key_value_and_output():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(3, 5, 8)
    square = 2 * 8 * 8
    expected = {"in_proj_weight": 3.0 * 5 * square, "out_proj.weight": 5.0 * square}
    assert count_flops(attention, (x, x, x)) == expected
    assert count_flops(attention, {"query": x, "key": x, "value": x}) == expected


def test_attention_with_its_own_key_and_value_widths_counts_each_projection():
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    given = torch.zeros(3, 5, 8), torch.zeros(3, 7, 6), torch.zeros(3, 7, 4)
    assert count_flops(attention, given) == {
        "q_proj_weight": 2.0 * 5 * 8 * 8,
        "k_proj_weight": 2.0 * 7 * 8 * 6,
        "v_proj_weight": 2.0 * 7 * 8 * 4,
        "out_proj.weight": 2.0 * 5 * 8 * 8,
    }


def test_a_transformer_layer_is_counted_though_torch_has_a_fast_path_for_it():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert count_flops(layer, torch.zeros(2, 5, 8)) == {
        "self_attn.in_proj_weight": 2.0 * 5 * 3 * 64,
        "self_attn.out_proj.weight": 2.0 * 5 * 64,
        "linear1.weight": 2.0 * 5 * 128,
        "linear2.weight": 2.0 * 5 * 128,
    }


def test_a_module_called_twice_costs_twice():
    layer = nn.Linear(4, 4)
    assert count_flops(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 4)) == {"0.weight": 2 * 2.0 * 16}


def test_what_does_not_multiply_or_is_not_called_is_free():
    net = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2))
    net.spare = nn.Linear(3, 3)
    net.forward = lambda x: net[4](net[3](net[2](net[1](net[0](x)))))
    assert count_flops(net, torch.zeros(2, 3, dtype=torch.long)) == {"4.weight": 2.0 * 24}


def test_tied_weights_are_sparse_wherever_they_multiply():
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    net[2].weight = net[0].weight
    table = plan(net, 0.5, example_inputs=torch.zeros(1, 8))
    assert table.flops == table.dense_flops / 2


class Noisy(nn.Module):
    """Random at every forward, and fails where it is told."""

    def __init__(self, fails=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.fails = fails

    def forward(self, x):
        y = self.body(x + torch.rand_like(x))
        if self.fails:
            raise RuntimeError("no forward today")
        return y


@pytest.mark.parametrize("fails", [False, True])
def test_counting_leaves_modes_buffers_gradients_and_the_random_state_alone(fails):
    net = Noisy(fails)
    net.body[0].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes, random = [m.training for m in net.modules()], torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="no forward today"):
            count_flops(net, torch.zeros(3, 4))
    else:
        assert count_flops(net, torch.zeros(3, 4)) == {"body.0.weight": 32.0}
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
