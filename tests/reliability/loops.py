"""A drawn case in a plain PyTorch loop, and a watch that sees every forward pass."""

import io
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from drawn import EPOCH, STEPS, Case
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sparse import Sparsifier

BATCH = 6


def batch(case: Case, i: int) -> tuple[Tensor, Tensor]:
    """Batch number ``i``: the same at every call."""
    generator = torch.Generator().manual_seed(case.seed + i)
    x = torch.randn(BATCH, 8, generator=generator)
    return x.double() if case.precision == "64-true" else x, torch.arange(BATCH) % 3


def task_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(data[0]), data[1])


class Loop:
    """A model with its optimizer and, unless ``dense``, its engine.

    Args:
        case: what to run.
        density: instead of the case's.
        dense: without an engine.
        saved: go on from what :meth:`save` wrote, with a model that was made anew.
        model: instead of the case's own.
    """

    def __init__(
        self,
        case: Case,
        *,
        density: float | None = None,
        dense: bool = False,
        saved: bytes = b"",
        model: nn.Module | None = None,
    ) -> None:
        self.case, self.done = case, 0
        self.model = model or case.model(case.seed + 1 if saved else None)
        if case.precision == "64-true":
            self.model.double()
        self.optimizer = case.stepper(self.model)
        state: dict[str, Any] = torch.load(io.BytesIO(saved), weights_only=True) if saved else {}
        if saved:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.done = state["done"]
        self.engine = None if dense else self._engine(case.density if density is None else density, state.get("engine"))

    def _engine(self, density: float | None, state: dict[str, Any] | None) -> Sparsifier:
        case = self.case
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # layers that a pattern does not fit, SynFlow on attention ...
            return Sparsifier(
                self.model,
                case.algorithm,
                density,
                optimizers=[self.optimizer],
                allocation=case.allocation,
                pattern=case.pattern,
                init=case.init,
                seed=case.seed,
                total_steps=STEPS,
                epoch_steps=EPOCH,
                state=state,
                batches=[batch(case, i) for i in range(100, 104)],
                loss=task_loss,
                example_inputs=batch(case, 0)[0][:1],
            )

    def save(self) -> bytes:
        """What a checkpoint would hold."""
        assert self.engine is not None
        parts = {"model": self.model, "optimizer": self.optimizer, "engine": self.engine}
        buffer = io.BytesIO()
        torch.save({"done": self.done, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
        return buffer.getvalue()

    def step(self) -> None:
        """One optimizer step."""
        if self.case.closure:
            self.optimizer.step(self._gradients)
        else:
            self._gradients()
            if self.case.clip:
                if self.engine is not None:
                    self.engine.stage(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.optimizer.step()
        self.done += 1

    def _gradients(self) -> Tensor:
        self.optimizer.zero_grad()
        half = self.case.precision == "bf16-mixed"
        for i in range(self.case.accumulate):
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                loss = task_loss(self.model, batch(self.case, self.done * self.case.accumulate + i))
            (loss / self.case.accumulate).backward()
        return loss.detach()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Those of the engine."""
        return {} if self.engine is None else self.engine.masks

    def everything(self) -> dict[str, Tensor]:
        """Every tensor of model, optimizer and engine, by a name."""
        states: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        if self.engine is not None:
            states["engine"] = self.engine.state_dict()
        return flat(states)


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """Tensors and numbers of nested containers, by the path that leads there."""
    if isinstance(value, dict):
        return {key: v for k, part in value.items() for key, v in flat(part, f"{name}/{k}").items()}
    if isinstance(value, list | tuple):
        return {key: v for k, part in enumerate(value) for key, v in flat(part, f"{name}/{k}").items()}
    if isinstance(value, Tensor):
        return {name: value.detach().clone()}
    return {name: torch.tensor(value)} if isinstance(value, int | float) else {}


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """Names of what is not the same, bit for bit; NaN equals itself."""
    names = [*left, *[name for name in right if name not in left]]
    return [n for n in names if n not in left or n not in right or not _equal(left[n], right[n])]


def _equal(left: Tensor, right: Tensor) -> bool:
    return (left.dtype, left.shape) == (right.dtype, right.shape) and left.cpu().contiguous().numpy().tobytes() == (
        right.cpu().contiguous().numpy().tobytes()
    )


def dead(weights: dict[str, Tensor], masks: dict[str, Tensor]) -> int:
    """Masked weights that are not zero."""
    return sum(int((~(weights[name].detach()[~mask] == 0)).sum()) for name, mask in masks.items())


@contextmanager
def watched(model: nn.Module, masks: Callable[[], dict[str, Tensor]]) -> Iterator[dict[str, int]]:
    """Looks at the weights before and after the pass of every module; counts looks and dead weights that were not 0."""
    seen = {"looks": 0, "leaks": 0}
    names = {id(w): name for name, w in model.named_parameters()}

    def look(module: nn.Module, *args: Any) -> None:
        held = {names[id(w)]: w for w in module.parameters() if id(w) in names}
        known = {name: mask for name, mask in masks().items() if name in held}
        seen["looks"] += len(known)
        seen["leaks"] += dead(held, known)

    register = torch.nn.modules.module
    handles = [register.register_module_forward_pre_hook(look), register.register_module_forward_hook(look)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def random_states() -> list[Any]:
    """Of torch, numpy and Python."""
    return [torch.get_rng_state().tolist(), [str(part) for part in np.random.get_state()], random.getstate()]  # noqa: NPY002
