"""What is known of each model in a report, and of the machine it was measured on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

RUNTIMES = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}


@dataclass(frozen=True)
class Latency:
    """How long a runtime takes for one call, or why that is not known.

    Attributes:
        runtime: ``"eager"``, ``"compile"``, ``"onnxruntime"`` or ``"openvino"``.
        batch: samples in a call.
        wall: median seconds that passed; None where nothing was measured.
        cpu: median seconds that all threads of the process worked.
        why: a word or two on why nothing was measured.
    """

    runtime: str
    batch: int
    wall: float | None = None
    cpu: float | None = None
    why: str = ""

    @property
    def title(self) -> str:
        """Head of its column."""
        return f"{RUNTIMES[self.runtime]} @{self.batch}"


@dataclass(frozen=True)
class Row:
    """One model; what is None was not measured.

    Attributes:
        name: of the model, with its bits where it is quantized.
        quantized: whether weights are integers.
        parameters: of the model, tied ones once.
        nonzeros: parameters that are not zero.
        metric: what ``evaluate`` returned.
        bytes: of the compressed file of :func:`~lightning_sparse.export.save_packed`.
        bound_bytes: the entropy, below which weights that are drawn one by one cannot be stored.
        plain_bytes: of the file that ``torch.save`` makes of the float32 ``state_dict``.
        flops: of a forward pass, a sample; 2 a multiply-add, weights only.
        live_flops: those of weights that are not zero.
        latencies: by runtime and batch size, in the order of the report's columns.
        why: by attribute, a word or two on why it is None.
    """

    name: str
    quantized: bool
    parameters: int
    nonzeros: int
    metric: float | None = None
    bytes: int | None = None
    bound_bytes: float | None = None
    plain_bytes: int | None = None
    flops: float | None = None
    live_flops: float | None = None
    latencies: tuple[Latency, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)

    def latency(self, runtime: str, batch: int) -> Latency:
        """Of one runtime at one batch size; an empty one where it is no column of the report.

        Example:
            >>> row = Row("dense", False, 9, 9, latencies=(Latency("eager", 1, 0.002, 0.002),))
            >>> row.latency("eager", 1).wall, row.latency("openvino", 1).wall
            (0.002, None)
        """
        found = (one for one in self.latencies if (one.runtime, one.batch) == (runtime, batch))
        return next(found, Latency(runtime, batch))


@dataclass(frozen=True)
class Machine:
    """Where and when it was measured.

    Attributes:
        cpu: the name of its model.
        cores: that the process may use.
        threads: that a runtime was given.
        system: operating system and architecture.
        python: version.
        versions: of torch, and of the runtimes that were used.
        date: ISO.
    """

    cpu: str
    cores: int
    threads: int
    system: str
    python: str
    versions: Mapping[str, str]
    date: str

    def __str__(self) -> str:
        """In a sentence.

        Example:
            >>> print(Machine("A CPU", 2, 1, "Linux x86_64", "3.11.2", {"torch": "2.13.0"}, "2026-01-31"))
            A CPU (2 cores, 1 thread used), Linux x86_64, Python 3.11.2, torch 2.13.0, 2026-01-31
        """
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        where = f"{self.cpu} ({cores}, {threads} used), {self.system}, Python {self.python}"
        return ", ".join(part for part in (where, versions, self.date) if part)
