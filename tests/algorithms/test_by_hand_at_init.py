"""SNIP, GraSP, SynFlow and GlobalMagnitude on tables of a few weights, worked by hand."""

import pytest
import torch
from tables import live
from torch import nn

from lightning_sparse import SNIP, GlobalMagnitude, GraSP, Sparsifier, SynFlow


class Rows(nn.Module):
    """Layers with these weights, one after the other; nothing between them, no biases."""

    def __init__(self, *weights):
        super().__init__()
        self.layers = nn.Sequential()
        for weight in weights:
            weight = torch.tensor(weight, dtype=torch.float64)
            layer = nn.Linear(*weight.shape[::-1], bias=False, dtype=torch.float64)
            layer.weight = nn.Parameter(weight)
            self.layers.append(layer)

    def forward(self, x):
        return self.layers(x)


def kept(algorithm, model, density, batches=(None,), loss=None, inputs=None, allocation=None):
    """Indices that live, a list for each layer."""
    data = {"batches": batches, "loss": loss, "example_inputs": inputs, "allocation": allocation}
    return [live(mask) for mask in Sparsifier(model, algorithm, density, **data).masks.values()]


# ---- SNIP: the gradient of sum(w x) is x


def linear(batches, count, density):
    rows = [torch.tensor([row], dtype=torch.float64) for row in batches]
    (found,) = kept(SNIP(batches=count), Rows([[1, -2, 3, 0.5]]), density, rows, lambda m, x: m(x).sum())
    return found


def test_snip_ranks_by_weight_times_gradient_whatever_their_signs():
    # |w g| is 1, 4, 0, 2: neither the largest weight (2, with 3) nor the largest gradient (3, with 4) comes first
    assert linear([[1, 2, 0, -4]], 1, 0.25) == [1]
    assert linear([[1, 2, 0, -4]], 1, 0.5) == [1, 3]
    assert linear([[1, 2, 0, -4]], 1, 0.75) == [0, 1, 3]


def test_snip_averages_gradients_before_it_takes_their_size():
    # of [1, 2, 0, -4] and [3, 0, 1, 4] the mean is [2, 1, .5, 0]: |w g| is 2, 2, 1.5, 0
    batches = [[1, 2, 0, -4], [3, 0, 1, 4], [0, 0, 99, 99]]
    assert linear(batches, 2, 0.5) == [0, 1]
    assert linear(batches, 2, 0.75) == [0, 1, 2]
    assert linear(batches, 1, 0.5) == [1, 3]  # the first alone


def chain(model, x):
    return model(x).sum()


# W1 [[1, -2], [3, .5]] and W2 [[4, -1]], input of ones, output summed. Hidden: -1 and 3.5, without signs 3 and 3.5.
# |w g| of W1 is 4 8 / 3 .5 either way; of W2 4 and 3.5, without signs 12 and 3.5.
TWO = [[1.0, -2.0], [3.0, 0.5]], [[4.0, -1.0]]
ONES = torch.ones(1, 2, dtype=torch.float64)


def test_snip_ranks_over_all_layers_together_unless_told_to_rank_in_each():
    assert kept(SNIP(), Rows(*TWO), 3 / 6, [ONES], chain) == [[0, 1], [0]]  # 8, 4, 4
    assert kept(SNIP(), Rows(*TWO), 4 / 6, [ONES], chain) == [[0, 1], [0, 1]]  # and 3.5
    assert kept(SNIP(), Rows(*TWO), 4 / 6, [ONES], chain, allocation="uniform") == [[0, 1, 2], [0]]  # 2.67 and 1.33


def test_every_layer_keeps_its_best_weight():
    # hidden 3; the gradient of W2 is 3 3, of W1 5 - 4 = 1: scores 15 12 and 1 2; two of four would be both of W2
    assert kept(SNIP(), Rows([[1.0, 2.0]], [[5.0], [-4.0]]), 0.5, [ONES], chain) == [[1], [0]]


def test_what_does_not_touch_the_loss_goes_first():
    model = Rows([[1.0, -2.0], [3.0, 0.5]])
    model.unused = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    nn.init.constant_(model.unused.weight, 9.0)
    first, unused = kept(SNIP(), model, 5 / 8, [ONES], chain)
    assert (first, len(unused)) == ([0, 1, 2, 3], 1)


