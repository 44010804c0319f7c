"""The report tells the truth: its numbers are those of the model before and after."""

import pytest
import torch
from channels.handmade import graph, normed
from torch import nn

from lightning_sparse.channels import Atom, Graph, Place, analyse, probe, shrink
from lightning_sparse.channels.report import AxisRow, ChannelReport, make_report
from lightning_sparse.core.flops import count_flops


class Net(nn.Module):
    """A stem, a residual block with a layer inside, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = x + self.outer(self.inner_norm(self.inner(x)).relu())
        return self.head(x.mean((2, 3)))


INPUTS = torch.zeros(2, 3, 6, 6)


def found_in(model):
    run = lambda: model(INPUTS)  # noqa: E731
    return probe(model, analyse(model, run), run)


def test_totals_are_those_of_the_model_before_and_after():
    model = Net()
    found = found_in(model)
    kept = {"stem": torch.arange(5), "inner": torch.arange(2)}
    before = sum(p.numel() for p in model.parameters()), sum(count_flops(model, INPUTS).values())
    report = make_report(model, found, kept, samples=2)
    shrink(model, found, kept)
    after = sum(p.numel() for p in model.parameters()), sum(count_flops(model, INPUTS).values())
    assert report.params == (before[0], after[0])
    assert report.flops == pytest.approx((before[1], after[1]))
    assert report.channels == (14, 7)


def test_every_parameter_is_in_the_row_of_its_outputs():
    model = Net()
    rows = {row.name: row for row in make_report(model, found_in(model), {"inner": torch.arange(3)}).rows}
    # by hand: stem 3*8*9 + norm 2*8 + outer 6*8 + 8; inner 8*6*9 + 6 + norm 2*6; head 8*5 + 5
    assert {name: row.params for name, row in rows.items()} == {"stem": 288, "inner": 450, "head": 45}
    assert {name: row.params_kept for name, row in rows.items()} == {"stem": 264, "inner": 225, "head": 45}
    assert {name: (row.channels, row.kept) for name, row in rows.items()} == {
        "stem": (8, 8),
        "inner": (6, 3),
        "head": (5, 5),
    }
    assert list(rows) == ["stem", "inner", "head"]  # in the order of the model
    assert "output" in rows["head"].why
    assert rows["stem"].why == rows["inner"].why == ""


def test_flops_are_those_of_a_sample():
    model = Net()
    report = make_report(model, found_in(model), {}, samples=2)
    # by hand, 36 pixels: stem 216, outer 48, inner 432 multiply-adds a pixel
    assert {row.name: row.flops for row in report.rows} == {
        "stem": 2 * 36 * (216 + 48),
        "inner": 2 * 36 * 432,
        "head": 80,
    }


def test_the_table_has_a_line_for_each_row_and_says_why():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    found = graph(model, {"0.weight": 200.0, "2.weight": 400.0}, **{"0": normed("0", "1", "2")})
    report = make_report(model, found, {}, why={"0": "excluded by name"}, notes=["and a note"])
    lines = str(report).split("\n")
    assert lines[0].split() == ["axis", "channels", "stay", "parameters", "stay", "FLOPs", "stay"]
    assert lines[1].split() == ["0", "4", "4", "12", "12", "200", "200", "excluded", "by", "name"]
    assert lines[-1] == "and a note"
    assert str(ChannelReport(report.rows, {"aten.fft": 3})).endswith(
        "no rule for aten.fft (3x): what it touches stays whole"
    )


def test_tied_parameters_count_once_and_buffers_not_at_all():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    found = graph(model, e=["0.weight:1"])
    report = make_report(model, found, {"e": torch.arange(2)})
    assert report.params == (28, 14)


def test_an_axis_of_buffers_alone_has_a_row_too():
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False))
    row = make_report(model, graph(model, b=["0.running_mean:0"]), {"b": torch.arange(3)}).rows[0]
    assert row == AxisRow("b", 4, 3, 0, 0, 0.0, 0.0)


def test_a_norm_over_two_axes_side_by_side_is_in_the_row_of_the_first():
    model = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(3, 4, bias=False), nn.BatchNorm1d(6)])
    shapes = {name: tuple(t.shape) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    index = torch.arange(6)[:, None]
    first = Atom("0", (Place("0.weight", 0, index[:2]), Place("2.weight", 0, index[:2])), lossy=False)
    second = Atom("1", (Place("1.weight", 0, index[:4]), Place("2.weight", 0, index[2:])), lossy=False)
    rows = make_report(model, Graph((first, second), {}, {}, {}, shapes), {"1": torch.arange(3)}).rows
    # by hand: 2*3 + 6 of the norm, one of them gone with the second axis; 4*3, then 3*3; the norm's bias was not traced
    assert [(row.name, row.params, row.params_kept) for row in rows] == [("0", 12, 11), ("1", 12, 9), ("2", 6, 6)]
