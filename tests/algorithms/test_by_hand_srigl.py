"""SRigL on tables of a few neurons, worked by hand."""

import pytest
import torch
from tables import after, live, param
from torch import nn

from lightning_sparse import NM, Sparsifier, SRigL
from lightning_sparse.core.schedules import ConstantSchedule

REST = param([[1.0, 1.0]], [[1, 1]], [[0.0, 0.0]], name="rest")  # so that what is looked at is not the last layer


def srigl(fraction=0.5, gamma=0.5, **settings):
    return SRigL(every=1, stop=99, fraction=ConstantSchedule(fraction), gamma=gamma, **settings)


def rows(algorithm, p, *, last=False):
    """Live inputs of each neuron after an update."""
    mask = algorithm.update([p] if last else [p, REST], 1)["w"]
    return [live(row) for row in mask.flatten(1)]


# Six live weights of three neurons with four inputs. Half stays: .9, .8, .7; three would grow: (0, 2) 5, (0, 3) 4 and
# (1, 2) 1. So 4, 2 and 0 are salient.
TABLE = {
    "weight": [[0.9, 0.8, 0, 0], [0.7, 0.1, 0, 0], [0.05, 0.06, 0, 0]],
    "mask": [[1, 1, 0, 0]] * 3,
    "grad": [[0, 0, 5, -4], [0, 0, 1, 0.5], [9, 9, 0.1, 0.2]],
}


def test_a_neuron_without_salient_weights_is_cut_off_and_the_others_get_its_places():
    # fan-in 6 / 2 = 3: the first keeps two and grows 2; the second keeps .7 and grows both of its dead
    assert rows(srigl(), param(**TABLE)) == [[0, 1, 2], [0, 2, 3], []]


def test_the_last_layer_loses_no_neuron():
    # fan-in 2: the third has nothing left and grows its two dead ones
    assert rows(srigl(), param(**TABLE), last=True) == [[0, 1], [0, 2], [2, 3]]


def test_a_gamma_of_zero_cuts_off_no_neuron():
    assert rows(srigl(gamma=0.0), param(**TABLE)) == [[0, 1], [0, 2], [2, 3]]


def test_the_switch_lets_dropped_weights_compete():
    # grown would be (2, 0) and (2, 1), 9 each, and (0, 2): 3, 1 and 2 are salient, fan-in 2 for all; the third gets its
    # own back
    assert rows(srigl(regrow_dropped=True), param(**TABLE)) == [[0, 1], [0, 2], [0, 1]]


@pytest.mark.parametrize(("gamma", "cut"), [(0.5, [False, False]), (0.99, [False, False]), (1.0, [True, False])])
def test_gamma_is_a_share_of_the_fan_in_rounded_down(gamma, cut):
    # eight live weights, four each; 3 and 5 are salient (.1 goes, (1, 4) comes); of four, gamma asks for 2, 3 and 4
    p = param(
        [[5, 5, 5, 0.1, 0, 0, 0, 0, 0], [5, 5, 5, 5, 0, 0, 0, 0, 0]],
        [[1, 1, 1, 1] + [0] * 5] * 2,
        [[0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 3, 2, 2, 2, 2]],
    )
    assert [not row for row in rows(srigl(1 / 8, gamma), p)] == cut


def test_a_neuron_comes_back_and_the_others_keep_their_largest():
    # fan-in was 3; of six two go (.1, .2), (2, 0) and (2, 1) come: 3, 1 and 2 are salient, so all three live with two.
    # The first keeps .9 and .85 (not .8, though it comes earlier), the second .7 and grows its only dead one
    p = param(
        [[0.9, 0.8, 0.85, 0], [0.7, 0, 0.1, 0.2], [0, 0, 0, 0]],
        [[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]],
        [[0, 0, 0, 0.1], [0, 0.1, 0, 0], [3, 2, 0, 0]],
    )
    assert rows(srigl(1 / 3), p) == [[0, 2], [0, 1], [0, 1]]


def test_what_cannot_be_shared_evenly_goes_to_the_neurons_with_most_salient_weights():
    # seven live; two go (.1, .2) and (1, 2), (1, 3) come: 2, 4 and 1 are salient; 7 = 3 * 2 + 1, the second gets three
    p = param(
        [[0.9, 0.8, 0.1, 0], [0.7, 0.6, 0, 0], [0.5, 0.2, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]],
        [[0, 0, 0, 0.1], [0, 0, 4, 5], [0, 0, 0.3, 0.2]],
    )
    assert rows(srigl(2 / 7), p) == [[0, 1], [0, 1, 3], [0, 2]]


def test_after_ablation_the_smallest_of_the_neurons_that_stay_go():
    # of nine, six stay and (0, 3), (0, 4), (1, 3) come: 4, 2 and 3 are salient, of a fan-in of 3; with gamma 1 the
    # second is cut off. Six of what is left stay: so .3 does, which is smaller than the .7 that was cut off
    p = param(
        [[0.9, 0.8, 0.3, 0, 0, 0], [0.7, 0.2, 0.1, 0, 0, 0], [0.5, 0.45, 0.4, 0, 0, 0]],
        [[1, 1, 1, 0, 0, 0]] * 3,
        [[0, 0, 0, 9, 8, 0], [0, 0, 0, 7, 0, 0], [0, 0, 0, 0, 0, 0]],
    )
    # nine of two neurons are 5 and 4; the third has three, and grows the first of equal gradients
    assert rows(srigl(1 / 3, 1.0), p) == [[0, 1, 2, 3, 4], [], [0, 1, 2, 3]]


