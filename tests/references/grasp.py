"""GraSP (Wang et al. 2020, https://arxiv.org/abs/2002.07376, eq. 8 and algorithm 2), restated slowly in numpy.

Written from the paper, for the perceptron of ``snip.py``. The Hessian-gradient product is a central difference of the
gradient, so scores are right to about eight digits. Weights only, as in the authors' code; all batches together.
"""

import numpy as np

STEP = 1e-5


def mean_gradient(gradient, weights, biases, batches, temperature):
    """Of the loss over all batches; they are equally large."""
    total = [np.zeros_like(w) for w in weights]
    for x, y in batches:
        for sum_, g in zip(total, gradient(weights, biases, x, y, temperature), strict=True):
            sum_ += g
    return [sum_ / len(batches) for sum_ in total]


def flow_scores(gradient, weights, biases, batches, temperature):
    """w * (H g), the negative of the paper's S(-w): what is smallest is removed first."""
    g = mean_gradient(gradient, weights, biases, batches, temperature)
    norm = np.sqrt(sum((part**2).sum() for part in g))
    step = STEP / norm  # along the gradient: its length does not matter to the quotient
    ahead = [w + step * part for w, part in zip(weights, g, strict=True)]
    behind = [w - step * part for w, part in zip(weights, g, strict=True)]
    up = mean_gradient(gradient, ahead, biases, batches, temperature)
    down = mean_gradient(gradient, behind, biases, batches, temperature)
    return [w * (u - d) / (2 * step) for w, u, d in zip(weights, up, down, strict=True)]


def is_clear(scores, k, margin=1e-5):
    """Whether the k-th largest score is so far from the next that the error of the difference cannot matter."""
    flat = np.sort(np.concatenate([s.ravel() for s in scores]))[::-1]
    return k == len(flat) or flat[k - 1] - flat[k] > margin * abs(flat).max()
