"""What two processes do for the tests of ExportReport."""

from pathlib import Path

import torch
from helpers import trainer, weights
from reported import QUICK, Data, Tiny

from lightning_sparse import ExportReport, MaskUpdater


def on_a_rank(rank: int, folder: Path) -> dict:
    """A fit with a report, then one without: what is left of both."""
    found = {}
    for name, callbacks in (("with", [ExportReport(**QUICK, validate=True)]), ("without", [])):
        torch.manual_seed(1)
        model, root = Tiny(), Path(folder) / name
        updater = MaskUpdater("static", density={"net.0": 0.25, "net.2": 1.0})
        own = trainer([*callbacks, updater], max_epochs=2, strategy="ddp", devices=2, default_root_dir=root)
        own.fit(model, datamodule=Data())
        own.strategy.barrier()
        files = sorted(path.name for path in root.rglob("*"))
        found[name] = {"weights": weights(model), "next": torch.rand(1), "files": files}
        if callbacks:
            report = callbacks[0].report
            found["rows"] = None if report is None else [(row.name, row.nonzeros, row.metric) for row in report.rows]
            found["notes"] = [] if report is None else list(report.notes)
    return found