# ---- SynFlow


def test_synflow_ranks_the_flow_without_signs():
    for given in (ONES, 7 * torch.randn(5, 2)):  # only the shape of a sample counts
        assert kept(SynFlow(1), Rows(*TWO), 0.5, inputs=given) == [[0, 1], [0]]  # 12, 8, 4
        assert kept(SynFlow(1), Rows(*TWO), 4 / 6, inputs=given) == [[0, 1], [0, 1]]  # and 3.5
        assert kept(SynFlow(1), Rows(*TWO), 5 / 6, inputs=given) == [[0, 1, 2], [0, 1]]  # and 3


# Two hidden units. A: fan-in 1 1 1, out 4, so scores 4 4 4 and 12. B: fan-in 3 .1 .1, out 3, scores 9 .3 .3 and 9.6.
UNITS = [[1.0, 1.0, 1.0], [3.0, 0.1, 0.1]], [[4.0, 3.0]]


def test_synflow_in_one_step_may_cut_a_path_and_in_two_does_not():
    # the best two of eight are 12 and 9.6, both outputs; each layer keeps one: A's output, and B's input
    assert kept(SynFlow(1), Rows(*UNITS), 0.25, inputs=torch.ones(1, 3)) == [[3], [0]]
    # in two steps 8 -> 4 -> 2: first 12, 9.6, 9 and a 4 (the first); then A has 4 and 4, B 9 and 9
    assert kept(SynFlow(2), Rows(*UNITS), 0.25, inputs=torch.ones(1, 3)) == [[3], [1]]


def test_what_synflow_has_pruned_stays_pruned_also_beside_weights_without_flow():
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [10.0]]))
        model[0].bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
        model[1].weight.fill_(1.0)
    # 1 2 10 and 6 2 10; four steps leave 5, 5, 4, 4: first 1 goes; then the second 2; then the first 2 has no flow
    assert kept(SynFlow(4), model, 4 / 6, inputs=torch.ones(1, 1)) == [[1, 2], [0, 2]]


def test_synflow_makes_biases_and_running_statistics_positive_and_leaves_the_model_as_it_was():
    norm = nn.BatchNorm1d(1).double()
    norm.running_mean.fill_(-5.0)
    model = nn.Sequential(nn.Linear(2, 1).double(), norm, nn.Linear(1, 2).double())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-1.0, 2.0]]))
        model[0].bias.fill_(-4.0)
        model[2].weight.copy_(torch.tensor([[-3.0], [1.0]]))
    # hidden 1 + 2 + 4 - 5 = 2 (a little less: eps): scores 4 8 and 6 2; with the mean's sign 12: 4 8 and 36 12
    assert kept(SynFlow(1), model, 0.75, inputs=torch.ones(1, 2)) == [[0, 1], [0]]
    assert model[0].weight.tolist() == [[-1.0, 2.0]]
    assert model[2].weight.tolist() == [[-3.0], [0.0]]
    assert (model[0].bias.item(), norm.running_mean.item(), int(norm.num_batches_tracked)) == (-4, -5, 0)
    assert norm.training


# ---- GraSP on w'Aw/2: g = Aw, H = A, scores w * (A A w); the outputs for the unit vectors are w

A = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, -1.0], [0.0, -1.0, 1.0]], dtype=torch.float64)


def quadratic(model, matrix):
    w = model(torch.eye(len(matrix), dtype=torch.float64))[:, 0]
    return w @ matrix @ w / 2


@pytest.mark.parametrize(("density", "expected"), [(0.34, [1]), (0.67, [1, 2]), (1.0, [0, 1, 2])])
def test_grasp_keeps_what_the_flow_of_the_gradient_depends_on(density, expected):
    # w = 1 -3 .4: g = -1 .6 3.4, Hg = -1.4 -4.4 2.8, w Hg = -1.4 13.2 1.12: the sign counts
    model, grasp = Rows([[1.0, -3.0, 0.4]]), GraSP(samples=None, batches=1, temperature=1.0)
    assert kept(grasp, model, density, [A], quadratic) == [expected]


