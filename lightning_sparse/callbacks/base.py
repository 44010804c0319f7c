"""One base class that the Trainers and CLIs of both packages, ``lightning`` and ``pytorch_lightning``, accept.

The two packages hold two copies of every class. A callback that derives from both is at home in either.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    _PACKAGES = ("lightning.pytorch", "pytorch_lightning")

    def _bases() -> tuple[type, ...]:
        found = []
        for package in _PACKAGES:
            try:
                found.append(importlib.import_module(package).Callback)
            except ModuleNotFoundError as missing:
                if missing.name != package.partition(".")[0]:
                    raise  # it is there, but something it needs is not
        return tuple(dict.fromkeys(found))

    Callback = type("Callback", _bases(), {"__doc__": "A callback for either package.", "__module__": __name__})

__all__ = ["Callback", "MisconfigurationException", "refuse_strategy"]

_REFUSED = {
    "FSDPStrategy": "it flattens and shards parameters",
    "DeepSpeedStrategy": "it steps hidden copies of the weights",
    "ModelParallelStrategy": "distributed tensors are not supported yet",
}


def refuse_strategy(trainer: Any, callback: str) -> None:
    """Stop before training starts under a strategy that cannot keep weights sparse.

    Raises:
        MisconfigurationException: with the way out.
    """
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in _REFUSED:
            raise MisconfigurationException(
                f"{callback} does not work with {kind.__name__}: {_REFUSED[kind.__name__]}. "
                'Use Trainer(strategy="ddp") or a single device.'
            )
