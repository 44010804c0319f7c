"""One run of a model, watched: which channels belong together."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.channels.atoms import Graph
from lightning_sparse.channels.build import atoms, numbered, reasons
from lightning_sparse.channels.calls import CallWatch, Replay, tensors_in
from lightning_sparse.channels.costs import Costs
from lightning_sparse.channels.dispatch import Watch
from lightning_sparse.channels.flow import Flow
from lightning_sparse.channels.labels import Classes, Ties
from lightning_sparse.channels.lazy import shapeless
from lightning_sparse.channels.quiet import evaluating, plain_paths
from lightning_sparse.channels.rules import RULES, NoRule, Op
from lightning_sparse.channels.rules.pointwise import pointwise
from lightning_sparse.channels.stash import Stashed, stashed
from lightning_sparse.core.errors import raise_problems
from lightning_sparse.core.surgery import tensors

Shapes = Mapping[str, tuple[int, ...]]
Ids = Mapping[tuple[str, int], Tensor]  # of a tensor's dimension: which elements are left


class Tracer:
    """Watches one run of a model and finds out which channels belong together.

    It sees operations below autograd and autocast, so that the run may be any: a forward pass, a training step in
    mixed precision, entered in one hook and left in another.

    Args:
        model: its parameters and buffers are what can be cut.
        shapes: of an uncut model, whose elements are to be told apart; None: this is the uncut model.
        ids: the elements that are left in a dimension that was cut.
        left: what the run before has left in attributes: what of it is read stays as it is.

    Raises:
        ValueError: on parameters without a shape.

    Attributes:
        flops: forward FLOPs by parameter so far.
        unknown: how often operations without a rule were met.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with Tracer(net) as tracer:
        ...     output = net(torch.zeros(1, 3))
        >>> tracer.finish(output)
        >>> graph = tracer.graph()
        >>> [(atom.name, atom.channels) for atom in graph.atoms]
        [('0', 8)]
        >>> graph.frozen["2.weight:0"]
        "the model's output"
    """

    def __init__(
        self, model: nn.Module, shapes: Shapes | None = None, ids: Ids | None = None, left: Sequence[Stashed] = ()
    ) -> None:
        raise_problems(shapeless(model), "tracing")
        self._left = {id(each.tensor): each for each in left}
        self.unknown: dict[str, int] = {}
        self._named = {id(t): (name, t) for name, t in tensors(model).items()}
        self._unused = set(self._named)
        self._shapes = shapes or {name: tuple(t.shape) for name, t in self._named.values()}
        self._axes, self._calls, self._costs = numbered(self._shapes), CallWatch(model), Costs()
        self._calls.at_output, self._calls.at_norm = self.finish, self._norm
        self._widths: dict[str, tuple[str, int]] = {}
        self.flows = [Flow(ties=Ties(1 + sum(axis.size for axis in self._axes)))]
        self.flows[0].at_choice = self._fork
        self._seed(ids)
        self._open, self._mode = ExitStack(), Watch(self._see)

    @property
    def flops(self) -> dict[str, float]:
        """Forward FLOPs by parameter so far."""
        return self._costs.flops

    def open(self) -> None:
        """Start to watch."""
        self._open.enter_context(plain_paths())
        self._open.enter_context(self._calls.watching())
        self._open.enter_context(self._mode)

    def close(self) -> None:
        """Stop; a second call does nothing."""
        self._open.close()

    def __enter__(self) -> "Tracer":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def classes(self) -> dict[str, Classes]:
        """What belongs together, by policy; the tensors of the run are let go."""
        found: dict[str, Classes] = {}
        for flow in self.flows:
            found[flow.policy] = flow.ties.classes()
            flow.forget()
        self._costs.forget()
        self._calls.settle()
        return found

    def finish(self, output: Any) -> None:
        """Freeze what flows out: the model's output, or a loss."""
        for tensor in tensors_in(output):
            for flow in self.flows:
                for label in flow.of(tensor):
                    flow.ties.freeze(label, "the model's output")

    def watch(self, run: Callable[[], Any]) -> None:
        """All of a run, whose output is frozen."""
        with self:
            output = run()
        self.finish(output)

    def left(self) -> list[Stashed]:
        """What the run has left in attributes of modules. Ask before :meth:`graph`."""
        found = stashed(self._calls.model, self.flows[0].of)
        return [each for each in found if id(each.tensor) not in self._named]

    def graph(self) -> Graph:
        """What was found; the tensors of the run are let go."""
        classes = self.classes()
        found = {policy: atoms(self._axes, kinds) for policy, kinds in classes.items()}
        main = found.pop("last")
        unused = {self._named[i][0] for i in self._unused}
        why = reasons(self._axes, classes["last"], main, unused)
        self._named.clear()
        self._left.clear()
        return Graph(main, why, dict(self.flops), dict(self.unknown), dict(self._shapes), found, dict(self._widths))

    def replay(self) -> Replay:
        """The calls of modules from outside of all modules, to be made again without what happened in between."""
        return self._calls.replay()

    def _seed(self, ids: Ids | None) -> None:
        flow, owners = self.flows[0], dict[int, list[Tensor]]()
        firsts = {(a.name, a.dim): a for a in self._axes}
        for name, tensor in self._named.values():
            labels: list[Tensor | None] = []
            for dim, n in enumerate(tensor.shape):
                axis = firsts.get((name, dim))
                whole = None if axis is None else torch.arange(axis.first, axis.first + axis.size)
                labels.append(whole if ids is None or n == 1 else ids.get((name, dim), whole))
            flow.put(tensor, labels, zero=not name.endswith("running_var"))
            self._costs.name(tensor, name)
            if tensor.layout == torch.strided and tensor.numel():
                owners.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        for script in [m for m in self._calls.model.modules() if isinstance(m, torch.jit.ScriptModule)]:
            for tensor in [*script.parameters(), *script.buffers()]:
                for label in flow.of(tensor):
                    flow.ties.freeze(label, "it belongs to a TorchScript module, whose shapes are fixed")
        for tensor in [t for sharing in owners.values() if len(sharing) > 1 for t in sharing]:
            for label in flow.of(tensor):
                flow.ties.freeze(label, "it shares its memory with another parameter or buffer")

    def _norm(self, name: str, x: Any) -> None:
        label = self.flows[0].of(x)[1] if isinstance(x, Tensor) and x.ndim > 1 else None
        if label is None:
            return
        for axis in self._axes:
            if axis.first == int(label[0]) and torch.equal(label, torch.arange(axis.first, axis.first + axis.size)):
                self._widths[name] = (axis.name, axis.dim)

    def _fork(self) -> None:
        main = self.flows[0]
        main.at_choice = lambda: None
        self.flows += [main.fork("first"), main.fork("middle")]

    def _see(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        op = Op(func, args, kwargs, result)
        op.fixed = self._costs.fixed(op)
        self._unused = self._unused - {id(t) for t in op.inputs} if self._unused else self._unused
        why = f"{op.full_name} in {self._calls.where}"
        for flow in self.flows:  # grows at the first choice
            flow.why = why
            for read in filter(None, [self._left.get(id(t)) for t in op.inputs]):
                flow.freeze(read.labels, f"{read.where} is kept from run to run")
            self._apply(flow, op)
        self._costs.count(op)
        return result

    def _apply(self, flow: Flow, op: Op) -> None:
        if not op.outputs and any(flow.labelled(t) for t in op.written):
            self._freeze(flow, op, f"unknown operation {op.space}.{op.full_name}")
            return
        if op.turns:
            RULES[op.name](flow, op)
            return
        if not op.outputs or not (op.name == "expand" or any(flow.concerned(t) for t in op.inputs)):
            for t in op.outputs:
                flow.put(t, [None] * t.ndim)
            return
        rule = RULES.get(op.name) if op.space == "aten" else None
        if rule is None and op.pointwise:
            rule = pointwise
        try:
            if rule is None or (op.writes_out and rule is not pointwise):
                raise NoRule
            rule(flow, op)
        except NoRule:
            self._freeze(flow, op, f"unknown operation {op.space}.{op.full_name}")
        except (AssertionError, RuntimeError, IndexError, KeyError, TypeError, ValueError) as error:
            self._freeze(flow, op, f"the rule for {op.space}.{op.full_name} does not fit: {error}")

    def _freeze(self, flow: Flow, op: Op, why: str) -> None:
        if flow is self.flows[0]:
            name = f"{op.space}.{op.full_name}"
            self.unknown[name] = self.unknown.get(name, 0) + 1
        for t in [*op.inputs, *op.outputs]:
            flow.freeze(flow.of(t), why)
        for t in op.outputs:
            if not op.in_place:
                flow.put(t, [None] * t.ndim)


def analyse(model: nn.Module, run: Callable[[], Any]) -> Graph:
    """What can be cut, by one run in evaluation mode and without gradient.

    Modes, weights and random states are afterwards as before.

    Args:
        model: any module.
        run: runs it and returns the output, which is frozen.

    Raises:
        ValueError: on parameters without a shape.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3))
        >>> graph = analyse(net, lambda: net(torch.zeros(1, 3, 8, 8)))
        >>> [(place.name, place.dim) for place in graph.atoms[0].places]
        [('0.weight', 0), ('0.bias', 0), ('1.weight', 0), ('1.bias', 0), ('3.weight', 1),
         ('1.running_mean', 0), ('1.running_var', 0)]
    """
    tracer = Tracer(model)
    with evaluating(model):
        tracer.watch(run)
        if left := tracer.left():  # the next run tells whether it is read
            tracer = Tracer(model, left=left)
            tracer.watch(run)
    return tracer.graph()
