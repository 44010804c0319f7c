"""The engine's state as a checkpoint holds it: tensors, ints and plain containers only."""

import warnings
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_sparse.core.algorithm import Algorithm, Masks
from lightning_sparse.core.checksum import checksum
from lightning_sparse.core.errors import collecting, raise_problems
from lightning_sparse.core.masks import pack_bits, unpack_bits
from lightning_sparse.core.param import SparseParam
from lightning_sparse.core.rewind import Rewinder

VERSION = 1
_TORN = "the checkpoint's masks are torn"
_SUMMED = ("version", "algorithm", "updates", "params", "rewinder", "resized")
_ROW: dict[str, type] = {
    "shape": list,
    "target": int,
    "live": int,
    "mask": Tensor,
    "steps": int,
    "overdue": bool,
    "state": dict,
}


class Saved(NamedTuple):
    """What :func:`unpack` found."""

    masks: Masks
    steps: dict[str, int]
    overdue: frozenset[str]
    updates: int
    states: dict[str, dict[str, Tensor]]
    latents: dict[str, Tensor | None]
    targets: dict[str, int]
    densities: dict[str, float]
    resized: bool
    own: bool  # whether the same algorithm wrote it


def pack(
    params: Mapping[str, SparseParam],
    algorithm: Algorithm,
    steps: Mapping[str, int],
    overdue: Set[str],
    updates: int,
    rewinder: Rewinder,
) -> dict[str, Any]:
    """Everything needed to go on; loads with ``weights_only=True``. Masks take one bit a weight.

    Where channels were cut, budgets are what is left of those that were planned for the whole model.
    """
    state = {
        "version": VERSION,
        "algorithm": type(algorithm).__name__,
        "updates": updates,
        "params": {
            name: {
                "shape": list(p.mask.shape),
                "target": p.target,
                "live": p.live,
                "mask": pack_bits(p.mask),
                "steps": steps[name],
                "overdue": name in overdue,
                "state": {key: value.detach().clone() for key, value in p.state.items()},  # not a view's whole storage
                **({} if p.latent is None else {"latent": p.latent.detach().clone()}),
            }
            for name, p in params.items()
        },
        "rewinder": rewinder.state_dict(),
    }
    own = {"resized": {name: p.density for name, p in params.items()}} if _resized(params) else {}
    return {**state, **own, "checksum": _checksum({**state, **own})}


def unpack(state: Mapping[str, Any], params: Mapping[str, SparseParam], algorithm: Algorithm) -> Saved:
    """Read what :func:`pack` wrote, after checking that it fits; nothing is changed.

    Where channels were cut, in the state or here, its budgets are taken as they are.

    Raises:
        ValueError: if it was written for other layers, shapes or densities, by another version, or is torn.
    """
    if state.get("version") != VERSION or not isinstance(state.get("params"), Mapping):
        raise ValueError(f"cannot read a mask state of version {state.get('version')!r}; this is version {VERSION}")
    rows = state["params"]
    raise_problems(_gaps(state), _TORN)
    resized = _resized(params) or "resized" in state
    raise_problems(_misfits(rows, params, resized), "the checkpoint's masks do not fit this model")
    masks = _masks(state)
    misfits = [
        f"{name}: its mask is not {p.pattern}; use the pattern it was trained with"
        for name, p in params.items()
        if not p.holds(masks[name].to(p.mask.device))
    ]
    raise_problems(misfits, "the checkpoint's masks do not fit this pattern")
    live = sum(row["live"] for row in rows.values())
    target = sum(rows[name]["target"] if resized else p.target for name, p in params.items())
    if state["algorithm"] != type(algorithm).__name__:
        if live != target:
            raise ValueError(
                f"{state['algorithm']} was on its way, with {live} live weights of {target} in the end; go on with it, "
                "or load only its weights and start with init='magnitude'"
            )
        text = f"the masks were trained by {state['algorithm']}, {type(algorithm).__name__} goes on with them"
        warnings.warn(text, stacklevel=4)
    else:
        raise_problems(_strays(rows, params, algorithm), "the checkpoint's masks do not fit this algorithm")
    steps = {name: row["steps"] for name, row in rows.items()}
    Rewinder(nn.Module()).load_state_dict(state.get("rewinder", {}), algorithm, steps)  # refused now, if at all
    return Saved(
        {name: mask.to(params[name].mask.device) for name, mask in masks.items()},
        steps,
        frozenset(name for name, row in rows.items() if row["overdue"]),
        state["updates"],
        {name: row["state"] for name, row in rows.items()},
        {name: row.get("latent") for name, row in rows.items()},
        {name: row["target"] for name, row in rows.items()},
        _densities(state, params) if resized else {},
        "resized" in state,
        state["algorithm"] == type(algorithm).__name__,
    )


