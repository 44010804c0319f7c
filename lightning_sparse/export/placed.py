"""A file that is in its place only when it is whole and checked."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A name beside ``path``: its file takes that place once it is on the disk, or is gone after an error.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with draft(folder / "new.bin") as file:
        ...     _ = file.write_bytes(b"1")
        >>> [found.name for found in folder.iterdir()]
        ['new.bin']
    """
    own = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield own
        with own.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)
    _settle(path.parent)


def _settle(folder: Path) -> None:
    """Make a new name last, where the system can."""
    with suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def wrong_path(path: Path) -> list[str]:
    """Why no file can be written there.

    Example:
        >>> wrong_path(Path("no_such_folder/net.onnx"))
        ['the folder no_such_folder does not exist']
    """
    if path.is_dir():
        return [f"{path} is a folder; give a file's name"]
    return [] if path.parent.is_dir() else [f"the folder {path.parent} does not exist"]
