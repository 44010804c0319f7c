"""Weights that processes share (FSDP2, tensor parallel) have the masks of a single process."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from contract import CASES
from helpers import LIVE, SIZES, TOTAL, Net, digest, same
from modes import mode
from sharded_runs import CLIPPED, HALF, MAIN, SAVED, STEPS, WORKING, fit, step_of

from lightning_sparse import DensityLogger, MaskUpdater

pytestmark = pytest.mark.ddp
RUNS = Path(__file__).parent.parent / "sharded_runs.py"


def launch(processes: int, folder: Path, seconds: int = 900) -> list[dict]:
    """The results of as many processes as asked for, which talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(RUNS.parent.parent), str(RUNS.parent), os.environ.get("PYTHONPATH")]))
    ours = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    everywhere = {**os.environ, **ours, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    try:
        for rank in range(processes):
            with (folder / f"{rank}.stderr").open("w") as errors:
                pipes = {"stdout": subprocess.DEVNULL, "stderr": errors, "cwd": folder}
                environment = {**everywhere, "LOCAL_RANK": str(rank)}
                command = [sys.executable, "-W", "ignore", str(RUNS), str(folder)]
                started.append(subprocess.Popen(command, env=environment, **pipes))
        codes = [process.wait(seconds) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    errors = [(folder / f"{rank}.stderr").read_text()[-3000:] for rank in range(processes)]
    assert not any(codes), "\n".join(errors)
    return [torch.load(folder / f"{rank} of {processes}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def alone(folder) -> Callable[[str], dict]:
    """The oracle: a run in a single process, in plain tensors; some leave a checkpoint half-way."""

    @cache
    def run(name: str) -> dict:
        return fit("alone", name, folder=folder / f"{name} alone" if name in SAVED else None)

    for name in SAVED:
        run(name)
    return run


@pytest.fixture(scope="module")
def ranks(folder, alone) -> list[dict]:
    return launch(2, folder)


@pytest.fixture(scope="module")
def crew(folder, ranks) -> list[dict]:
    return launch(4, folder)


def assert_like(run: dict, oracle: dict) -> None:
    """The same masks after every step, and weights as near as another order of additions allows."""
    assert len(oracle["masks"]) in (STEPS, HALF)
    assert run["masks"] == oracle["masks"]
    assert run["counts"] == oracle["counts"]
    assert same(run["final"], oracle["final"])
    assert run["updates"] == oracle["updates"]
    assert all(torch.allclose(run["weights"][n], w, rtol=1e-3, atol=1e-4) for n, w in oracle["weights"].items())
    assert run["forwards"] >= 3 * len(oracle["masks"])
    assert run["leaks"] == run["state_leaks"] == 0


@mode(57, "FSDP2 and tensor parallelism", right="the masks of one process, also resumed", note="over gloo")
@pytest.mark.parametrize("name", WORKING)
def test_masks_under_fsdp2_are_those_of_a_single_process_after_every_step(ranks, alone, name):
    if CASES[name].moves:
        assert len(set(alone(name)["masks"])) >= 2, "masks must move"
    for rank in ranks:
        assert_like(rank[f"fsdp {name}"], alone(name))


@mode(57)
@pytest.mark.parametrize("name", MAIN)
def test_masks_under_tensor_parallel_are_those_of_a_single_process_after_every_step(ranks, alone, name):
    for rank in ranks:
        assert_like(rank[f"tp {name}"], alone(name))


def test_counts_are_exact_over_all_shards(ranks):
    for rank in ranks:
        for how in ("fsdp", "tp"):
            assert all(counts == LIVE for counts in rank[f"{how} rigl"]["counts"])
            assert all(sum(counts.values()) == TOTAL for counts in rank[f"{how} sparse_momentum"]["counts"])
            weights, masks = (rank[f"{how} rigl"][part] for part in ("weights", "final"))
            assert all(not weights[name][~mask].any() for name, mask in masks.items())
            assert sum(int(mask.sum()) for mask in masks.values()) == TOTAL


def test_weights_that_validation_left_gathered_are_masked_too(ranks, alone):
    for rank in ranks:
        assert_like(rank["one group"], alone("rigl"))


def test_density_and_flops_are_reported_alike_on_all_ranks(ranks):
    oracle = fit("alone", "rigl", callbacks=[DensityLogger(1)], log_every_n_steps=1)["metrics"]
    first, second = (rank["one group"]["metrics"] for rank in ranks)
    assert first == second
    assert first["density"] == ranks[0]["one group"]["density"] == 0.25
    nonzero = sum(int(ranks[0]["one group"]["weights"][name].count_nonzero()) for name in LIVE)
    assert first["nonzero_density"] == pytest.approx(nonzero / 2128)
    assert 0 < first["flops_share"] < 1
    assert first["flops_share"] == pytest.approx(oracle["flops_share"])


def test_accumulated_and_clipped_gradients_give_the_masks_of_a_single_process(ranks):
    oracle = fit("alone", "rigl", max_steps=HALF, **CLIPPED)
    free = fit("alone", "rigl", max_steps=HALF, **{**CLIPPED, "gradient_clip_val": None})
    assert not same(oracle["weights"], free["weights"]), "nothing was clipped"
    for rank in ranks:
        assert_like(rank["clipped"], oracle)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("str", ["STR", "latent", "DDP"]),
        ("l0", ["L0", "latent", "DDP"]),
        ("topkast", ["TopKAST", "latent", "DDP"]),
        ("srste", ["SRSTE", "latent", "DDP"]),
        ("snip", ["SNIP", "copy of the model", "checkpoint"]),
        ("grasp", ["GraSP", "copy of the model", "checkpoint"]),
        ("synflow", ["SynFlow", "copy of the model", "checkpoint"]),
        ("lottery_ticket", ["GlobalMagnitude", "rewind=None"]),
    ],
)
def test_what_cannot_work_on_shared_weights_is_refused_by_name_with_the_way_out(ranks, name, words):
    for rank in ranks:
        assert all(word in rank["refused"][name] for word in words), rank["refused"][name]


def test_every_algorithm_works_or_is_refused(ranks):
    assert all({*WORKING, *rank["refused"]} == {*CASES} for rank in ranks)


def test_an_infinite_gradient_in_one_shard_holds_the_update_on_all_ranks(ranks):
    first, second = (rank["poisoned"] for rank in ranks)
    assert first == second
    one, two, three = first["masks"]
    assert one == two != three
    assert first["updates"] == 2


@pytest.mark.parametrize("kind", ["adagrad", "radam", "bfloat16"])
def test_no_optimizer_fills_dead_entries_of_any_shard_and_lbfgs_is_refused(ranks, kind):
    for rank in ranks:
        assert rank["optimizers"][kind] == {"leaks": 0, "updates": 2, "density": 0.25}
        assert "LBFGS flattens weights" in rank["optimizers"]["lbfgs"]


def test_a_step_on_shards_while_modules_show_gathered_copies_is_refused(ranks):
    assert all("net.0.weight is gathered" in rank["gathered"] for rank in ranks)
    assert all("reshard()" in rank["gathered"] for rank in ranks)


@mode(57)
@pytest.mark.parametrize(
    ("first", "again"),
    [("fsdp rigl", "rigl again"), ("fsdp sparse_momentum", "sparse_momentum again"), ("one group", "one group again")],
    ids=["file", "momentum", "folder"],
)
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(ranks, first, again):
    for rank in ranks:
        assert len(rank[again]["masks"]) == STEPS - HALF
        assert rank[again]["masks"] == rank[first]["masks"][HALF:]
        assert all(same(rank[first][part], rank[again][part]) for part in ("weights", "final"))
        assert len(rank[first]["state"]) == len(rank[again]["state"]) > 0
        assert all(torch.equal(a, b) for a, b in zip(rank[first]["state"], rank[again]["state"], strict=True))


@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_of_one_process_goes_on_in_two(ranks, alone, name):
    for rank in ranks:
        assert rank[f"{name} from one"]["masks"] == alone(name)["masks"][HALF:]
        assert rank[f"{name} from one"]["leaks"] == 0


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")  # ModelCheckpoint
@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_of_two_processes_goes_on_in_one(ranks, alone, folder, name):
    again = fit("alone", name, start=step_of(folder / f"{name} file"))
    assert again["masks"] == alone(name)["masks"][HALF:]
    assert again["leaks"] == again["state_leaks"] == 0


@pytest.mark.parametrize("run", ["rigl file", "rigl folder", "sparse_momentum file"])
def test_a_checkpoint_holds_whole_masks_in_bits_and_loads_without_code(ranks, alone, folder, run):
    path = step_of(folder / run)
    saved = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=True)
    rows = saved["callbacks"]["lightning_sparse.MaskUpdater"]["params"]
    assert {key: row["mask"].numel() for key, row in rows.items()} == {key: -(-n // 8) for key, n in SIZES.items()}
    assert all(type(v) is torch.Tensor for row in rows.values() for v in [row["mask"], *row["state"].values()])
    reader = MaskUpdater("rigl")
    reader.load_state_dict(saved["callbacks"]["lightning_sparse.MaskUpdater"])
    assert digest(reader.masks) == alone(run.split()[0])["masks"][HALF - 1]


def test_a_checkpoint_loads_in_plain_lightning_with_zeros(ranks, folder):
    path = step_of(folder / "rigl file")
    model = Net.load_from_checkpoint(path)
    reader = MaskUpdater("rigl")
    reader.load_state_dict(torch.load(path, weights_only=True)["callbacks"]["lightning_sparse.MaskUpdater"])
    named = dict(model.named_parameters())
    assert all(not named[name][~mask].any() for name, mask in reader.masks.items())
    assert len(reader.masks) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", MAIN)
def test_fsdp2_and_tensor_parallel_together_have_the_masks_of_a_single_process(crew, alone, name):
    for rank in crew:
        assert_like(rank[f"both {name}"], alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rigl", "gmp"])
def test_empty_shards_change_nothing(crew, alone, name):
    for rank in crew:
        assert_like(rank[f"four {name}"], alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_checkpoint_of_two_processes_goes_on_in_four(crew, alone, kind):
    for rank in crew:
        assert rank[f"from {kind}"]["masks"] == alone("rigl")["masks"][HALF:]
        assert rank[f"from {kind}"]["leaks"] == 0
