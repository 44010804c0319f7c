"""What is wrong with values that a user gave, before anything is computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_MOST = 2**63  # steps, counts and seeds below it fit torch's integers and a float's range


def is_number(value: object) -> bool:
    """Whether it is a finite real number; a truth value is none, nor an int that torch cannot take.

    Example:
        >>> [is_number(value) for value in (1, 0.5, True, "1", float("nan"), 10**400)]
        [True, True, False, False, False, False]
    """
    if isinstance(value, Integral):
        return is_whole(value)
    return isinstance(value, Real) and isfinite(value)


def is_whole(value: object) -> bool:
    """Whether it is a whole number that fits 64 bits; a truth value is none.

    Example:
        >>> [is_whole(value) for value in (3, 3.0, True, 2**70)]
        [True, False, False, False]
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and -_MOST <= int(value) < _MOST


def wrong_number(name: str, value: object, least: float = 0.0) -> list[str]:
    """What is wrong with a number that must not be below ``least``; empty when all is well.

    Example:
        >>> wrong_number("lr", "fast")
        ["lr must be a number >= 0, got 'fast'"]
    """
    fine = is_number(value) and value >= least  # type: ignore[operator]
    return [] if fine else [f"{name} must be a number >= {least:g}, got {value!r}"]


def wrong_share(name: str, value: object) -> list[str]:
    """What is wrong with a share that must be above 0; empty when all is well.

    Example:
        >>> wrong_share("density", 3.0)
        ['density must be in (0, 1], got 3.0']
    """
    fine = is_number(value) and 0 < value <= 1  # type: ignore[operator]
    return [] if fine else [f"{name} must be in (0, 1], got {value!r}"]


def wrong_flags(owner: object, *names: str) -> list[str]:
    """A sentence for each attribute of these names that is not True or False.

    Example:
        >>> from argparse import Namespace
        >>> wrong_flags(Namespace(images="yes", layout=True), "images", "layout")
        ["images must be True or False, got 'yes'"]
    """
    values = {name: getattr(owner, name) for name in names}
    return [f"{name} must be True or False, got {v!r}" for name, v in values.items() if not isinstance(v, bool)]


def wrong_globs(name: str, globs: object) -> list[str]:
    """What is wrong with a list of globs; empty when all is well.

    Example:
        >>> wrong_globs("exclude", "head*")
        ["exclude must be a list of globs, got the string 'head*'; write ['head*']"]
    """
    if isinstance(globs, str):
        return [f"{name} must be a list of globs, got the string {globs!r}; write [{globs!r}]"]
    if not isinstance(globs, list | tuple) or not all(isinstance(glob, str) for glob in globs):
        return [f"{name} must be a list of globs, got {globs!r}"]
    return []


def mistyped(owner: Any, said: Sequence[str] = ()) -> list[str]:
    """A sentence for each field of a dataclass whose value is not of its annotated type.

    Numbers must be finite. Fields that a sentence in ``said`` begins with are left to that one; annotations that are
    not known here (callables, tensors, a user's own generic types) take anything.

    Example:
        >>> from lightning_sparse import CosineSchedule
        >>> broken = object.__new__(CosineSchedule)
        >>> object.__setattr__(broken, "start", "high"), object.__setattr__(broken, "end", 0)
        (None, None)
        >>> mistyped(broken)
        ["start must be a finite number, got 'high'"]
    """
    try:
        hints = get_type_hints(type(owner)) if is_dataclass(owner) else {}
    except (NameError, TypeError):  # of a user's own class, under names that only a type checker sees
        return []
    values = {f.name: getattr(owner, f.name) for f in fields(owner) if f.name in hints} if hints else {}
    wrong = {name: value for name, value in values.items() if not _fits(value, hints[name])}
    return [
        f"{name} must be {_words(hints[name])}, got {value!r}"
        for name, value in wrong.items()
        if not any(text.startswith((f"{name} ", f"{name}=", f"unknown {name} ")) for text in said)
    ]


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: object, hint: Any) -> bool:
    return any(_is_one(value, part) for part in _parts(hint))


def _is_one(value: object, hint: Any) -> bool:
    """Whether the value is of a type that is no union."""
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in get_args(hint))
    if origin is tuple and get_args(hint)[-1] is Ellipsis:
        return isinstance(value, list | tuple) and all(_fits(part, get_args(hint)[0]) for part in value)
    if origin is not None or not isinstance(hint, type):
        return True
    if hint is int:
        return is_whole(value)
    return is_number(value) if hint is float else isinstance(value, hint)


def _words(hint: Any) -> str:
    """The type, for people."""
    parts = [part for part in _parts(hint) if not (part is int and float in _parts(hint))]
    known: Mapping[Any, str] = {
        int: "a whole number below 2**63",
        float: "a finite number",
        bool: "True or False",
        str: "a string",
        NoneType: "None",
    }
    texts = []
    for part in parts:
        if get_origin(part) is Literal:
            texts += [repr(value) for value in get_args(part)]
        elif get_origin(part) is tuple:
            texts.append(f"a tuple, each entry {_words(get_args(part)[0])}")
        else:
            texts.append(known.get(part, f"a {getattr(part, '__name__', part)}"))
    return " or ".join(texts)
