"""One base class that the Trainers and CLIs of both packages, ``lightning`` and ``pytorch_lightning``, accept.

The two packages hold two copies of every class. What derives from both is at home in either.
"""

import importlib
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
else:

    def _packages() -> list[Any]:
        """Those that are installed; the one that the user imported first stays the one that Lightning logs under."""
        names = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules)
        found, log = [], None
        for name in names:
            try:
                found.append(importlib.import_module(name))
            except ModuleNotFoundError as missing:
                if missing.name != name.partition(".")[0]:
                    raise  # it is there, but something it needs is not
            rank_zero = sys.modules.get("lightning_utilities.core.rank_zero")
            log = log or getattr(rank_zero, "log", None)  # importing the second package replaces it
        rank_zero.log = log
        return found

    def _both(name: str, classes: list[type], doc: str) -> type:
        return type(name, tuple(dict.fromkeys(classes)), {"__doc__": doc, "__module__": __name__})

    _found = _packages()
    Callback = _both("Callback", [package.Callback for package in _found], "A callback for either package.")
    MisconfigurationException = _both(
        "MisconfigurationException",
        [package.utilities.exceptions.MisconfigurationException for package in _found],
        "What either package raises when it is used wrongly.",
    )
    DummyLogger = importlib.import_module(f"{_found[0].__name__}.loggers.logger").DummyLogger
    rank_zero_info, rank_zero_only, rank_zero_warn = (
        getattr(_found[0].utilities, name) for name in ("rank_zero_info", "rank_zero_only", "rank_zero_warn")
    )

__all__ = [
    "Callback",
    "DummyLogger",
    "MisconfigurationException",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "refers",
    "without_model",
]


def refers(held: "weakref.ref[Any] | None", model: Any) -> bool:
    """Whether a weak reference, if there is one, is to this model.

    Example:
        >>> model = Callback()
        >>> refers(weakref.ref(model), model), refers(weakref.ref(model), Callback()), refers(None, model)
        (True, False, False)
    """
    return held is not None and held() is model


def without_model(callback: Any) -> dict[str, Any]:
    """A callback's attributes without the methods of the model that Lightning hangs on it."""
    return {key: value for key, value in callback.__dict__.items() if key not in ("log", "log_dict")}
