"""Forward multiply-adds of every weight, counted in one run of the model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.core.compact import Compact
from lightning_sparse.core.probe import eval_mode
from lightning_sparse.core.select import CONVS, TRANSPOSED, targets

Costs = dict[str, float]
_LOOKUPS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)


def count_flops(model: nn.Module, inputs: Any) -> Costs:
    """Dense forward FLOPs a sample of every weight that multiplies: 2 per multiply-add; biases and norms are free.

    The model runs once without gradient, in evaluation mode; modes, buffers and the random state are as before
    afterwards. The first dimension of the first tensor in ``inputs`` is the batch.

    Args:
        model: any module.
        inputs: what ``model`` is called with: a tensor, a tuple of arguments or a dict of keyword arguments.

    Returns:
        FLOPs by parameter name; parameters whose module was not called are missing.

    Example:
        >>> count_flops(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(2, 3, 6, 6))
        {'0.weight': 6912.0}
    """
    batch = batch_size(inputs) or 1
    with FlopCounter(model) as counter, torch.no_grad(), torch.random.fork_rng(devices=[]), eval_mode(model):
        call(model, inputs)
    return {name: flops / batch for name, flops in counter.flops.items()}


class FlopCounter:
    """Counts FLOPs while it is open: forward hooks on the modules that own weights, gone at the end.

    Attributes:
        flops: dense forward FLOPs so far, by parameter name, of all samples together.
    """

    def __init__(self, model: nn.Module) -> None:
        self.flops: Costs = {}
        names = {id(target.weight): target.name for target, _ in targets(model)}  # tied weights have one name
        # by place: FSDP2 has another tensor there during a forward pass
        self._names = {
            (id(m), a): names[id(w)] for m in model.modules() for a, w in m._parameters.items() if w is not None
        }
        for target, _ in targets(model):
            if isinstance(target.module, Compact) and target.attribute == "values":  # which knows the dense shape too
                self._names[id(target.module), "weight"] = target.name
        self._handles = []
        for module in model.modules():
            if (rule := _rule(module)) is not None:
                self._handles.append(module.register_forward_hook(self._hook(rule), with_kwargs=True))

    def _hook(self, rule: "_Rule") -> Callable[[nn.Module, Any, Any, Any], None]:
        def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for attribute, flops in rule(module, args, kwargs, output).items():
                *path, last = attribute.split(".")
                owner = module.get_submodule(".".join(path))
                if (name := self._names.get((id(owner), last))) is not None:  # a parametrized weight is no parameter
                    self.flops[name] = self.flops.get(name, 0.0) + flops

        return count

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> "FlopCounter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Rule = Callable[[Any, Any, Any, Any], Mapping[str, float]]


def _rule(module: nn.Module) -> _Rule | None:
    if isinstance(module, Compact):
        return (_convolution if len(module.shape) > 2 else _linear) if module.common else None
    if isinstance(module, CONVS):
        return _convolution
    if isinstance(module, TRANSPOSED):
        return _transposed
    if isinstance(module, nn.MultiheadAttention):
        return _attention
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent
    weight = module._parameters.get("weight")
    if weight is not None and weight.ndim == 2 and not isinstance(module, _LOOKUPS):
        return _linear  # nn.Linear, and every module like it (transformers' Conv1D)
    return None


def _convolution(module: Any, args: Any, kwargs: Any, out: Tensor) -> Costs:
    shape = _shape(module)
    channels = out.shape[out.ndim - len(shape) + 1]  # an unbatched input has no batch dimension
    return {"weight": 2.0 * shape.numel() * out.numel() / channels}


def _transposed(module: Any, args: Any, kwargs: Any, out: Any) -> Costs:
    return {"weight": 2.0 * module.weight.numel() * _first(args, kwargs).numel() / module.in_channels}


def _linear(module: Any, args: Any, kwargs: Any, out: Any) -> Costs:
    given = _first(args, kwargs)
    return {"weight": 2.0 * _shape(module).numel() * (given.numel() / given.shape[-1])}


def _shape(module: Any) -> torch.Size:
    return module.shape if isinstance(module, Compact) else module.weight.shape


def _attention(module: Any, args: Any, kwargs: Any, out: Any) -> Costs:
    names = ("query", "key", "value")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    tokens = [given[n].numel() / given[n].shape[-1] for n in names]
    square = 2.0 * module.embed_dim**2
    costs = {"out_proj.weight": tokens[0] * square}
    if module.in_proj_weight is not None:
        return {**costs, "in_proj_weight": sum(tokens) * square}
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    pairs = zip(("q", "k", "v"), weights, tokens, strict=True)
    return {**costs, **{f"{n}_proj_weight": 2.0 * w.numel() * t for n, w, t in pairs}}


def _recurrent(module: Any, args: Any, kwargs: Any, out: Any) -> Costs:
    given = _first(args, kwargs)
    data = given.data if isinstance(given, nn.utils.rnn.PackedSequence) else given
    steps = data.numel() / module.input_size
    return {n: 2.0 * w.numel() * steps for n, w in module._parameters.items() if w is not None and w.ndim == 2}


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def batch_size(inputs: Any) -> int | None:
    """First dimension of the first tensor in nested tuples, lists and dicts; None where there is none.

    Example:
        >>> batch_size({"ids": [torch.zeros(7, 3)]})
        7
    """
    if isinstance(inputs, Tensor):
        return int(inputs.shape[0]) if inputs.ndim else None
    parts = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple | list) else ()
    return next((size for part in parts if (size := batch_size(part)) is not None), None)


def call(model: nn.Module, inputs: Any) -> Any:
    """What the model puts out for a tensor, a tuple of arguments or a dict of keyword arguments.

    Example:
        >>> call(nn.Identity(), {"input": torch.ones(1)}), call(nn.Identity(), (torch.ones(1),))
        (tensor([1.]), tensor([1.]))
    """
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
