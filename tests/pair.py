"""Two processes that talk over gloo, started once: they run one module's ``on_a_rank(rank, folder)`` after another.

    echo '["tests/ddp_runs.py", "/tmp/out"]' | LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
        PYTHONPATH=.:tests python tests/pair.py    # and the same with 1
"""

import fcntl
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

import torch

TESTS = Path(__file__).parent
MINUTES = 10  # for all scenarios of a module, on machines that are busy


def load(path: Path) -> ModuleType:
    """The module of a file, whatever folder it is in."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Pair:
    """Starts with the first question; ends with ``close``."""

    def __init__(self, folder: Path, together: Path) -> None:
        """Errors go to ``folder``; answers to ``together``, where all workers of a run of pytest find them."""
        self.folder, self.together = folder, together
        self.processes: list[subprocess.Popen] = []

    def results(self, path: Path) -> list[dict]:
        """What ``on_a_rank`` of the module in that file gives on both ranks; asked once in a run of pytest."""
        folder = self.together / f"pair-{path.stem}"
        with (self.together / "pair.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                folder.mkdir()
                self._ask(path, folder)
        failed = [file.read_text() for file in sorted(folder.glob("*.error"))]
        assert not failed, "\n".join(failed)
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    def _ask(self, path: Path, folder: Path) -> None:
        self.processes = self.processes or [self._start(rank, port) for port in [free_port()] for rank in (0, 1)]
        for process in self.processes:
            process.stdin.write(json.dumps([str(path), str(folder)]) + "\n")
            process.stdin.flush()
        deadline = time.monotonic() + 60 * MINUTES
        while not all((folder / f"{rank}.pt").exists() for rank in (0, 1)):
            dead = any(process.poll() is not None for process in self.processes)
            if dead or time.monotonic() > deadline or any(folder.glob("*.error")):
                errors = [(self.folder / f"{rank}.stderr").read_text()[-3000:] for rank in (0, 1)]
                (folder / "pair.error").write_text("\n".join(["a rank failed or was too slow", *errors]))
                self.close()  # the other may wait for it
                break
            time.sleep(0.05)

    def _start(self, rank: int, port: int) -> subprocess.Popen:
        path = os.pathsep.join(filter(None, [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH")]))
        ours = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
        environment = {**os.environ, **ours, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (self.folder / f"{rank}.stderr").open("w") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": errors, "text": True}
            return subprocess.Popen([sys.executable, "-W", "ignore", __file__], env=environment, **pipes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.stdin.close()
            process.wait()
        self.processes = []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve() -> None:
    """Until there are no more lines; an answer is a whole file as soon as it has its name."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(1)
    for line in sys.stdin:
        path, folder = map(Path, json.loads(line))
        os.chdir(folder)
        torch.manual_seed(0)
        try:
            torch.save(load(path).on_a_rank(rank, folder), folder / f"{rank}.part")
            (folder / f"{rank}.part").rename(folder / f"{rank}.pt")
        except Exception:
            (folder / f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")


if __name__ == "__main__":
    serve()
