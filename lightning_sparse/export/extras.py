"""Packages that only an export needs, imported where it happens."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lightning_sparse.core.errors import raise_problems


def need(extra: str, *modules: str) -> list[Any]:
    """The modules, imported.

    Raises:
        ImportError: naming the extra that brings what is missing.

    Example:
        >>> [json] = need("onnx", "json")
        >>> need("onnx", "no_such_runtime")
        Traceback (most recent call last):
        ...
        ImportError: no_such_runtime is not installed: pip install "lightning-sparse[onnx]"
    """
    found, missing = [], []
    for name in modules:
        try:
            with hushed():  # they warn of their own inside
                found.append(import_module(name))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
                raise  # it is there, and lacks something itself
            missing.append(name)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ImportError(f'{", ".join(missing)} {verb} not installed: pip install "lightning-sparse[{extra}]"')
    return found


def wrong_arguments(where: str, module: Any, example_inputs: Any) -> None:
    """Refuse what is no module, and examples that are none.

    Raises:
        ValueError: all at once.
    """
    from torch import nn

    problems = [] if isinstance(module, nn.Module) else [f"module must be a torch.nn.Module, got {module!r}"]
    if example_inputs is None:
        problems.append("example_inputs is None; give what the module is called with")
    raise_problems(problems, where)


@contextmanager
def hushed(*loggers: str) -> Iterator[None]:
    """No warnings, and of these loggers nothing below errors.

    Example:
        >>> with hushed("some.package"):
        ...     warnings.warn("of its own inside")
        ...     logging.getLogger("some.package").warning("and this")
    """
    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    for logger in named:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(named, levels, strict=True):
            logger.setLevel(level)
