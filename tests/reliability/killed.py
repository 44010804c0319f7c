"""Training processes that are killed: each is a fork of this one, which has imported everything and run nothing.

    python killed.py FOLDER SEED KILLS SUBJECT

A history draws an algorithm, an optimizer and more from its seed. With "channels" as the subject they leave the model
twice on the way; with "masks" they stay; with "quantized" weights and activations are quantized from a quarter or half
of the run on, and every other history dies before that, while ranges move, and when they rest. It is trained once
without a break, and once in lives that end by SIGKILL: at any moment, half way through the bytes of a checkpoint, or
half way through moving one to its place. Each next life goes on from the newest checkpoint that loads. A line of JSON
for every history tells what happened; what it left is in its folder. Nothing is compared here. Seeds count on from
SEED: a history that failed comes again by its own and four kills, but for the moments of death; "lives" tells from
which checkpoint each life went on.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # else every life imports it by itself
from fsspec.implementations.local import LocalFileOpener
from stories import NOW, PHASES, Story, draw, fit, note

KINDS = ("any moment", "in a write", "any moment", "in a move")
KILLS_EACH = 4  # of a history, at most
TORN = "is torn"  # what the refusal of a torn checkpoint says
PATIENCE = 900.0  # seconds of a life that hangs, on a machine that is busy


class Death(NamedTuple):
    """How a life is to end.

    Attributes:
        kind: one of :data:`KINDS`, or empty to live on.
        after: seconds, or whole checkpoints.
        share: of the bytes of the torn one.
        phase: in which checkpoints count; empty: in all.
    """

    kind: str = ""
    after: float = 0.0
    share: float = 0.0
    phase: str = ""


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def live(story: Story, folder: Path) -> None:
    """Go on from the newest checkpoint that loads; one that does not must say that it is torn, and which it is."""
    for start in [*newest_first(folder), None]:
        note(folder / "lives", "from", start and start.name)
        try:
            fit(story, folder, start, story.seed if start is None else random.randrange(2**31))
        except Exception as error:
            said = "\n".join([str(error), *getattr(error, "__notes__", ())])
            if start is None or str(start) not in said or TORN not in said:
                raise
            with open(folder / "refused", "a") as out:
                print(start.name, start.stat().st_size, file=out)
        else:
            return


def tear(death: Death, ready: int) -> None:
    """Let the checkpoint after ``death.after`` whole ones be torn, and wait there for the end."""
    write, move, count = LocalFileOpener.write, shutil.move, [death.after]

    def stop() -> None:
        os.write(ready, b"x")
        while True:
            signal.pause()

    def half_write(self, data):
        if not str(self.path).endswith(".ckpt") or counted() > 0:
            return write(self, data)
        self.f.write(data[: int(len(data) * death.share)])
        self.f.flush()
        return stop()

    def half_move(source, target, *args):  # as across file systems, where moving is copying
        if not str(target).endswith(".ckpt") or counted() > 0:
            return move(source, target, *args)
        data = Path(source).read_bytes()
        Path(target).write_bytes(data[: int(len(data) * death.share)])
        return stop()

    def counted() -> float:
        if death.phase and death.phase != NOW["phase"]:
            return 1
        count[0] -= 1
        return count[0] + 1

    if death.kind == "in a write":
        LocalFileOpener.write = half_write
    elif death.kind == "in a move":
        shutil.move = half_move


def life(story: Story, folder: Path, death: Death) -> tuple[bool, float]:
    """One life in a process of its own: whether it was killed, and how many seconds it lasted."""
    hear, ready = os.pipe()
    began = time.monotonic()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(hear)
            tear(death, ready)
            live(story, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(ready)
    timeout = death.after if death.kind == "any moment" else PATIENCE
    heard, _, _ = select.select([hear], [], [], timeout)  # a word, or the end of the pipe with that of the process
    done = bool(heard) and os.read(hear, 1) == b""
    if not done:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(hear)
    if (os.WIFEXITED(status) and os.WEXITSTATUS(status)) or (timeout == PATIENCE and not heard):
        raise SystemExit(f"{story} {'failed' if heard else 'hung'} in {folder}, to die of {death}")
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, time.monotonic() - began


def history(seed: int, subject: str, folder: Path, kills: int, turn: int) -> dict[str, Any]:
    """Train without a break, and with up to ``kills``; ``turn`` says which kind of death comes first."""
    story, dice = draw(seed, subject), random.Random(-1 - seed)
    whole, torn = folder / "whole", folder / "killed"
    for place in (whole, torn, folder / "temporary"):
        place.mkdir(parents=True)
    tempfile.tempdir = str(folder / "temporary")
    _, length = life(story, whole, Death())
    deaths: list[str] = []
    while len(deaths) < kills:
        kind, phase = KINDS[(turn + len(deaths)) % len(KINDS)], ""
        if story.bits and seed % 2 == 0 and len(deaths) < len(PHASES):
            kind, phase = KINDS[1 + 2 * (len(deaths) % 2)], PHASES[len(deaths)]
        after = dice.uniform(0, length) if kind == "any moment" else 1 if phase else dice.randrange(5)
        killed, _ = life(story, torn, Death(kind, after, dice.random(), phase))
        if not killed:
            break  # it was done before
        deaths.append(kind)
    else:
        life(story, torn, Death())
    refused = (torn / "refused").read_text().splitlines() if (torn / "refused").exists() else []
    lives = [json.loads(line.partition("\t")[2]) for line in (torn / "lives").read_text().splitlines()]
    told = {"story": story._asdict(), "folder": str(folder), "deaths": deaths, "lives": lives, "refused": refused}
    if story.bits:
        phases = (torn / "phases").read_text().splitlines()
        told["phases"] = [json.loads(line.partition("\t")[2]) for line in phases]
    return {**told, "left": len(list((folder / "temporary").iterdir()))}


def main() -> None:
    """As many histories as it takes."""
    folder, seed, kills, subject = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    done = turn = 0
    while done < kills:
        told = history(seed, subject, folder / str(seed), min(KILLS_EACH, kills - done), turn)
        seed, turn, done = seed + 1, turn + len(told["deaths"]), done + len(told["deaths"])
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
