"""Lightning's ModelPruning in the failure modes of tests/reliability, where that takes a short training.

    python benchmarks/reliability.py      # writes results/reliability.json; then python tests/reliability/page.py

The network of watched.py has 2,000 weights; 200 of them are to live from the end of the first epoch on. What a forward
pass uses is counted from outside. Modes that are not here were not measured. Those of "reported" were, in earlier
probes that this script keeps and does not repeat.
"""

import copy
import json
import logging
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from probes import Found, at_most, saver
from pruned import Breaks, Late, Mixing, Raw, Skipping, Tied, net, pruning, train
from torch import nn
from watched import Net, Watch, effective, live

RESULTS = Path(__file__).parent / "results" / "reliability.json"


def worst(model: Net | None = None, *others: Callback, **how: Any) -> Found:
    """The most non-zero weights that a forward pass used once they were pruned."""
    watch = Watch(None)
    train([pruning(), watch, *others], model, **how)
    return at_most(max(count for epoch, count in watch.seen if epoch >= 1))


def mixing() -> Found:
    """Mode 3."""
    model = net()
    model.configure_optimizers = lambda: Mixing(model.parameters(), lr=0.05)  # type: ignore[method-assign]
    return worst(model)


def equal(left: Net, right: Net) -> Found:
    """The same weights, bit for bit."""
    return Found(all(torch.equal(a, b) for a, b in zip(effective(left), effective(right), strict=True)))


def accumulated() -> Found:
    """The same weights live after one big batch and after two accumulated ones."""
    runs = [train([pruning()], batch=8), train([pruning()], batch=4, accumulate_grad_batches=2)]
    masks = [[w != 0 for w in effective(model)] for model in runs]
    return Found(all(torch.equal(a, b) for a, b in zip(*masks, strict=True)))


def compounding() -> Found:
    """``amount=0.5``, and otherwise what the documentation gives."""
    count = live(train([ModelPruning("l1_unstructured", amount=0.5, parameter_names=["weight"])]))
    return Found(count == 1000, f"`amount=0.5` leaves {count:,} of 2,000 after three epochs")


def nothing_to_prune() -> Found:
    """``amount=0``."""
    return equal(train([pruning(amount=0.0)]), train([]))


def randomness() -> Found:
    """The global random state after a random pruning."""
    states = []
    for callbacks in ([pruning("random_unstructured")], []):
        train(callbacks)
        states.append(torch.get_rng_state())
    return Found(torch.equal(*states), "" if torch.equal(*states) else "a random method draws from it")


def tied() -> Found:
    """Ten per cent of 1,650 weights, one of which stands for two layers."""
    model = train([pruning()], net(Tied))
    if model.net[3].weight is not model.net[1].weight:
        return Found(False, "they are two weights afterwards")
    count = sum(int(w.count_nonzero()) for w in {id(w): w for w in effective(model)}.values())
    return Found(count == 165, f"{count} of 165")


def lazy() -> Found:
    """An error that names the layer."""
    model = net()
    model.net[2] = nn.LazyLinear(40)
    try:
        train([pruning()], model)
    except Exception as error:
        return Found("net.2" in str(error), f"`{type(error).__name__}` without the layer's name")
    found = at_most(live(model))
    return Found(True, "they are pruned once they exist") if found.ok else found


