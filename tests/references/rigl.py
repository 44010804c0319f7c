"""RigL (Evci et al. 2020, https://arxiv.org/abs/1911.11134, algorithm 1), restated slowly in Python and numpy.

Written from the paper's pseudo-code and the authors' ``sparse_optimizers_base.py``, entry by entry, to compare with.
Where the paper leaves a choice: ties go to the lower index, the update follows the optimizer step.
"""

import math

import numpy as np


def drop_fraction(step, alpha, t_end):
    """f_decay(t; alpha, T_end) = alpha / 2 (1 + cos(t pi / T_end)); zero after T_end."""
    return alpha / 2 * (1 + math.cos(step * math.pi / t_end)) if step < t_end else 0.0


def arg_top_k(values, candidates, k):
    """The k candidates of largest value; the lower index among equals."""
    left, taken = sorted(candidates), []
    for _ in range(k):
        best = left[0]
        for i in left:
            if values[i] > values[best]:
                best = i
        taken.append(best)
        left.remove(best)
    return taken


def update(weight, mask, grad, fraction, regrow_dropped):
    """One layer's new mask and weights; 1-D arrays.

    ``regrow_dropped=True`` is the paper's rule: whatever is not kept competes for growth, and what was live keeps its
    value. ``False``: only what was dead before competes.
    """
    live = [i for i in range(len(weight)) if mask[i]]
    dead = [i for i in range(len(weight)) if not mask[i]]
    k = math.floor(fraction * len(live))
    if not regrow_dropped:
        k = min(k, len(dead))  # no more than can be grown
    kept = arg_top_k(np.abs(weight), live, len(live) - k)
    candidates = [i for i in range(len(weight)) if i not in kept] if regrow_dropped else dead
    grown = arg_top_k(np.abs(grad), candidates, k)
    new_mask, new_weight = np.zeros(len(weight), dtype=bool), np.zeros_like(weight)
    for i in kept + grown:
        new_mask[i] = True
        if mask[i]:
            new_weight[i] = weight[i]
    return new_mask, new_weight


def train(weight, mask, gradient_at, *, steps, lr, every, stop, alpha, regrow_dropped=False, replace_step=False):
    """The loop of algorithm 1 with plain gradient descent; returns weights and mask after every step."""
    history = []
    for step in range(1, steps + 1):
        grad = gradient_at(weight)
        due = step % every == 0 and step <= stop
        if not (due and replace_step):
            weight = weight - lr * grad * mask
        if due:
            mask, weight = update(weight, mask, grad, drop_fraction(step, alpha, stop), regrow_dropped)
        history.append((weight, mask))
    return history
