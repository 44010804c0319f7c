"""SNIP (Lee et al. 2019, https://arxiv.org/abs/1810.02340, eq. 5 and algorithm 1), restated slowly in numpy.

Written from the paper, for a perceptron of tanh layers under softmax and cross entropy, with gradients by hand. Where
the paper leaves a choice: biases are not ranked, gradients of several batches are averaged, and where a layer would
lose everything (no choice in the paper: it may) this does not say what happens.
"""

import numpy as np


def forward(weights, biases, x, temperature=1.0):
    """The outputs of every layer, from the input; of the last one the logits."""
    outputs = [x]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        z = outputs[-1] @ weight.T + bias
        outputs.append(np.tanh(z) if i < len(weights) - 1 else z / temperature)
    return outputs


def gradient(weights, biases, x, y, temperature=1.0):
    """Of the mean cross entropy by each weight matrix; x (samples, features), y (samples,) class numbers."""
    outputs = forward(weights, biases, x, temperature)
    odds = np.exp(outputs[-1] - outputs[-1].max(1, keepdims=True))
    slope = odds / odds.sum(1, keepdims=True)
    for i, label in enumerate(y):
        slope[i, label] -= 1
    slope /= len(y) * temperature
    found = []
    for i in reversed(range(len(weights))):
        found.insert(0, slope.T @ outputs[i])
        if i:
            slope = (slope @ weights[i]) * (1 - outputs[i] ** 2)
    return found


def best(scores, k):
    """Masks of the k largest entries of all layers together, one after the other; the earlier among equals."""
    flat = [(-value, i) for i, value in enumerate(np.concatenate([s.ravel() for s in scores]))]
    taken = {i for _, i in sorted(flat)[:k]}
    masks, offset = [], 0
    for s in scores:
        masks.append(np.array([offset + i in taken for i in range(s.size)]).reshape(s.shape))
        offset += s.size
    return masks


def sensitivity(weights, biases, batches):
    """|w dL/dw|: the effect on the loss, to first order, of removing a connection (eq. 4 to 6)."""
    total = [np.zeros_like(w) for w in weights]
    for x, y in batches:
        for sum_, g in zip(total, gradient(weights, biases, x, y), strict=True):
            sum_ += g
    return [abs(w * g / len(batches)) for w, g in zip(weights, total, strict=True)]


def prune(weights, biases, batches, k):
    """Masks of the k most sensitive connections; the normalisation of eq. 6 does not change their order."""
    return best(sensitivity(weights, biases, batches), k)
