"""What a run's sparsity looks like, in numbers and a table; for any loop."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sparse.core.flops import Costs
from lightning_sparse.core.health import MaskHistory
from lightning_sparse.core.param import SparseParam, densities
from lightning_sparse.core.plan import table
from lightning_sparse.core.select import inputs_first
from lightning_sparse.metrics import Density, NonzeroDensity, step_flops

Params = Mapping[str, SparseParam]
_ROWS = 1024  # more than a picture of densities over time can show


class SparsityWatch:
    """Follows the sparse parameters of a run: ``note`` new masks, ``count`` steps, then read.

    Attributes:
        flops: dense forward FLOPs of one batch by parameter name; without them FLOPs are not reported.
        densities: live share of each layer, a row an update; of more than 1,024 only every second, fourth ...
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
        self._noted, self._stride = 0, 1  # masks that were news, and how many of them share a row
        self.history = MaskHistory()
        self.spent = [0.0, 0.0]  # FLOPs of training so far, and those of a dense run

    def note(self, params: Params) -> None:
        """Look at the masks; those that have not moved are no news. Layers that join were dense before."""
        masks = {name: _outputs_first(p).cpu() for name, p in params.items()}
        known = self.history.now
        if not any(n in known for n in masks) or any(m.shape != known.get(n, m).shape for n, m in masks.items()):
            self.history, self.densities = MaskHistory(), []  # another model
            self._noted, self._stride = 0, 1
        if any(not torch.equal(mask, self.history.now.get(name, ~mask)) for name, mask in masks.items()):
            rows = [dict(zip(self.history.now, row, strict=True)) for row in self.densities]
            self.densities = [[row.get(name, 1.0) for name in masks] for row in rows]
            self.history.update(masks)
            self._keep_row(list(densities(params).values()))

    def fits(self, params: Params) -> bool:
        """Whether the masks that were noted last have the shapes of these."""
        known = self.history.now
        return all(known[name].shape == _outputs_first(p).shape for name, p in params.items() if name in known)

    def _keep_row(self, row: list[float]) -> None:
        """A run of any length keeps a bounded number of rows, in every checkpoint too."""
        if self._noted % self._stride == 0:
            self.densities.append(row)
        self._noted += 1
        if len(self.densities) > _ROWS:
            self.densities, self._stride = self.densities[::2], 2 * self._stride

    def count(self, params: Params, dense_gradient: bool) -> None:
        """One more optimizer step; ``dense_gradient`` says whether it needed the gradient of dead weights."""
        sparse, dense = self._forward(densities(params))
        self.spent[0] += step_flops(sparse, dense, dense_gradient)
        self.spent[1] += step_flops(dense, dense)

    def scalars(self, params: Params) -> dict[str, float]:
        """Over all layers: density, non-zero share, and the share of forward FLOPs where they were counted."""
        density, nonzero = Density(), NonzeroDensity()
        density.update({name: p.mask for name, p in params.items()})
        nonzero.update({name: p.weight for name, p in params.items()})
        values = {"density": float(density.compute()), "nonzero_density": float(nonzero.compute())}
        return values | self.flops_share(densities(params))

    def flops_share(self, densities: Mapping[str, float]) -> dict[str, float]:
        """Share of the dense model's forward FLOPs at these densities; empty where they were not counted."""
        sparse, dense = self._forward(densities)
        return {"flops_share": sparse / dense} if dense else {}

    def per_layer(self, params: Params) -> dict[str, float]:
        """Density and non-zero share of each layer."""
        density = {f"density/{name}": share for name, share in densities(params).items()}
        return density | {f"nonzero/{name}": int(p.weight.count_nonzero()) / p.size for name, p in params.items()}

    def health(self) -> dict[str, float]:
        """How masks move, and the share of a dense run's FLOPs spent so far, where they are counted."""
        values = self.history.summary()
        if self.spent[1]:
            values["training_flops_share"] = self.spent[0] / self.spent[1]
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
        return {
            "history": self.history.state_dict(),
            "densities": [list(row) for row in self.densities],
            "noted": self._noted,
            "stride": self._stride,
            "training_flops": list(self.spent),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history.load_state_dict(state["history"])
        self.densities = [list(row) for row in state["densities"]]
        self._noted, self._stride = state["noted"], state["stride"]
        self.spent = list(state["training_flops"])

    def _forward(self, densities: Mapping[str, float]) -> tuple[float, float]:
        """Forward FLOPs of a batch: sparse and dense."""
        dense = sum(self.flops.values())
        return dense - sum(self.flops.get(name, 0.0) * (1 - d) for name, d in densities.items()), dense


def _outputs_first(p: SparseParam) -> Tensor:
    """The mask as (outputs, inputs, ...): transposed convolutions and Conv1D keep their inputs first."""
    return p.mask.transpose(0, 1) if inputs_first(p.place.module) else p.mask
