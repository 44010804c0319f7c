"""Kernels are compiled once; without a compiler the same is computed by torch, and said once."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_sparse.compute import SparseLinear, build
from lightning_sparse.compute import native as loading

COMPILES = 'for last; do :; done; [ "$1" = --version ] && exit 0; echo run >> "$0.log"; echo > "$last"'


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has not loaded kernels, with an empty cache."""
    monkeypatch.setenv("LIGHTNING_SPARSE_CACHE", str(tmp_path / "cache"))
    for known in (loading._automatic, loading.kernels):
        known.cache_clear()
    yield tmp_path
    for known in (loading._automatic, loading.kernels):
        known.cache_clear()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def runs(compiler):
    log = Path(f"{compiler}.log")
    return len(log.read_text().split()) if log.exists() else 0


def test_without_a_compiler_torch_computes_it_and_says_so_once(fresh, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    dense, x = nn.Linear(5, 3), torch.randn(2, 5)
    sparse = SparseLinear.from_dense(dense)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            torch.testing.assert_close(sparse(x), dense(x))
    assert len(caplog.messages) == 1
    assert "install g++ or clang++, or set CXX" in caplog.text


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", script(fresh / "cxx", "echo no such flag >&2; exit 1"))
    with caplog.at_level(logging.WARNING):
        assert loading.native() is None
    assert "no such flag" in caplog.text
    assert {path.suffix for path in (fresh / "cache").iterdir()} == {".lock"}


def test_a_compiler_that_cannot_be_run_is_named(fresh, monkeypatch):
    monkeypatch.setenv("CXX", script(fresh / "cxx", ""))
    (fresh / "cxx").write_text("\0")  # neither a program nor a script
    with pytest.raises(build.BuildError, match=r"cxx cannot be run"):
        build.library("portable")


def test_a_compiler_may_be_several_words(fresh, monkeypatch):
    """As in CXX="ccache g++"."""
    compiler = script(fresh / "cxx", COMPILES)
    wrapper = script(fresh / "wrapper", 'exec "$@"')
    monkeypatch.setenv("CXX", f"{wrapper} {compiler}")
    assert build.library("portable").exists()
    assert runs(compiler) == len(build.KERNELS) + 1


def test_a_cache_that_cannot_be_made_is_named(fresh):
    (fresh / "cache").write_text("")
    with pytest.raises(build.BuildError, match="LIGHTNING_SPARSE_CACHE"):
        build.library("portable")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_cache_that_cannot_be_written_to_is_named_and_torch_computes_it(fresh, monkeypatch, caplog):
    monkeypatch.setenv("LIGHTNING_SPARSE_CACHE", "/proc/self")
    monkeypatch.setenv("CXX", script(fresh / "cxx", COMPILES))
    dense = nn.Linear(5, 3)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(SparseLinear.from_dense(dense)(torch.ones(5)), dense(torch.ones(5)))
    assert "cannot be written to /proc/self" in caplog.text
    assert "set LIGHTNING_SPARSE_CACHE" in caplog.text


def test_a_library_is_compiled_once_for_its_flags(fresh, monkeypatch):
    compiler = script(fresh / "cxx", COMPILES)
    monkeypatch.setenv("CXX", compiler)
    first = build.library("portable")
    once = runs(compiler)
    assert once > 0
    assert build.library("portable") == first
    assert runs(compiler) == once
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build.library("portable") != first
    assert runs(compiler) == 2 * once


def test_another_source_or_compiler_is_compiled_anew(fresh, monkeypatch):
    sources = fresh / "csrc"
    sources.mkdir()
    (sources / "a.cpp").write_text("1")
    monkeypatch.setattr(build, "SOURCES", sources)
    versioned = 'if [ "$1" = --version ]; then cat "$0.version"; exit 0; fi; ' + COMPILES
    monkeypatch.setenv("CXX", script(fresh / "cxx", versioned))
    (fresh / "cxx.version").write_text("1")
    first = build.library("portable")
    (sources / "a.cpp").write_text("2")
    second = build.library("portable")
    (fresh / "cxx.version").write_text("2")
    assert len({first, second, build.library("portable")}) == 3


def test_without_openmp_it_is_compiled_for_one_thread(fresh, monkeypatch):
    fake = '[ "$1" = --version ] && exit 0; for a; do [ "$a" = -fopenmp ] && exit 1; last="$a"; done; echo > "$last"'
    monkeypatch.setenv("CXX", script(fresh / "cxx", fake))
    assert build.library("portable").exists()


def test_what_a_killed_build_left_is_cleared_by_the_next(fresh, monkeypatch):
    monkeypatch.setenv("CXX", script(fresh / "cxx", COMPILES))
    found = build.library("portable")
    found.unlink()
    left = found.with_name(f"{found.stem}-build-abc")
    left.mkdir()
    (left / "linear.cpp.o").write_text("half")
    assert build.library("portable") == found
    assert not left.exists()


def test_two_processes_that_need_a_library_compile_it_once(fresh):
    """Ranks of a job, workers of a test run: one compiles, the other waits and takes what is there."""
    compiler = script(fresh / "cxx", f"sleep 0.2; {COMPILES}")
    words = [sys.executable, "-c", "from lightning_sparse.compute import build; print(build.library('portable'))"]
    package = str(Path(build.__file__).parents[2])
    environment = {**os.environ, "CXX": compiler, "PYTHONPATH": package}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    first, second = (process.communicate(timeout=100)[0].strip() for process in both)
    assert first == second
    assert Path(first).exists()
    assert runs(compiler) == len(build.KERNELS) + 1  # each source, and the library


def test_without_locks_it_is_compiled_all_the_same(fresh, monkeypatch):
    monkeypatch.setenv("CXX", script(fresh / "cxx", COMPILES))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert build.library("portable").exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
def test_kernels_that_another_user_has_made_are_not_loaded(fresh, monkeypatch):
    monkeypatch.setenv("CXX", script(fresh / "cxx", COMPILES))
    found = build.library("portable")
    if os.getuid() == 0:
        os.chown(found, 6, -1)
    monkeypatch.setattr(os, "getuid", lambda: 5)
    owner = found.stat().st_uid
    with pytest.raises(build.BuildError, match=f"belongs to user {owner}; set LIGHTNING_SPARSE_CACHE to a folder"):
        build.library("portable")
