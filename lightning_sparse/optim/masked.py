"""SGD, Adam and AdamW for sparse weights: torch's own arithmetic on the live entries."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from lightning_sparse.core.values import is_number
from lightning_sparse.optim.base import MOST, Group, MaskedOptimizer, negative, no_flags, zeros


class MaskedSGD(MaskedOptimizer):
    """``torch.optim.SGD`` with momentum and arithmetic for live weights only; the same numbers.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate.
        momentum: 0 for none.
        dampening: of what is added to the momentum.
        weight_decay: coupled: added to the gradient as ``weight_decay * weight``.
        nesterov: Nesterov's momentum.
        maximize: go up instead of down.

    Raises:
        ValueError: on options that cannot be right, all at once.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> optimizer = MaskedSGD([weight], lr=0.1, momentum=0.9)
        >>> optimizer.set_mask(weight, torch.tensor([[True, False, False], [False, False, True]]))
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.tolist(), optimizer.state[weight]["momentum_buffer"].tolist()
        ([[0.8..., 1.0, 1.0], [1.0, 1.0, 0.8...]], [2.0, 2.0])
    """

    per_weight: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def problems(self, options: Group) -> list[str]:
        """What is wrong with the options of a group, a sentence each."""
        found = negative(options, "lr", "momentum", "weight_decay") + no_flags(options, "nesterov", "maximize")
        if not is_number(options["dampening"]) or abs(options["dampening"]) > MOST:
            found.append(f"dampening must be a number of at most {MOST:g}, got {options['dampening']!r}")
        if not found and options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            found.append(
                "nesterov=True needs a momentum above 0 and no dampening, got "
                f"momentum={options['momentum']}, dampening={options['dampening']}"
            )
        return found

    def update(self, group: Group, params: Sequence[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """See :meth:`MaskedOptimizer.update`."""
        moves = group["momentum"] != 0
        buffers = [self.state[p].get("momentum_buffer") for p in params] if moves else []  # None: starts as gradient
        sgd(
            weights,
            gradients,
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if moves:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer


class MaskedAdam(MaskedOptimizer):
    """``torch.optim.Adam`` with moments and arithmetic for live weights only; the same numbers.

    Steps are counted for a whole parameter: a weight that is grown later starts with zero moments and the bias
    correction of the parameter, as it does under torch's optimizer with the engine.

    Source: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1; amsgrad: Reddi et al. 2018,
    https://openreview.net/forum?id=ryQu7f-RZ. The arithmetic is torch's own.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate.
        betas: decay of the first and of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: coupled: added to the gradient as ``weight_decay * weight``; :class:`MaskedAdamW` decouples it.
        amsgrad: divide by the largest second moment so far.
        maximize: go up instead of down.

    Raises:
        ValueError: on options that cannot be right, all at once.

    Example:
        >>> from lightning_sparse import RigL, Sparsifier
        >>> model = torch.nn.Linear(100, 100)
        >>> optimizer = MaskedAdam(model.parameters(), lr=1e-2)
        >>> sparsifier = Sparsifier(model, RigL(every=2, stop=8), 0.05, optimizers=[optimizer])
        >>> for _ in range(10):
        ...     loss = model(torch.randn(16, 100)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> optimizer.state[model.weight]["exp_avg"].shape
        torch.Size([500])
    """

    per_weight: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _arithmetic: ClassVar[Callable[..., None]] = staticmethod(adam)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def problems(self, options: Group) -> list[str]:
        """What is wrong with the options of a group, a sentence each."""
        found = negative(options, "lr", "eps", "weight_decay") + no_flags(options, "amsgrad", "maximize")
        betas = options["betas"]
        pair = isinstance(betas, list | tuple) and len(betas) == 2
        if not pair or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
            found.append(f"betas must be two numbers in [0, 1), got {betas!r}")
        return found

    def update(self, group: Group, params: Sequence[Tensor], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """See :meth:`MaskedOptimizer.update`."""
        names = self.per_weight if group["amsgrad"] else self.per_weight[:2]
        rows = [self._row(p, weight, names) for p, weight in zip(params, weights, strict=True)]
        beta1, beta2 = group["betas"]
        self._arithmetic(
            weights,
            gradients,
            [row["exp_avg"] for row in rows],
            [row["exp_avg_sq"] for row in rows],
            [row["max_exp_avg_sq"] for row in rows] if group["amsgrad"] else [],
            [row["step"] for row in rows],
            has_complex=any(weight.is_complex() for weight in weights),
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _row(self, param: Tensor, weight: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """The state of a parameter, made at its first step."""
        row: dict[str, Any] = self.state[param]
        if "step" not in row:
            row["step"] = torch.zeros((), dtype=torch.float32, device="cpu")  # on the CPU, as torch has it: no sync
        for name in names:
            if name not in row:
                row[name] = zeros(weight)
        return row


class MaskedAdamW(MaskedAdam):
    """``torch.optim.AdamW`` with moments and arithmetic for live weights only; the same numbers.

    Source: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2. Weight decay shrinks live weights
    by ``1 - lr * weight_decay`` a step and stays out of the moments.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate.
        betas: decay of the first and of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        amsgrad: divide by the largest second moment so far.
        maximize: go up instead of down.

    Raises:
        ValueError: on options that cannot be right, all at once.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_sparse import MaskUpdater
        >>> class Model(BoringModel):
        ...     def configure_optimizers(self):
        ...         return MaskedAdamW(self.parameters(), lr=1e-3)
        >>> trainer = Trainer(max_steps=4, callbacks=[MaskUpdater("static", 0.25)], logger=False, barebones=True)
        >>> trainer.fit(Model())
        >>> [list(row["exp_avg"].shape) for row in trainer.optimizers[0].state.values()]  # of 64 weights, 2 biases
        [[16], [2]]
    """

    _arithmetic: ClassVar[Callable[..., None]] = staticmethod(adamw)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
