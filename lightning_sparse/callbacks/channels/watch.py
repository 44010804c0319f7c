"""The graph of a model's channels, through a run: found in a training step, gone after each cut."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_sparse.callbacks.base import MisconfigurationException
from lightning_sparse.callbacks.channels.decision import refuse_impossible
from lightning_sparse.callbacks.channels.surgery import unwrapped
from lightning_sparse.callbacks.channels.trace import StepTrace, graph_without_step
from lightning_sparse.channels.atoms import Graph
from lightning_sparse.core.flops import batch_size

if TYPE_CHECKING:
    from lightning_sparse.callbacks.bn_channel_pruner import BNChannelPruner


class GraphWatch:
    """Knows the graph, or watches the next step to learn it.

    Attributes:
        graph: of the model as it is now, probed; None where it is not known.
        samples: in the step that it was found in.
    """

    def __init__(self) -> None:
        self.graph: Graph | None = None
        self.samples = 1
        self._trace: StepTrace | None = None

    @property
    def found(self) -> Graph | None:
        """The graph, also where it was not probed yet."""
        return self._trace.graph if self._trace is not None else self.graph

    def step_begins(self, trainer: Any, pl_module: Any) -> None:
        """Watch this step, where the graph is not known."""
        if self.graph is None:
            self._trace = StepTrace(pl_module, trainer.optimizers)

    def before_backward(self, pruner: "BNChannelPruner", trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """The forward pass is over: refuse what is impossible.

        Raises:
            MisconfigurationException: see :func:`refuse_impossible`; buffers are as they were before the step.
        """
        if self._trace is None:
            return
        if self._trace.graph is None:
            self._trace.pause(loss)  # manual optimization: another forward pass may follow
            return
        try:
            refuse_impossible(pruner, trainer, pl_module, self._trace.graph)
        except MisconfigurationException:
            self._trace.undo()
            raise

    def after_backward(self) -> None:
        """Under manual optimization the model may run again."""
        if self._trace is not None and self._trace.graph is None:
            self._trace.resume()

    def step_ends(self, pruner: "BNChannelPruner", trainer: Any, pl_module: Any, batch: Any) -> None:
        """Try what was found in this step.

        Raises:
            MisconfigurationException: see :func:`refuse_impossible`.
        """
        if self._trace is None:
            return
        trace, self._trace = self._trace, None
        trace.remove()
        if trace.graph is None:  # the step returned before its end
            return
        if not pl_module.automatic_optimization:
            refuse_impossible(pruner, trainer, pl_module, trace.graph)
        with unwrapped(trainer):
            self.graph, self.samples = trace.probed(trainer, batch), batch_size(batch) or 1
        refuse_impossible(pruner, trainer, pl_module, self.graph, probed=True)

    def between_steps(self, pruner: "BNChannelPruner", trainer: Any, pl_module: Any) -> Graph | None:
        """The graph, where need be without a step to watch: by a batch in evaluation mode."""
        if self.graph is None:
            found = graph_without_step(pruner.name, trainer, pl_module, pruner.seed)
            self.graph, self.samples = found or (None, 1)
        return self.graph

    def forget(self) -> None:
        """The model has other shapes now."""
        self.graph = None

    def close(self) -> None:
        """Leave nothing in the model."""
        if self._trace is not None:
            self._trace.remove()
        self._trace, self.graph = None, None
