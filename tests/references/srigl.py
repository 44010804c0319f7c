"""SRigL (Lasby et al. 2023, https://arxiv.org/abs/2305.02299, section 3.1), restated slowly in Python and numpy.

Written from the seven steps of the paper, neuron by neuron, to compare with. Where the paper leaves a choice: ties go
to the lower index; the fan-in that ablation refers to is that without ablation; what the active neurons cannot share
evenly goes to those with most salient weights; of neurons as salient as the last one that the weights need, all stay;
a neuron with too few candidates to grow keeps the largest of what it dropped.
"""

import math

import numpy as np


def best(values, entries, k):
    """The k entries of largest value; the lower index among equals."""
    return sorted(entries, key=lambda entry: (-values[entry], entry))[:k]


def update(weight, mask, grad, fraction, gamma, ablate, regrow_dropped=False):
    """One layer's new mask and weights; (neurons, inputs) arrays."""
    magnitude, slope = np.abs(weight), np.abs(grad)
    neurons, inputs = weight.shape
    every = [(i, j) for i in range(neurons) for j in range(inputs)]
    live, dead = [e for e in every if mask[e]], [e for e in every if not mask[e]]
    # 1, 2. magnitudes of live weights, gradients of pruned ones, and how many are exchanged
    k = math.floor(fraction * len(live))
    if not regrow_dropped:
        k = min(k, len(dead))
    if k == 0:
        return mask, weight
    # 3. salient weights: the largest magnitudes and the largest gradients
    largest = best(magnitude, live, len(live) - k)
    candidates = [e for e in every if e not in largest] if regrow_dropped else dead
    salient = largest + best(slope, candidates, k)
    counts = [sum(e[0] == i for e in salient) for i in range(neurons)]
    # 4. ablation
    active = list(range(neurons))
    if ablate and gamma > 0:
        enough = max(1, math.floor(gamma * (len(live) // neurons)))
        needed = math.ceil(len(live) / inputs)
        enough = min(enough, sorted(counts, reverse=True)[needed - 1])
        active = [i for i in active if counts[i] >= enough]
    # 5. the new fan-in
    each, rest = divmod(len(live), len(active))
    fan_in = dict.fromkeys(active, each)
    for i in sorted(active, key=lambda i: (-counts[i], i))[:rest]:
        fan_in[i] += 1
    # 6. prune the smallest weights of the layer
    alive = [e for e in live if e[0] in active]
    kept = best(magnitude, alive, len(live) - k)
    candidates = [e for e in every if e not in kept] if regrow_dropped else dead
    # 7. each neuron keeps its largest, and grows until it has its fan-in
    new_mask, new_weight = np.zeros_like(mask), np.zeros_like(weight)
    for i in active:
        own = best(magnitude, [e for e in kept if e[0] == i], fan_in[i])
        own += best(slope, [e for e in candidates if e[0] == i], fan_in[i] - len(own))
        dropped = [e for e in live if e[0] == i and e not in own]
        own += best(magnitude, dropped, fan_in[i] - len(own))
        for e in own:
            new_mask[e] = True
            if mask[e]:
                new_weight[e] = weight[e]
    return new_mask, new_weight
