"""A file that is in its place only when it is whole and checked."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A file in the same folder that takes the place of ``path`` at the end, or is gone after an error.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with draft(folder / "new.bin") as file:
        ...     _ = file.write_bytes(b"1")
        >>> [found.name for found in folder.iterdir()]
        ['new.bin']
    """
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(number)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_mask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def wrong_path(path: Path) -> list[str]:
    """Why no file can be written there.

    Example:
        >>> wrong_path(Path("no_such_folder/net.onnx"))
        ['the folder no_such_folder does not exist']
    """
    if path.is_dir():
        return [f"{path} is a folder; give a file's name"]
    return [] if path.parent.is_dir() else [f"the folder {path.parent} does not exist"]


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
