"""DSR (Mostafa & Wang 2019, https://arxiv.org/abs/1902.05967, algorithm 1), restated slowly in Python and numpy.

Written from the paper's pseudo-code, entry by entry, to compare with. Where the paper leaves a choice: what rounding
leaves over goes to the largest remainders (to the earlier layer among equals), a layer that would lose all keeps its
largest weight, a layer takes no more than it has free places and the rest goes to the others in the same proportion,
and where there are too few free places in all, each layer drops no more than it has of them.
"""

import math
from fractions import Fraction

import numpy as np


def below(weight, mask, threshold):
    """The live entries that the threshold prunes, smallest first; one stays."""
    fallen = [i for i in range(len(weight)) if mask[i] and abs(weight[i]) < threshold]
    fallen.sort(key=lambda i: (abs(weight[i]), -i))  # of equals the lower index stays longer
    return fallen[: int(sum(mask)) - 1]


def deal(survivors, total, room):
    """How many weights each layer grows."""
    given, left, open_ = {}, Fraction(total), list(range(len(survivors)))
    while True:
        weight = sum(survivors[i] for i in open_)
        full = [i for i in open_ if weight and left * survivors[i] / weight > room[i]]
        if not full:
            break
        for i in full:
            given[i] = Fraction(room[i])
        open_ = [i for i in open_ if i not in full]
        left = total - sum(given.values())
    for i in open_:
        given[i] = left * survivors[i] / weight
    counts = [math.floor(given[i]) for i in range(len(survivors))]
    remainders = [given[i] - counts[i] for i in range(len(survivors))]
    order = sorted(range(len(survivors)), key=lambda i: (-remainders[i], i))
    extra = total - sum(counts)
    for i in order[:extra]:
        counts[i] += 1
    return counts


def reallocate(weights, masks, threshold, wanted, chances):
    """New masks, weights and threshold of all layers (lists of 1-D arrays).

    ``chances`` are random numbers; the free places with the largest grow.
    """
    pruned = [below(w, m, threshold) for w, m in zip(weights, masks, strict=True)]
    count = sum(len(p) for p in pruned)
    if count > 1.1 * wanted:
        after = threshold / 2
    elif count < 0.9 * wanted:
        after = threshold * 2
    else:
        after = threshold
    free = [[i for i in range(len(m)) if not m[i]] for m in masks]  # not what was just pruned
    if count > sum(len(places) for places in free):
        pruned = [p[: len(places)] for p, places in zip(pruned, free, strict=True)]
    survivors = [int(sum(m)) - len(p) for m, p in zip(masks, pruned, strict=True)]
    grown = deal(survivors, sum(len(p) for p in pruned), [len(places) for places in free])
    new_masks, new_weights = [], []
    for weight, mask, gone, places, n, chance in zip(weights, masks, pruned, free, grown, chances, strict=True):
        places.sort(key=lambda i: (-chance[i], i))
        new = np.array([bool(mask[i]) and i not in gone for i in range(len(mask))])
        new_weights.append(np.where(new, weight, 0.0))  # what is grown starts at zero
        new[places[:n]] = True
        new_masks.append(new)
    return new_masks, new_weights, after