def test_a_neuron_with_too_few_to_grow_keeps_the_largest_it_dropped():
    # eight live; .1, .05 and .04 go; (0, 3), (1, 3) and (2, 3) come: 3, 4 and 1 are salient; gamma 1 asks for two. The
    # other two must hold four each, all they have, and the first takes back its .1
    p = param(
        [[0.9, 0.8, 0.1, 0], [0.7, 0.6, 0.5, 0], [0.05, 0.04, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]],
        [[0, 0, 0, 5], [0, 0, 0, 4], [0, 0, 0.1, 0.2]],
    )
    assert rows(srigl(3 / 8, 1.0), p) == [[0, 1, 2, 3], [0, 1, 2, 3], []]


def test_as_many_neurons_stay_as_the_weights_need():
    # nine of twelve need three neurons of four inputs, whatever is salient
    p = param(
        [[9, 8, 7, 0], [6, 5, 4, 0], [0.1, 0.1, 0.1, 0]],
        [[1, 1, 1, 0]] * 3,
        [[0, 0, 0, 9], [0, 0, 0, 8], [0, 0, 0, 0]],
    )
    assert [len(row) for row in rows(srigl(1 / 3, 1.0), p)] == [3, 3, 3]
    # three of twelve need one: only the first has a salient weight
    sparse = param([[9, 0, 0, 0], [0.1, 0, 0, 0], [0.2, 0, 0, 0]], [[1, 0, 0, 0]] * 3, [[0, 8, 7, 6], [0] * 4, [0] * 4])
    assert rows(srigl(0.7, 1.0), sparse) == [[0, 1, 2], [], []]


def test_a_full_layer_and_a_fraction_of_zero_move_nothing():
    full = param([[3, 2], [1, 4]], [[1, 1], [1, 1]], [[1, 1], [1, 1]])
    assert rows(srigl(), full) == [[0, 1], [0, 1]]
    assert after(srigl(0.0), param(**TABLE), REST)[0] == [0, 1, 4, 5, 8, 9]


def test_a_neuron_of_a_convolution_reads_all_inputs_and_kernel_positions():
    # the same table, its four inputs as two channels of two positions
    shaped = {key: torch.tensor(value).reshape(3, 2, 2) for key, value in TABLE.items()}
    assert rows(srigl(), param(**shaped)) == [[0, 1, 2], [0, 2, 3], []]


def test_a_neuron_of_a_transposed_convolution_is_in_the_second_dimension():
    # the same table, turned: (inputs, outputs, kernel) with two inputs, three outputs and two positions
    shaped = {key: torch.tensor(value).reshape(3, 2, 2).transpose(0, 1) for key, value in TABLE.items()}
    mask = srigl().update([param(**shaped, module=nn.ConvTranspose1d(2, 3, 2)), REST], 1)["w"]
    assert [live(row) for row in mask.transpose(0, 1)] == [[0, 1, 2], [0, 2, 3], []]


@pytest.mark.parametrize("init", ["random", "magnitude"])
def test_the_first_masks_have_constant_fan_in_at_the_planned_count(init):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Linear(5, 7))
    # 216 + 216 + 35 weights; .3 each: 64.8, 64.8, 10.5, in all 140.1; the largest remainders are rounded up
    engine = Sparsifier(model, SRigL(stop=9), 0.3, init=init, allocation="uniform")
    counts = [p.live for p in engine.params.values()]
    assert counts == [65, 65, 10]
    conv, transposed, linear = engine.masks.values()
    groups = transposed.unflatten(0, (2, 4)).transpose(1, 2).flatten(2).flatten(0, 1)  # six outputs that read 4 x 9
    assert conv.flatten(1).sum(1).sort().values.tolist() == [8] * 7 + [9]
    assert groups.sum(1).sort().values.tolist() == [10] + [11] * 5
    assert linear.sum(1).sort().values.tolist() == [1, 1, 1, 1, 2, 2, 2]


def test_the_first_masks_by_magnitude_keep_the_largest_of_each_neuron():
    model = nn.Linear(3, 2, bias=False)
    model.weight = nn.Parameter(torch.tensor([[9.0, 8, 7], [1, 3, 2]]))
    engine = Sparsifier(model, SRigL(stop=9), 0.5, init="magnitude")
    assert engine.masks["weight"].int().tolist() == [[1, 1, 0], [0, 1, 0]]  # the third goes where the largest is


def test_what_excludes_constant_fan_in_is_refused():
    with pytest.raises(ValueError, match="SRigL makes its own pattern, constant fan-in; leave out pattern=NM"):
        Sparsifier(nn.Linear(8, 4), SRigL(stop=9), 0.5, pattern=NM(2, 4))
    with pytest.raises(ValueError, match="SRigL needs a count for each layer; take another allocation than 'global'"):
        Sparsifier(nn.Linear(8, 4), SRigL(stop=9), 0.5, init="magnitude", allocation="global")


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_a_gamma_that_is_no_share_is_refused(gamma):
    with pytest.raises(ValueError, match=f"SRigL: gamma must be in \\[0, 1\\], got {gamma}"):
        SRigL(gamma=gamma)


def test_the_schedule_is_that_of_rigl():
    assert (SRigL().every, SRigL().stop, SRigL(variant="itop").every, SRigL().gamma) == (100, 0.75, 4000, 0.3)
    assert SRigL(every=100).training_flops(0.2, 1.0) / 3 == pytest.approx(0.2026, abs=5e-5)
