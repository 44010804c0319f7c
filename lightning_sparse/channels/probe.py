"""Cuts are tried before they are offered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.channels.atoms import Atom, Graph, kept_indices
from lightning_sparse.channels.build import numbered
from lightning_sparse.channels.calls import tensors_in
from lightning_sparse.channels.journal import undoable
from lightning_sparse.channels.labels import Classes
from lightning_sparse.channels.quiet import evaluating, plain_paths
from lightning_sparse.channels.shrink import checked, mask, removed_indices, shrink
from lightning_sparse.channels.trace import Tracer
from lightning_sparse.core.surgery import tensors


def probe(model: nn.Module, graph: Graph, run: Callable[[], Any], multiple: int = 1) -> Graph:
    """The graph with only those atoms that the model runs without.

    Channels are taken out of all atoms at once, of each another number, and the model runs, watched: the channels that
    are left must belong together as before, and the output must have its shape. Where it does not, atoms are halved
    until those are found that do not fit; a size that is written in the code is found so. For them whole heads (the
    other ways to split a dimension) are tried. At last the values are compared with those of the model whose channels
    are zero: an atom where they differ is lossy. The model is as before, whatever happens; its weights are not copied,
    but for the last comparison.

    Args:
        model: that the graph is of.
        graph: from :func:`~lightning_sparse.channels.trace.analyse` or a tracer.
        run: runs the model in the same way each time, and returns the output.
        multiple: how many channels will be cut at a time.

    Returns:
        The atoms that fit; ``frozen`` says of the others why.

    Raises:
        ValueError: if the model has other shapes than the graph.

    Example:
        >>> from lightning_sparse.channels import analyse
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        ...     def forward(self, x):
        ...         return self.c(self.b(self.a(x).view(-1, 8)))
        >>> net = Net()
        >>> run = lambda: net(torch.zeros(1, 3))
        >>> graph = analyse(net, run)
        >>> [atom.name for atom in graph.atoms], [atom.name for atom in probe(net, graph, run).atoms]
        (['a', 'b'], ['b'])
    """
    checked(model, graph)
    trials = _Trials(model, graph, run, multiple)
    found = [_Candidate(atom, "last") for atom in graph.atoms if atom.channels > 1]
    good, bad = _sift(trials, [], found)
    tried = {_key(c.atom) for c in found}
    for policy, atoms in graph.others.items():
        taken = _Taken(graph, good)
        fresh = [a for a in atoms if a.channels > 1 and _key(a) not in tried and not taken.meets(a)]
        tried |= {_key(a) for a in fresh}
        more, worse = _sift(trials, good, [_Candidate(a, policy) for a in fresh])
        good, bad = good + more, bad + worse
    lossy = _lossy(trials, good)
    # a dimension of size 1 cannot be followed: of two channels, values are the only proof that the right one went
    wrong = [c for c in lossy if c.atom.channels == 2]
    good = [c for c in good if c not in wrong]
    bad = bad + [(c, "without one of its two channels the model computes something else") for c in wrong]
    return _result(graph, [c.atom for c in good], bad, lossy)


@dataclass(frozen=True)
class _Candidate:
    atom: Atom
    policy: str


_Bad = list[tuple[_Candidate, str]]


def _sift(trials: "_Trials", good: Sequence[_Candidate], group: Sequence[_Candidate]) -> tuple[list[_Candidate], _Bad]:
    """Those of the group that fit together with the good ones, and those that do not, with the reason."""
    if not group:
        return [], []
    small = [c for c in group if c.atom.channels == 2]  # one channel of two cannot be followed: each alone
    if small and len(group) > 1:
        large, bad = _sift(trials, good, [c for c in group if c.atom.channels > 2])
        reasons = [(c, trials.why_not([c])) for c in small]
        fine = [c for c, why in reasons if why is None]
        return large + fine, bad + [(c, why) for c, why in reasons if why is not None]
    why = trials.why_not([*(c for c in good if c.atom.channels > 2), *group] if not small else group)
    if why is None:
        return list(group), []
    if len(group) == 1:
        return [], [(group[0], why)]
    half = len(group) // 2
    left, bad_left = _sift(trials, good, group[:half])
    right, bad_right = _sift(trials, [*good, *left], group[half:])
    return left + right, bad_left + bad_right


class _Trials:
    """Runs of a model with channels taken out, undone each time."""

    def __init__(self, model: nn.Module, graph: Graph, run: Callable[[], Any], multiple: int) -> None:
        self.model, self.graph, self._run, self._multiple = model, graph, run, multiple
        self._first = {(a.name, a.dim): a.first for a in numbered(graph.shapes)}
        with evaluating(model), plain_paths():
            self._shapes = [tuple(t.shape) for t in tensors_in(run())]

    def why_not(self, group: Sequence[_Candidate]) -> str | None:
        """What goes wrong when channels of all of these are out; None when nothing does."""
        graph, atoms = _renamed(self.graph, group)
        kept = {a.name: torch.arange(a.channels)[self._out(a, i) :] for i, a in enumerate(atoms)}
        left = kept_indices(graph, kept)
        ids = {(n, d): self._first[n, d] + index for n, dims in left.items() for d, index in dims.items()}
        try:
            with undoable(self.model):
                shrink(self.model, graph, kept)
                tracer = Tracer(self.model, self.graph.shapes, ids)
                with evaluating(self.model), tracer:
                    output = self._run()
                tracer.finish(output)
                shapes, classes = [tuple(t.shape) for t in tensors_in(output)], tracer.classes()
        except Exception as error:  # whatever the model raises is the answer
            return f"without some of it the model raises {type(error).__name__}: {_first_line(error)}"
        if shapes != self._shapes:
            return "the output has another shape without some of it"
        pairs = zip(group, atoms, strict=True)
        return next((why for c, a in pairs if (why := self._changed(c, kept[a.name], classes)) is not None), None)

    def _changed(self, candidate: _Candidate, kept: Tensor, classes: dict[str, Classes]) -> str | None:
        """How the channels that are left do not belong together as they did: a size is written in the code."""
        if len(kept) == 1:  # dimensions of size 1 cannot be followed
            return None
        found = classes.get(candidate.policy, classes["last"])
        elements = torch.cat([self._first[p.name, p.dim] + p.index[kept] for p in candidate.atom.places], 1)
        if (why := found.why(int(elements[0, 0]))) is not None:
            return f"without some of it: {why}"
        of = found.of[elements]
        if not bool((of == of[:, :1]).all()) or len(set(of[:, 0].tolist())) < len(kept):
            return "without some of it other channels belong together: a size or an order is written in the code"
        return None

    def outputs(self, group: Sequence[_Candidate], cut: bool) -> list[Tensor]:
        """The output with the first half of the channels out, or zero."""
        graph, atoms = _renamed(self.graph, group)
        kept = {a.name: torch.arange(a.channels)[a.channels // 2 :] for a in atoms}
        with undoable(self.model):
            if cut:
                shrink(self.model, graph, kept)
            else:
                named = tensors(self.model)
                with torch.no_grad():
                    for name in removed_indices(graph, kept):
                        named[name].set_(named[name].detach().clone())  # type: ignore[call-overload]
                mask(self.model, graph, kept)
            with evaluating(self.model), plain_paths():
                return [t.detach().clone() for t in tensors_in(self._run())]

    def _out(self, atom: Atom, i: int) -> int:
        """Another number for each, so that atoms that must shrink alike are found."""
        most = max(1, atom.channels - 2)  # a dimension of size 1 is a case of its own
        return min(self._multiple * (1 + i % max(1, most // self._multiple)), most)


def _renamed(graph: Graph, group: Sequence[_Candidate]) -> tuple[Graph, list[Atom]]:
    """Atoms of all policies side by side; their names are numbers."""
    atoms = [replace(c.atom, name=str(i)) for i, c in enumerate(group)]
    return replace(graph, atoms=tuple(atoms)), atoms


def _lossy(trials: _Trials, good: Sequence[_Candidate]) -> list[_Candidate]:
    """Which atoms change the output even when their channels were zero."""
    group = [c for c in good if not c.atom.lossy]

    def search(part: Sequence[_Candidate]) -> list[_Candidate]:
        if not part or _close(trials.outputs(part, cut=True), trials.outputs(part, cut=False)):
            return []
        if len(part) == 1:
            return list(part)
        half = len(part) // 2
        return search(part[:half]) + search(part[half:])

    return search(group)


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    for a, b in zip(found, expected, strict=True):
        if not a.is_floating_point():
            continue
        rough = 1e-2 if a.dtype in (torch.bfloat16, torch.float16) else 2e-5
        scale = float(b.double().abs().nan_to_num().max()) if b.numel() else 0.0
        if not torch.allclose(a.double(), b.double(), rtol=0.0, atol=rough * max(scale, 1e-6), equal_nan=True):
            return False
    return True


class _Taken:
    """Which elements belong to accepted atoms."""

    def __init__(self, graph: Graph, good: Sequence[_Candidate]) -> None:
        self._flags: dict[tuple[str, int], Tensor] = {}
        for candidate in good:
            for place in candidate.atom.places:
                size = graph.shapes[place.name][place.dim]
                flags = self._flags.setdefault((place.name, place.dim), torch.zeros(size, dtype=torch.bool))
                flags[place.index.flatten()] = True

    def meets(self, atom: Atom) -> bool:
        """Whether one of its elements is taken."""
        places = [(self._flags.get((p.name, p.dim)), p.index) for p in atom.places]
        return any(flags is not None and bool(flags[index].any()) for flags, index in places)


def _key(atom: Atom) -> tuple[Any, ...]:
    """The same for atoms that are the same."""
    return tuple((p.name, p.dim, tuple(p.index.shape), tuple(p.index.flatten().tolist())) for p in atom.places)


def _result(graph: Graph, good: list[Atom], bad: _Bad, lossy: Sequence[_Candidate]) -> Graph:
    order = {name: i for i, name in enumerate(graph.shapes)}
    good = sorted(good, key=lambda a: (order[a.places[0].name], a.places[0].dim, int(a.places[0].index[0, 0])))
    marks = {id(c.atom) for c in lossy}
    named, used = [], dict[str, int]()
    for atom in good:
        base = atom.name.partition("#")[0]
        used[base] = used.get(base, 0) + 1
        name = base if used[base] == 1 else f"{base}#{used[base]}"
        named.append(replace(atom, name=name, lossy=atom.lossy or id(atom) in marks))
    fits = {f"{p.name}:{p.dim}" for atom in good for p in atom.places}
    frozen = {axis: why for axis, why in graph.frozen.items() if axis not in fits}
    for candidate, why in bad:
        for place in candidate.atom.places:
            axis = f"{place.name}:{place.dim}"
            if axis not in fits:
                frozen.setdefault(axis, why)
    return replace(graph, atoms=tuple(named), frozen=frozen, others={})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