def test_grasp_takes_the_hessian_gradient_product_of_the_mean_loss():
    # diagonals 4 2 and 0 2, their mean 2 2: w (Hg) is 4 and 4.84; the mean of each batch's own would be 8 and 4.84
    batches = [torch.tensor([4.0, 2.0]).double().diag(), torch.tensor([0.0, 2.0]).double().diag()]
    model, grasp = Rows([[1.0, 1.1]]), GraSP(samples=None, batches=2, temperature=1.0)
    assert kept(grasp, model, 0.5, batches, quadratic) == [[1]]


def test_grasp_divides_logits_by_the_temperature():
    seen = []

    def cost(model, x):
        seen.append(model(x).detach().item())
        return model(x).square().sum()

    model = Rows([[1.0, 2.0]])
    kept(GraSP(samples=None, batches=1, temperature=50.0), model, 0.5, [ONES], cost)
    assert seen == [3 / 50, 3 / 50]
    assert model(ONES).item() == 2  # w Hg is 1 * 2 * 6 and 2 * 2 * 6: the second stays, and no hook does


def test_grasp_takes_as_many_samples_of_each_class_in_parts_that_hold_all_classes():
    seen, model = [], nn.Linear(1, 3)
    x, y = torch.arange(40.0)[:, None], torch.arange(40) % 4 // 2  # classes 0 0 1 1 0 0 1 1 ...; none of 2

    def cost(model, batch):
        seen.append((batch[0].flatten().tolist(), batch[1].tolist()))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    y[7:40:8] = 2  # 7, 15, 23, 31, 39
    Sparsifier(model, GraSP(samples=3), 1.0, batches=[(x[:9], y[:9]), (x[9:], y[9:])], loss=cost)
    parts = [([0, 4, 2, 6, 7, 23], [0, 0, 1, 1, 2, 2]), ([1, 3, 15], [0, 1, 2])]  # firsts and thirds; seconds
    assert seen == parts * 2


# ---- GlobalMagnitude


def trained(algorithm, density, weights, steps, total_steps=None, **settings):
    """Live counts after every step; the weights do not change by themselves."""
    model = Rows(*weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = Sparsifier(model, algorithm, density, optimizers=[optimizer], total_steps=total_steps, **settings)
    found = []
    for _ in range(steps):
        model(torch.ones(1, len(weights[0][0]), dtype=torch.float64)).sum().backward()
        optimizer.step()
        found.append([live(mask) for mask in sparsifier.masks.values()])
    return found


def counts(found):
    return [sum(map(len, layers)) for layers in found]


MANY = torch.randperm(500, generator=torch.Generator().manual_seed(1)).add(1).view(25, 20).tolist()
MORE = torch.randperm(500, generator=torch.Generator().manual_seed(2)).add(1).view(20, 25).tolist()


@pytest.mark.parametrize(
    ("stop", "total", "moments"),
    [(9, None, [3, 6, 9]), (10, None, [3, 6, 10]), (1.0, 12, [4, 8, 12]), (None, 16, [4, 8, 12])],
)
def test_every_round_leaves_the_same_share_at_equally_distant_steps(stop, total, moments):
    # 1000 weights to an eighth in three rounds: 500, 250, 125
    found = counts(trained(GlobalMagnitude(rounds=3, stop=stop), 0.125, (MANY, MORE), 13, total))
    assert {step: n for step, n in enumerate(found, 1) if n != ([1000, *found][step - 1])} == dict(
        zip(moments, (500, 250, 125), strict=True)
    )


def test_one_round_is_train_prune_train():
    assert counts(trained(GlobalMagnitude(), 0.2, (MANY, MORE), 8, 8)) == [1000] * 3 + [200] * 5


def test_the_smallest_of_all_layers_go_and_do_not_come_back():
    weights = [[9.0, -8.0], [0.1, 7.0]], [[0.3, 0.2]]
    found = trained(GlobalMagnitude(rounds=2, stop=4), 0.5, weights, 4)  # 6, 6, round(6 / sqrt 2) = 4, ..., 3
    assert found[1] == [[0, 1, 3], [0]]
    assert found[3] == [[0, 1], [0]]  # each layer keeps one, so 7 goes


def test_rounds_by_layer_where_an_allocation_is_named():
    weights = [[9.0, -8.0], [0.1, 7.0]], [[0.3, 0.2]]
    found = trained(GlobalMagnitude(stop=2), 0.5, weights, 2, allocation="uniform")
    assert found[1] == [[0, 1], [0]]
