"""Which weight gets how many bits, so that together they fit a budget at the least expected harm."""

from collections.abc import Mapping

from lightning_sparse.core.errors import raise_problems

Table = Mapping[str, Mapping[int, float]]


def assign(harms: Table, costs: Table, budget: float) -> dict[str, int]:
    """Bits of each weight: from the most on, where a saved unit of cost harms least comes next, until all fit.

    What the last step saved too much is given back where that helps most. A greedy choice is exact where harm falls
    ever more slowly with bits, as it nearly does, but for what the last step leaves over.

    Args:
        harms: expected growth of the loss, by weight and bits.
        costs: bits times live weights, or bytes, by weight and bits: growing with bits.
        budget: for the sum of costs.

    Raises:
        ValueError: if the fewest bits do not fit.

    Example:
        >>> harms = {"a": {2: 9.0, 4: 1.0, 8: 0.0}, "b": {2: 2.0, 4: 1.5, 8: 0.0}}
        >>> costs = {name: {bits: 10.0 * bits for bits in (2, 4, 8)} for name in harms}
        >>> assign(harms, costs, budget=10 * (4 + 2))
        {'a': 4, 'b': 2}
    """
    least = sum(min(cost.values()) for cost in costs.values())
    if least > budget:
        raise_problems([f"the budget is {budget:.6g}, and the fewest bits everywhere need {least:.6g}"], "bits")
    bits = {name: max(cost) for name, cost in costs.items()}
    while (spent := sum(costs[name][b] for name, b in bits.items())) > budget:
        name, to = min(_steps(costs, bits, down=True), key=lambda step: _price(harms, costs, bits, step))
        bits[name] = to
    while True:  # give back what is left over
        fitting = [
            step
            for step in _steps(costs, bits, down=False)
            if spent + costs[step[0]][step[1]] - costs[step[0]][bits[step[0]]] <= budget
            and harms[step[0]][step[1]] < harms[step[0]][bits[step[0]]]
        ]
        if not fitting:
            return bits
        name, to = min(fitting, key=lambda step: harms[step[0]][step[1]] - harms[step[0]][bits[step[0]]])
        spent += costs[name][to] - costs[name][bits[name]]
        bits[name] = to


def _steps(costs: Table, bits: Mapping[str, int], *, down: bool) -> list[tuple[str, int]]:
    return [(name, to) for name, b in bits.items() for to in sorted(costs[name]) if (to < b if down else to > b)]


def _price(harms: Table, costs: Table, bits: Mapping[str, int], step: tuple[str, int]) -> float:
    """Harm for each unit of cost that is saved."""
    name, to = step
    saved = costs[name][bits[name]] - costs[name][to]
    return (harms[name][to] - harms[name][bits[name]]) / saved if saved > 0 else float("inf")
