"""Penalties against tables worked by hand, autograd and brute force."""

import pytest
import torch
from penalized import Fourth

from lightning_sparse.penalties import L1, L2, PENALTIES, Elastic, GroupLasso, Hoyer

MATRIX = [[1.0, -2.0], [0.0, 0.5]]  # magnitudes sum to 3.5, squares to 5.25
ROWS = [[3.0, 4.0], [0.0, 0.0]]  # norms of rows 5 and 0, of columns 3 and 4
ROOT = 2**0.5


@pytest.mark.parametrize(
    ("penalty", "weight", "value", "gradient"),
    [
        (L1(), MATRIX, 3.5, [[1, -1], [0, 1]]),
        (L2(), MATRIX, 2.625, MATRIX),
        (Elastic(0.25), MATRIX, 0.875 + 0.75 * 2.625, [[1, -1.75], [0, 0.625]]),
        (GroupLasso("neurons", by_size=False), ROWS, 5, [[0.6, 0.8], [0, 0]]),
        (GroupLasso("neurons"), ROWS, 5 * ROOT, [[0.6 * ROOT, 0.8 * ROOT], [0, 0]]),
        (GroupLasso("inputs", by_size=False), ROWS, 7, [[1, 1], [0, 0]]),
        (GroupLasso("channels", by_size=False), ROWS, 12, [[1.6, 1.8], [0, 0]]),
        (GroupLasso("kernels"), [[ROWS]], 5 * 2, [[[[1.2, 1.6], [0, 0]]]]),  # one kernel of four weights
        (Hoyer(), MATRIX, 3.5**2 / 5.25, None),
        (Hoyer(), [3.0, 1.0], 1.6, [-0.16, 0.48]),  # 2 * 4 / 100 * (10 - 12), 2 * 4 / 100 * (10 - 4)
        (Hoyer(), [0.0, 0.0], 0, [0, 0]),
    ],
    ids=repr,
)
def test_values_and_gradients_are_those_worked_by_hand(penalty, weight, value, gradient):
    assert float(penalty.value(torch.tensor(weight))) == pytest.approx(value)
    if gradient is not None:
        torch.testing.assert_close(penalty.gradient(torch.tensor(weight)), torch.tensor(gradient).float())


@pytest.mark.parametrize(
    ("penalty", "weight", "amount", "result"),
    [
        (L1(), MATRIX, 0.75, [[0.25, -1.25], [0, 0]]),
        (Elastic(0.25), MATRIX, 1.0, [[0.75 / 1.75, -1.75 / 1.75], [0, 0.25 / 1.75]]),
        (GroupLasso("neurons", by_size=False), ROWS, 1.0, [[2.4, 3.2], [0, 0]]),
        (GroupLasso("neurons"), [[3.0, 4.0], [0.6, 0.8]], 1.0, [[3 - 0.6 * ROOT, 4 - 0.8 * ROOT], [0, 0]]),
        (GroupLasso("inputs", by_size=False), ROWS, 3.5, [[0, 0.5], [0, 0]]),
        (GroupLasso("kernels", by_size=False), [[ROWS, MATRIX]], 2.5, [[[[1.5, 2.0], [0, 0]], [[0, 0], [0, 0]]]]),
    ],
    ids=repr,
)
def test_proximal_operators_are_those_worked_by_hand(penalty, weight, amount, result):
    found = penalty.prox(torch.tensor(weight), amount)
    torch.testing.assert_close(found, torch.tensor(result).float())
    assert not bool((found.signbit() & (found == 0)).any()), "a zero is 0, not -0"


GROUPS = ["neurons", "inputs", "kernels"]
SHRINKING = [L1(), Elastic(0.3), *(GroupLasso(groups) for groups in GROUPS), GroupLasso("neurons", by_size=False)]


@pytest.mark.parametrize("penalty", SHRINKING, ids=repr)
def test_nothing_near_beats_the_proximal_operator(penalty):
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)

    def cost(x):
        return 0.4 * penalty.value(x) + (x - weight).square().sum() / 2

    best = penalty.prox(weight, 0.4)
    assert 0 < int(best.count_nonzero()) < weight.numel() or penalty.grouped
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(50):
            assert cost(best) <= cost(best + size * torch.randn_like(weight))
    assert cost(best) <= cost(torch.zeros_like(weight))


@pytest.mark.parametrize("penalty", [*PENALTIES.values(), GroupLasso("channels"), GroupLasso("kernels")], ids=repr)
def test_gradients_are_those_of_the_values(penalty):
    weight = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(penalty.value(weight), weight)
    torch.testing.assert_close(penalty.gradient(weight.detach()), wanted)


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=repr)
def test_zero_weights_are_left_alone(penalty):
    weight = torch.randn(6, 5) * (torch.rand(6, 5) < 0.3)
    weight[2] = 0
    assert not bool(penalty.gradient(weight)[weight == 0].any())
    if not penalty.without_prox():
        assert not bool(penalty.prox(weight, 0.1)[weight == 0].any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=repr)
def test_half_precision_neither_overflows_nor_stalls(penalty, dtype):
    weight = torch.full((400, 400), 3.0, dtype=dtype)  # squares sum to 1.44 million; float16 ends at 65504
    assert float(penalty.value(weight)) == pytest.approx(float(penalty.value(weight.double())), rel=1e-5)
    wanted = penalty.gradient(weight.double())
    torch.testing.assert_close(penalty.gradient(weight).double(), wanted, rtol=1e-2, atol=1e-6)


def test_hoyer_does_not_see_the_scale():
    weight = torch.randn(7, 3, dtype=torch.float64)
    assert float(Hoyer().value(weight * 1000)) == pytest.approx(float(Hoyer().value(weight)))


def test_a_users_own_penalty_needs_only_its_value():
    assert Fourth().gradient(torch.tensor([1.0, -2.0])).tolist() == [4.0, -32.0]
    assert "l1, elastic or group_lasso" in Fourth().without_prox()
    with pytest.raises(NotImplementedError, match="no proximal operator"):
        Fourth().prox(torch.ones(2), 0.1)
