"""``lightning-sparse``: LightningCLI with our callbacks and algorithms known by their short names."""

import sys


def main() -> None:
    """Run LightningCLI on any LightningModule, named by its class path.

    ``lightning-sparse fit --model my_package.MyModel --trainer.callbacks+=MaskUpdater`` sees modules in the working
    directory, as ``python -m`` would. ``lightning-sparse report`` measures what was trained.

    Raises:
        SystemExit: if LightningCLI's own dependency is missing; the message names the extra.
    """
    try:
        from lightning.pytorch.cli import LightningCLI
    except ImportError as missing:  # pragma: no cover  # the test environment has it
        way_out = 'pip install "lightning-sparse[cli]"'
        raise SystemExit(f"lightning-sparse needs the extra [cli]: {way_out} ({missing})") from None
    import lightning_sparse  # noqa: F401  # its classes become known to the parser
    from lightning_sparse.callbacks.reporting.command import main as report

    sys.path.insert(0, "")
    if sys.argv[1:2] == ["report"]:
        report(sys.argv[2:])
        return
    LightningCLI(save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
