"""Networks that Hypothesis puts together: what is silent can be cut, whatever the composition."""

import pytest
import torch
import torch.nn.functional as F
from channels.kinds import Kind, conv, stir
from channels.silent import chosen, far, owned, silence, tensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_sparse.channels.probe import probe
from lightning_sparse.channels.shrink import shrink
from lightning_sparse.channels.trace import analyse

JOINS = ("add", "cat", "gate")
LAYERS = ("conv", "grouped", "depthwise", "turned", "norm", "relu", "half", "shuffle", "squeeze", "pool")
SIDE = 4


class Composed(nn.Module):
    """Maps of one size; each step makes a new map of one or two earlier ones."""

    def __init__(self, steps, flatten):
        super().__init__()
        self.steps, self.flatten = steps, flatten
        self.layers = nn.ModuleDict()
        widths = [3]
        for number, (name, one, other, width) in enumerate(steps):
            before = widths[one]
            if name in ("conv", "turned"):
                layer = nn.ConvTranspose2d(before, width, 3, padding=1) if name == "turned" else conv(before, width)
                self.layers[str(number)] = layer
                widths.append(width)
            elif name == "grouped":
                self.layers[str(number)] = conv(before, width, groups=2)
                widths.append(width)
            elif name == "depthwise":
                self.layers[str(number)] = conv(before, before, groups=before)
                widths.append(before)
            elif name == "norm":
                self.layers[str(number)] = nn.BatchNorm2d(before)
                widths.append(before)
            elif name == "squeeze":
                self.layers[str(number)] = nn.Linear(before, before)
                widths.append(before)
            else:
                widths.append({"half": before // 2, "cat": before + widths[other]}.get(name, before))
        self.middle = nn.Linear(widths[-1] * (SIDE**2 if flatten else 1), 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        maps = [x]
        for number, (name, one, other, _) in enumerate(self.steps):
            maps.append(self.step(name, maps[one], maps[other], number))
        x = maps[-1].flatten(1) if self.flatten else maps[-1].mean((2, 3))
        return self.head(F.relu(self.middle(x)))

    def step(self, name, x, y, number):
        batch, width = x.shape[:2]
        if name == "squeeze":
            return x * torch.sigmoid(self.layers[str(number)](x.mean((2, 3))))[:, :, None, None]
        if str(number) in self.layers:
            return self.layers[str(number)](x)
        return {
            "add": lambda: x + y,
            "gate": lambda: x * torch.tanh(y),
            "cat": lambda: torch.cat([x, y], 1),
            "relu": lambda: F.relu(x),
            "pool": lambda: F.avg_pool2d(x, 3, 1, 1),
            "half": lambda: x.chunk(2, 1)[1],
            "shuffle": lambda: x.view(batch, 2, width // 2, SIDE, SIDE).transpose(1, 2).reshape(x.shape),
        }[name]()


@st.composite
def programs(draw):
    """Steps that fit together: sums of maps of one width, halves of even ones."""
    steps, widths = [("conv", 0, 0, draw(st.sampled_from((4, 6, 8))))], [3]
    widths.append(steps[0][3])
    for _ in range(draw(st.integers(1, 9))):
        one = draw(st.integers(0 if draw(st.integers(0, 9)) == 0 else 1, len(widths) - 1))
        width = widths[one]
        fits = [i for i in range(len(widths)) if widths[i] == width]
        names = [name for name in LAYERS if width % 2 == 0 or name not in ("grouped", "half", "shuffle")]
        name = draw(st.sampled_from([*names, *JOINS] if width < 25 else ["conv"]))
        other = draw(st.sampled_from(fits)) if name in ("add", "gate") else draw(st.integers(1, len(widths) - 1))
        new = draw(st.sampled_from((4, 6, 8)))
        steps.append((name, one, other, new))
        by_name = {"half": width // 2, "cat": width + widths[other]}
        widths.append(new if name in ("conv", "grouped", "turned") else by_name.get(name, width))
    return tuple(steps), draw(st.booleans())


def check(program, seed):
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    def make():
        torch.manual_seed(seed)
        model = Composed(*program)
        stir(model)
        return model.eval()

    kind = Kind("composed", make, lambda: (x,), "full")
    quiet, cut = make(), make()
    graph = probe(cut, analyse(cut, lambda: cut(x)), lambda: cut(x))
    assert "middle" in {atom.name for atom in graph.atoms}
    assert not any(atom.lossy for atom in graph.atoms)
    stay, gone = chosen(graph, seed)
    for model in (quiet, cut):
        silence(model, kind, owned(graph, gone))
    shrink(cut, graph, stay)
    assert sum(map(torch.numel, tensors(cut).values())) < sum(map(torch.numel, tensors(quiet).values()))
    with torch.no_grad():
        assert far(cut(x), quiet(x)) < 1e-5


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=QUIET, database=None)
@given(programs(), st.integers(0, 99))
@example(((("conv", 0, 0, 8), ("shuffle", 1, 1, 4), ("half", 2, 1, 4), ("grouped", 3, 1, 4)), False), 0)
def test_silent_channels_of_any_composition_can_be_cut(program, seed):
    check(program, seed)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=QUIET, database=None)
@given(programs(), st.integers(0, 99))
def test_silent_channels_of_very_many_compositions_can_be_cut(program, seed):
    check(program, seed)