def fill(params: Mapping[str, SparseParam], saved: Saved) -> None:
    """Give the parameters what was found; masks and budgets only where another algorithm wrote the rest."""
    for name, p in params.items():
        p.set_mask(saved.masks[name])
        p.resized, p.target, p.density = saved.resized, saved.targets[name], saved.densities.get(name, p.density)
        p.state = {key: value.clone().to(p.mask.device) for key, value in saved.states[name].items() if saved.own}
        latent = saved.latents[name] if saved.own else None
        p.latent = None if latent is None else latent.to(p.place.weight, copy=True)


def _resized(params: Mapping[str, SparseParam]) -> bool:
    return any(p.resized for p in params.values())


def _checksum(state: Mapping[str, Any]) -> int:
    return checksum({key: state[key] for key in _SUMMED if key in state})


def _gaps(state: Mapping[str, Any]) -> list[str]:
    """What is missing, or not of its type."""
    expected: dict[str, type] = {"algorithm": str, "updates": int, "checksum": int}
    problems = [_gap("the state", state, key, kind) for key, kind in expected.items()]
    for name, row in state["params"].items():
        if not isinstance(row, Mapping):
            problems.append(f"{name} is a {type(row).__name__}, not a dict")
            continue
        problems += [_gap(name, row, key, kind) for key, kind in _ROW.items()]
        learned = row.get("state")
        if isinstance(learned, dict):
            problems += [_gap(f"{name}.state", learned, key, Tensor) for key in learned]
        if "latent" in row:
            problems.append(_gap(name, row, "latent", Tensor))
    return [problem for problem in problems if problem]


def _gap(where: str, row: Mapping[str, Any], key: str, kind: type) -> str:
    if key not in row:
        return f"{where} has no {key}"
    fits = isinstance(row[key], kind)
    return "" if fits else f"{where}: {key} is a {type(row[key]).__name__}, not a {kind.__name__}"


def _masks(state: Mapping[str, Any]) -> Masks:
    """The masks, on the CPU, when nothing in the state has changed since it was packed.

    Raises:
        ValueError: with all that is wrong.
    """
    masks: Masks = {}
    problems: list[str] = []
    for name, row in state["params"].items():
        with collecting(problems):
            masks[name] = unpack_bits(row["mask"], row["shape"])
            if (live := int(masks[name].count_nonzero())) != row["live"]:
                problems.append(f"{name}: the mask has {live} live weights, {row['live']} were saved")
        latent = row.get("latent")
        if latent is not None and list(latent.shape) != list(row["shape"]):
            problems.append(f"{name}: its latent weight has shape {list(latent.shape)}, the mask {row['shape']}")
    if not problems and _checksum(state) != state["checksum"]:
        problems.append("numbers or tensors changed since they were saved; go on from another checkpoint")
    raise_problems(problems, _TORN)
    return masks


def _densities(state: Mapping[str, Any], params: Mapping[str, SparseParam]) -> dict[str, float]:
    known = state.get("resized", {})
    return {n: float(known.get(n, row["target"] / params[n].size)) for n, row in state["params"].items()}


def _strays(rows: Mapping[str, Any], params: Mapping[str, SparseParam], algorithm: Algorithm) -> list[str]:
    """Where the algorithm's own state is not what this algorithm keeps; empty is fine, unless weights are latent."""
    problems = []
    for name, p in params.items():
        kept = rows[name]["state"]
        for key, shape in algorithm.state_shapes(p).items() if kept or "latent" in rows[name] else ():
            if key not in kept:
                problems.append(f"{name}: {type(algorithm).__name__} keeps its {key}, the checkpoint {sorted(kept)}")
            elif tuple(kept[key].shape) != shape:
                problems.append(f"{name}: its {key} has shape {list(kept[key].shape)} there and {list(shape)} here")
    return problems


def _misfits(rows: Mapping[str, Any], params: Mapping[str, SparseParam], resized: bool) -> list[str]:
    problems = [f"{name} is sparse in the checkpoint, but not here" for name in rows if name not in params]
    problems += [f"{name} is sparse here, but not in the checkpoint" for name in params if name not in rows]
    shared, same = all(p.scope == "global" for p in params.values()), not problems
    was, now = sum(row["target"] for row in rows.values()), sum(p.target for p in params.values())
    if same and shared and was != now and not resized:
        problems.append(f"the budget is {was} live weights in the checkpoint and {now} here: use the density it had")
    for name, p in params.items():
        row = rows.get(name)
        if row is not None and list(row["shape"]) != list(p.mask.shape):
            problems.append(f"{name} has shape {list(row['shape'])} in the checkpoint and {list(p.mask.shape)} here")
        elif row is not None and same and not shared and row["target"] != p.target and not resized:
            problems.append(
                f"{name} has a budget of {row['target']} live weights in the checkpoint and {p.target} here: use the "
                "density and allocation it was trained with, or load only its weights and start with init='magnitude'"
            )
    return problems


def saved_masks(state: Mapping[str, Any]) -> Masks:
    """The masks in a saved state, without a model to compare them with.

    Example:
        >>> saved_masks({})
        {}
    """
    return {name: unpack_bits(row["mask"], row["shape"]) for name, row in state.get("params", {}).items()}
