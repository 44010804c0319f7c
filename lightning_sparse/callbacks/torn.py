"""Checkpoint files that are not whole: found before training goes on from them."""

import os
import sys
import zipfile
from typing import Any

from lightning_sparse.callbacks.base import rank_zero_info

_ZIP = b"PK\x03\x04"
_CHUNK = 1 << 20  # bytes


def damage(path: str | os.PathLike[str]) -> str:
    """What is wrong with a file that ``torch.save`` wrote; empty when nothing is, or when that cannot be told.

    ``torch.save`` stores a sum (CRC-32) with every part, but ``torch.load`` does not look at it: it returns whatever
    the bytes have become. Here every byte is read once. Remote files, folders and other formats are not judged.

    Example:
        >>> damage("no/such/file")
        ''
    """
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        head = file.read(len(_ZIP))
    if not head.strip(b"\0"):
        return "it is empty"
    if not zipfile.is_zipfile(path):
        return "it is cut short" if _ZIP.startswith(head) else ""  # else not torch.save's format
    try:
        return _changed(path)
    except Exception as error:  # whatever a parser makes of broken bytes
        return f"its table of contents is broken: {error}"


def _changed(path: str | os.PathLike[str]) -> str:
    """Which parts differ from their sums."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if not any(part.CRC for part in parts):
            return ""  # torch.serialization.set_crc32_options(False): there are no sums
        bad = [part.filename for part in parts if not _whole(archive, part)]
    return f"{', '.join(bad)} changed since it was written" if bad else ""


def _whole(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(part) as stream:
            while stream.read(_CHUNK):
                pass
    except Exception:  # whatever a parser makes of broken bytes
        return False
    return True


class FileCheck:
    """Looks at the file that a Trainer's run goes on from, once.

    Lightning tells callbacks of it only when the weights have been loaded, so these may be damaged by then; but no step
    is taken, and no mask is restored.
    """

    def __init__(self) -> None:
        self._open = False

    def begin(self) -> None:
        """A run begins: nothing has been looked at."""
        self._open = True

    def look(self, trainer: Any) -> None:
        """Refuse a damaged file, if there is one and this is the first call since :meth:`begin`.

        Raises:
            ValueError: naming the file, what is wrong with it, and the way out.
        """
        due, self._open = self._open and trainer.ckpt_path is not None, False
        if due and (found := damage(trainer.ckpt_path)):
            raise ValueError(_text(trainer.ckpt_path, found))

    def explain(self, trainer: Any, exception: BaseException) -> None:
        """A run has failed: if it could not read its file, say which one and why; torch's own words do not."""
        due, self._open = self._open and trainer.ckpt_path is not None, False
        if due and (found := damage(trainer.ckpt_path)):
            text = _text(trainer.ckpt_path, found)
            vars(exception)["__notes__"] = [*getattr(exception, "__notes__", ()), text]
            if sys.version_info < (3, 11):
                rank_zero_info(text)  # notes are not printed


def _text(path: str | os.PathLike[str], found: str) -> str:
    return f"the checkpoint {path} is torn ({found}): go on from another one, with a model made anew"