def frozen() -> Found:
    """A layer that trains from the second epoch on."""

    class Unfreeze(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net[2].requires_grad_(trainer.current_epoch > 0)

    return worst(None, Unfreeze())


def unmatched() -> Found:
    """No parameter has that name."""
    try:
        train([pruning(parameter_names=["kernel"])])
    except Exception as error:
        return Found("net.0" in str(error), f"`{type(error).__name__}` without candidates")
    return Found(False, "silent")


def second_model() -> Found:
    """The same callback on another model: the one that a new callback gives."""
    callback, other = pruning(), net(seed=3)
    train([callback])
    return equal(train([callback], other), train([pruning()], net(seed=3)))


def untouched() -> Found:
    """``max_epochs=0``."""
    return equal(train([pruning()], max_epochs=0), net())


def resumed() -> Found:
    """From the end of the first epoch."""
    with tempfile.TemporaryDirectory() as folder:
        whole = train([pruning(), saver(folder)])
        again = train([pruning(), saver(folder)], net(seed=5), start=Path(folder) / "epoch=0.ckpt")
    return equal(whole, again) if equal(whole, again).ok else at_most(live(again))


def stored(*others: Callback, name: str = "epoch=1.ckpt", **settings: Any) -> Found:
    """A checkpoint of the second epoch loads strictly into the class, with ``weights_only=True``, and is sparse."""
    with tempfile.TemporaryDirectory() as folder:
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True, **settings)
        try:
            train([pruning(), keep, *others, *([OnExceptionCheckpoint(folder, "broken")] if others else [])])
        except ZeroDivisionError:
            name = "broken.ckpt"
        found = torch.load(Path(folder) / name, weights_only=True)["state_dict"]
    other = sorted(set(found) - set(Net().state_dict()))
    if other:
        return Found(False, f"holds `{other[0].removeprefix('net.')}`")
    model = Net()
    model.load_state_dict(found)
    return at_most(live(model))


def pair() -> Found:
    """Two callbacks prune a layer each; the third is left alone."""
    model = net()
    both = [pruning(parameters_to_prune=[(model.net[i], "weight")]) for i in (0, 2)]
    count = live(train(both, model))
    return Found(count == 60 + 120 + 200, f"{count} of 380")


def names() -> Found:
    """In ``state_dict`` while training."""
    watch = Watch(None)
    train([pruning(), watch])
    other = sorted(watch.keys - set(Net().state_dict()))
    return Found(not other, f"`{other[0].removeprefix('net.')}`" if other else "")


def averaged(callback: Callback) -> Found:
    """At the end the model is the average."""
    return at_most(live(train([pruning(), callback], max_epochs=4)))


def twice() -> Found:
    """One callback and one model in two fits, with the lottery ticket that is on by default."""
    callback, model = ModelPruning("l1_unstructured", amount=0.5, parameter_names=["weight"]), net()
    for _ in range(2):
        train([callback], model)
    return Found(True)


def copies() -> Found:
    """``deepcopy`` of the model's network and of the callback, between two steps."""

    class Copies(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            copy.deepcopy(pl_module.net)

    train([pruning(), Copies()])
    return Found(True)


PROBES: dict[int, Callable[[], Found]] = {
    1: worst,
    3: mixing,
    6: accumulated,
    10: lambda: worst(net(Raw)),
    11: lambda: worst(net(lambda: Net(lbfgs=True))),
    12: lambda: worst(net(Skipping)),
    19: compounding,
    20: nothing_to_prune,
    23: randomness,
    24: tied,
    25: lazy,
    26: lambda: worst(net(Late)),
    27: frozen,
    28: unmatched,
    29: second_model,
    30: untouched,
    31: resumed,
    35: stored,
    37: stored,
    38: lambda: stored(save_weights_only=True),
    42: lambda: stored(Breaks())._replace(words="what is saved"),
    44: pair,
    45: names,
    46: lambda: averaged(EMAWeightAveraging(decay=0.7)),
    47: lambda: averaged(StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)),
    48: lambda: averaged(EMAWeightAveraging(decay=0.7, update_starting_at_step=25)),
    62: lambda: worst(precision="bf16-mixed"),
    63: lambda: at_most(live(train([pruning()], barebones=True))),
    64: twice,
    65: copies,
    72: lambda: worst(detect_anomaly=True),
}


def look(probe: Callable[[], Found]) -> dict[str, object]:
    """What a probe finds; an error is a no."""
    try:
        return probe()._asdict()
    except Exception as error:  # whatever is raised is what a user would meet
        return {"ok": False, "words": f"`{type(error).__name__}`", "error": str(error)[:300]}


def main() -> None:
    """Measure and store."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"reported": {}}
    result = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "modes": {str(number): look(probe) for number, probe in PROBES.items()},
        "reported": before["reported"],
    }
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for number, found in result["modes"].items():
        print(number, found)


if __name__ == "__main__":
    main()
