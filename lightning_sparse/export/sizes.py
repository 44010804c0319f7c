"""What a compressed checkpoint takes, tensor by tensor, and how near that is to the least."""

from dataclasses import dataclass
from math import prod

_HEAD = ("tensor", "stored", "live", "bits", "dense bytes", "bytes", "entropy")


@dataclass(frozen=True)
class PackedTensor:
    """How one tensor was saved.

    Attributes:
        name: of the tensor.
        kind: ``"gaps"``: live values and the gaps between them, compressed; ``"values"``: all values, compressed;
            ``"plain"``: as it is.
        shape: of the tensor.
        live: values that are not zero.
        bits: of a live value.
        dense_bytes: of the tensor in memory.
        bytes: in the file, without the header.
        bound_bytes: the entropy, as :class:`PackedReport` says.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    live: int
    bits: int
    dense_bytes: int
    bytes: int
    bound_bytes: float


@dataclass(frozen=True)
class PackedReport:
    """What was saved, and how near it is to what it could be; ``str()`` of it is a table.

    Attributes:
        tensors: one row each.
        bytes: of the file.
        dense_bytes: of all tensors in memory, tied ones once.

    Example:
        >>> print(PackedReport((PackedTensor("w", "gaps", (10, 10), 5, 8, 400, 40, 25.0),), 160, 400))
        tensor  stored    live  bits  dense bytes  bytes  entropy
        w       gaps    5.00 %     8          400     40       25
        header                                       120
        file                                  400    160       25
        2.5 times smaller than dense; entropy alone: 16.0 times
    """

    tensors: tuple[PackedTensor, ...]
    bytes: int
    dense_bytes: int

    @property
    def bound_bytes(self) -> float:
        """The entropy of which weights live, if each does by chance, and of each byte of their values and scales.

        Weights that are drawn one by one cannot be stored in less by any code; weights with a pattern can. Tables of
        codes, names and shapes are not in it.
        """
        return sum(row.bound_bytes for row in self.tensors)

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the tensors in memory."""
        return self.dense_bytes / self.bytes

    def __str__(self) -> str:
        header = self.bytes - sum(row.bytes for row in self.tensors)
        bound = f"{self.bound_bytes:,.0f}"
        lines = [_HEAD, *map(_cells, self.tensors), ("header", "", "", "", "", f"{header:,}", "")]
        lines.append(("file", "", "", "", f"{self.dense_bytes:,}", f"{self.bytes:,}", bound))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
        least = f"; entropy alone: {self.dense_bytes / self.bound_bytes:.1f} times" if self.bound_bytes else ""
        return "\n".join([*text, f"{self.ratio:.1f} times smaller than dense{least}"])


def _cells(row: PackedTensor) -> tuple[str, ...]:
    size = prod(row.shape)
    live = f"{row.live / size:.2%}".replace("%", " %") if size else ""
    sizes = (f"{row.dense_bytes:,}", f"{row.bytes:,}", f"{row.bound_bytes:,.0f}")
    return row.name, row.kind, live, str(row.bits), *sizes


def _aligned(line: tuple[str, ...], widths: list[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    return [f"{cell:{'<' if i < 2 else '>'}{width}}" for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
