"""What a run's sparsity looks like, in numbers and a table; for any loop."""

from collections.abc import Mapping
from typing import Any

import torch

from lightning_sparse.core.flops import Costs
from lightning_sparse.core.health import MaskHistory
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.plan import table
from lightning_sparse.metrics import Density, NonzeroDensity, TrainingFLOPs

Params = Mapping[str, SparseParam]


class SparsityWatch:
    """Follows the sparse parameters of a run: ``note`` new masks, ``count`` steps, then read.

    Attributes:
        flops: dense forward FLOPs of one batch by parameter name; without them FLOPs are not reported.
        densities: live share of each layer at every update, a row an update.
        history: of the masks.

    Example:
        >>> from lightning_sparse import Sparsifier, Static
        >>> engine = Sparsifier(torch.nn.Linear(10, 10), Static(), 0.25)
        >>> watch = SparsityWatch()
        >>> watch.note(engine.params)
        >>> watch.scalars(engine.params)
        {'density': 0.25, 'nonzero_density': 0.25}
    """

    def __init__(self) -> None:
        self.flops: Costs = {}
        self.densities: list[list[float]] = []
        self.history = MaskHistory()
        self.training_flops = TrainingFLOPs(share=True)

    def note(self, params: Params) -> None:
        """Look at the masks; those that have not moved are no news."""
        masks = {name: p.mask.cpu() for name, p in params.items()}
        if {n: m.shape for n, m in self.history.now.items()} != {n: m.shape for n, m in masks.items()}:
            self.history, self.densities = MaskHistory(), []  # another model
        if any(not torch.equal(mask, self.history.now.get(name, ~mask)) for name, mask in masks.items()):
            self.history.update(masks)
            self.densities.append([p.live / p.size for p in params.values()])

    def count(self, params: Params, dense_gradient: bool) -> None:
        """One more optimizer step; ``dense_gradient`` says whether it needed the gradient of dead weights."""
        sparse, dense = self._forward(params)
        self.training_flops.update(sparse, dense, dense_gradient)

    def scalars(self, params: Params) -> dict[str, float]:
        """Over all layers: density, non-zero share, and the share of forward FLOPs where they were counted."""
        density, nonzero = Density(), NonzeroDensity()
        density.update({name: p.mask for name, p in params.items()})
        nonzero.update({name: p.weight for name, p in params.items()})
        sparse, dense = self._forward(params)
        values = {"density": float(density.compute()), "nonzero_density": float(nonzero.compute())}
        return values | ({"flops_share": sparse / dense} if dense else {})

    def per_layer(self, params: Params) -> dict[str, float]:
        """Density and non-zero share of each layer."""
        density = {f"density/{name}": p.live / p.size for name, p in params.items()}
        return density | {f"nonzero/{name}": int(p.weight.count_nonzero()) / p.size for name, p in params.items()}

    def health(self) -> dict[str, float]:
        """How masks move, and the share of a dense run's FLOPs spent so far (1 until some are counted)."""
        spent = float(self.training_flops.compute()) if self.training_flops.dense > 0 else 1.0
        values = self.history.summary() | {"training_flops_share": spent}
        return {f"masks/{key}": value for key, value in values.items()}

    def report(self, params: Params) -> str:
        """The table: density and non-zeros of each layer, then the masks' health."""
        cells = [("layer", "shape", "density", "live", "non-zero", "weights")]
        nonzero = {name: int(p.weight.count_nonzero()) for name, p in params.items()}
        for name, p in params.items():
            shape = "x".join(map(str, p.mask.shape))
            cells.append((name, shape, f"{p.live / p.size:.4f}", f"{p.live:,}", f"{nonzero[name]:,}", f"{p.size:,}"))
        live, size = sum(p.live for p in params.values()), sum(p.size for p in params.values())
        cells.append(("total", "", f"{live / size:.4f}", f"{live:,}", f"{sum(nonzero.values()):,}", f"{size:,}"))
        health = ", ".join(f"{key.removeprefix('masks/')} {value:.1%}" for key, value in self.health().items())
        return f"{table(cells)}\n{health}"

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers, for a checkpoint; empty before there were masks."""
        if not self.history.now:
            return {}
        flops = [float(self.training_flops.flops), float(self.training_flops.dense)]
        return {"history": self.history.state_dict(), "densities": self.densities, "training_flops": flops}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history.load_state_dict(state["history"])
        self.densities = [list(row) for row in state["densities"]]
        spent, dense = state["training_flops"]
        self.training_flops.flops = torch.tensor(spent, dtype=torch.float64)
        self.training_flops.dense = torch.tensor(dense, dtype=torch.float64)

    def _forward(self, params: Params) -> tuple[float, float]:
        """Forward FLOPs of a batch: sparse and dense."""
        dense = sum(self.flops.values())
        return dense - sum(self.flops.get(name, 0.0) * (1 - p.live / p.size) for name, p in params.items()), dense
