"""A mask, chosen before training and without data, that keeps every layer connected."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_sparse.algorithms.at_init import gradients, refuse_empty_scores, some, wrong_count
from lightning_sparse.core.algorithm import Algorithm, Masks, everything, keep_budget, thin
from lightning_sparse.core.allocation import AllocationName
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.probe import Probe

_MOST = 10_000  # iterations: beyond them a step goes by less than one weight in a thousand, and a run seems to hang
_MIXING = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.MultiheadAttention, nn.Softmax, nn.RNNBase)


@dataclass(frozen=True)
class SynFlow(Algorithm):
    """Keep the weights through which most signal flows, before any training and without data.

    All parameters and buffers are replaced by their absolute values, the input by ones; ``R`` is the sum of the
    outputs. The score is ``|w * dR/dw|``, over all layers together; it is taken anew after each of ``iterations`` steps
    from density 1 down to the wanted one, each by the same factor. No layer is emptied as long as another weight can go
    (Tanaka et al. 2020, https://arxiv.org/abs/2006.05467, eq. 2 and algorithm 1). The mask then stays as it is.

    Differences from the authors' code: computed in float64, where theirs overflows on deep networks (tensors that
    ``forward`` makes are float64 too, unless it says otherwise); exact counts. On normalisations over features and on
    attention the argument of the paper fails: a warning names them.

    Args:
        iterations: steps from dense to the wanted density, at most 10,000; each is a forward and a backward pass.

    Example:
        >>> from lightning_sparse import Sparsifier
        >>> model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> engine = Sparsifier(model, SynFlow(), 0.25, example_inputs=torch.zeros(1, 6))
        >>> sum(int(mask.sum()) for mask in engine.masks.values())
        10
    """

    allocation: ClassVar[AllocationName] = "global"
    asks: ClassVar[Literal["nothing", "loss", "inputs"]] = "inputs"

    iterations: int = 100

    def __post_init__(self) -> None:
        """Check what was given."""
        problems = wrong_count("iterations", self.iterations)
        if not problems and self.iterations > _MOST:
            problems = [f"iterations must be at most {_MOST:,} (the paper takes 100), got {self.iterations!r}"]
        raise_problems(problems, "SynFlow")

    def init_from(self, params: Sequence[SparseParam], probe: Probe) -> Masks:
        """Iterate from dense to the wanted density.

        Raises:
            ValueError: if the model does not take its example, the flow overflows, or there is none.
        """
        model = probe.model.double().eval()
        _warn(model)
        with torch.no_grad():
            for value in [*model.parameters(), *model.buffers()]:
                if value.is_floating_point():
                    value.abs_()
        inputs = _one_sample(model, tree_map(_ones, probe.example_inputs))
        weights = probe.weights([p.name for p in params])
        full = {name: w.detach().clone() for name, w in weights.items()}
        masks = everything(params)
        for k in range(1, self.iterations + 1):
            scores = self._scores(model, inputs, weights)
            if k == 1:
                refuse_empty_scores("SynFlow", params, scores)
            ranked = {name: score.masked_fill(~masks[name], -1.0) for name, score in scores.items()}
            masks = keep_budget(params, ranked, thin(params, k / self.iterations))
            with torch.no_grad():
                for name, w in weights.items():
                    w.copy_(full[name] * masks[name])
        return masks

    def _scores(self, model: nn.Module, inputs: Any, weights: Masks) -> Masks:
        with torch.enable_grad():
            flow = _flow(model, inputs)
        if not bool(flow.isfinite()):
            raise ValueError("SynFlow: the flow through the network overflows even in float64; take SNIP instead")
        return {name: (weights[name] * g).detach().abs() for name, g in gradients(flow, weights).items()}


def _flow(model: nn.Module, inputs: Any) -> Tensor:
    """The sum of all outputs."""
    return torch.stack([x.sum() for x in tree_leaves(_call(model, inputs)) if _is_float(x)]).sum()


@torch.no_grad()
def _one_sample(model: nn.Module, inputs: Any) -> Any:
    """The first of the samples in ``inputs``; all of ``inputs``, where its rows are no samples or differ.

    Rows are samples if ``n`` copies of the first make ``n`` times its flow: not so the nodes of a graph, or the words
    of one sentence.
    """
    rows = {len(x) for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim}
    if len(rows) != 1 or rows == {1} or rows == {0}:
        return inputs
    (n,) = rows
    first = tree_map(lambda x: x[:1] if isinstance(x, Tensor) and x.ndim else x, inputs)
    copies = tree_map(lambda x: x[:1].expand_as(x) if isinstance(x, Tensor) and x.ndim else x, inputs)
    try:
        one, all_of_them = _flow(model, first), _flow(model, copies)
    except ValueError:
        return inputs
    return first if torch.isclose(all_of_them, n * one, rtol=1e-9, atol=0) else inputs


@contextmanager
def _in_float64() -> Iterator[None]:
    """Tensors that are made without a dtype are float64, like the model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _call(model: nn.Module, inputs: Any) -> Any:
    try:
        with _in_float64():
            if isinstance(inputs, dict):
                return model(**inputs)
            return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    except Exception as error:
        raise ValueError(
            f"SynFlow: the model's forward() does not take the inputs it was given ({type(error).__name__}: {error}); "
            "give the model an example_input_array that it takes; it is called in float64"
        ) from error


def _ones(value: Any) -> Any:
    """Ones; token numbers and the like as they are."""
    return torch.ones_like(value, dtype=torch.float64) if _is_float(value) else value


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _warn(model: nn.Module) -> None:
    names = [name for name, module in model.named_modules() if isinstance(module, _MIXING)]
    if names:
        warnings.warn(
            f"SynFlow is weak on normalisation over features, attention and recurrent layers, where its flow is not "
            f"conserved: {some(names)}; SNIP or GraSP suit such models better",
            stacklevel=2,
        )
