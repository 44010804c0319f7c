"""SynFlow (Tanaka et al. 2020, https://arxiv.org/abs/2006.05467, eq. 2 and algorithm 1), restated slowly in numpy.

Written from the paper's pseudo-code for a perceptron of ReLU layers, weight by weight. Where the paper leaves a choice:
biases are made positive like weights and are not pruned, counts are rounded, ties go to the lower index.
"""


def layer(weight, bias, x):
    """Before the non-linearity."""
    return [bias[i] + sum(weight[i][j] * x[j] for j in range(len(x))) for i in range(len(weight))]


def relu(values):
    return [value if value > 0 else 0.0 for value in values]


def flow_scores(weights, biases, masks):
    """|w dR/dw| with R the sum of the outputs for an input of ones, everything positive."""
    weights = [[[abs(w) * m for w, m in zip(*row, strict=True)] for row in zip(*pair, strict=True)]
               for pair in zip(weights, masks, strict=True)]  # fmt: skip
    biases = [[abs(b) for b in bias] for bias in biases]
    inputs, sums = [[1.0] * len(weights[0][0])], []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        sums.append(layer(weight, bias, inputs[-1]))
        inputs.append(relu(sums[-1]) if i < len(weights) - 1 else sums[-1])
    slope, found = [1.0] * len(weights[-1]), []
    for depth in reversed(range(len(weights))):
        weight, x = weights[depth], inputs[depth]
        if depth < len(weights) - 1:
            slope = [s if z > 0 else 0.0 for s, z in zip(slope, sums[depth], strict=True)]
        found.insert(0, [[weight[i][j] * slope[i] * x[j] for j in range(len(x))] for i in range(len(weight))])
        slope = [sum(weight[i][j] * slope[i] for i in range(len(weight))) for j in range(len(x))]
    return found


def prune(weights, biases, keep, iterations):
    """Masks of ``keep`` weights after as many rounds; None if a layer was left with nothing on the way."""
    size = sum(len(row) for weight in weights for row in weight)
    masks = [[[True] * len(row) for row in weight] for weight in weights]
    for k in range(1, iterations + 1):
        scores = flow_scores(weights, biases, masks)
        places = [(depth, i, j) for depth, w in enumerate(weights) for i, row in enumerate(w) for j in range(len(row))]
        live = [(-scores[d][i][j], d, i, j) for d, i, j in places if masks[d][i][j]]
        count = round(size * (keep / size) ** (k / iterations))
        kept = {(d, i, j) for _, d, i, j in sorted(live)[:count]}
        masks = [[[(d, i, j) in kept for j in range(len(row))] for i, row in enumerate(w)]
                 for d, w in enumerate(weights)]  # fmt: skip
        if not all(any(any(row) for row in mask) for mask in masks):
            return None
    return masks
