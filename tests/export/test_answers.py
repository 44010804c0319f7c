"""How far two answers are apart."""

import pytest
import torch

from lightning_sparse.export.answers import compare, require

ONE = torch.tensor([[0.0, 4.0], [4.0, 0.0]])  # spread 2, range 4


def test_worked_by_hand():
    # Differences 0, 0, 1, 3: root mean square sqrt(10 / 4) over 2; the largest over 4; the second row's largest moved.
    found = compare("it", [ONE], [torch.tensor([[0.0, 4.0], [3.0, 3.5]])])
    assert found.error == pytest.approx(((1 + 3.5**2) / 4) ** 0.5 / 2)
    assert found.largest == pytest.approx(3.5 / 4)
    assert found.same == 0.5


def test_of_several_outputs_the_worst_counts():
    found = compare("it", [ONE, ONE], [ONE, ONE + 1])
    assert (found.error, found.largest) == (0.5, 0.25)


def test_equal_answers_have_no_difference_also_where_they_are_no_numbers():
    odd = torch.tensor([[1.0, float("inf")], [2.0, float("-inf")]])
    assert compare("it", [odd], [odd.clone()]).error == 0
    assert compare("it", [torch.tensor([1, 2])], [torch.tensor([1, 2])]).same is None
    assert compare("it", [torch.zeros(0, 2)], [torch.zeros(0, 2)]).error == 0


@pytest.mark.parametrize("got", [torch.full((2, 2), float("nan")), ONE + float("inf"), ONE * -1])
def test_an_answer_that_is_far_off_is_refused(got):
    with pytest.raises(ValueError, match=r"to_it: it and PyTorch disagree: error"):
        require(compare("it", [ONE], [got]), 0.05, "to_it")


def test_a_constant_answer_has_a_scale_too():
    assert compare("it", [torch.full((3, 1), 5.0)], [torch.full((3, 1), 5.0 + 1e-6)]).error < 1e-3
    assert compare("it", [torch.full((3, 1), 5.0)], [torch.full((3, 1), 6.0)]).error > 1


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"outputs of the shapes \[\(2, 1\)\], PyTorch with \[\(2, 2\)\]"):
        compare("it", [ONE], [ONE[:, :1]])


def test_a_difference_within_the_tolerance_passes():
    require(compare("it", [ONE], [ONE + 0.01]), 0.05, "to_it")
