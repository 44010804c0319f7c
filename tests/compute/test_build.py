"""Kernels are compiled once; without a compiler the same is computed by torch, and said once."""

import logging

import pytest
import torch
from torch import nn

from lightning_sparse.compute import SparseLinear, build
from lightning_sparse.compute import native as loading


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has not loaded kernels, with an empty cache."""
    monkeypatch.setenv("LIGHTNING_SPARSE_CACHE", str(tmp_path / "cache"))
    loading._native.cache_clear()
    yield tmp_path
    loading._native.cache_clear()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


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
    assert [path.suffix for path in (fresh / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_made_is_named(fresh, monkeypatch):
    (fresh / "cache").write_text("")
    with pytest.raises(build.BuildError, match="LIGHTNING_SPARSE_CACHE"):
        build.library("portable")


def test_a_library_is_compiled_once_for_its_sources_and_flags(fresh, monkeypatch):
    fake = 'for last; do :; done; case "$1" in --version) echo 1;; *) echo run >> "$0.log"; echo > "$last";; esac'
    monkeypatch.setenv("CXX", script(fresh / "cxx", fake))
    first = build.library("portable")
    runs = len((fresh / "cxx.log").read_text().split())
    assert build.library("portable") == first
    assert len((fresh / "cxx.log").read_text().split()) == runs
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build.library("portable") != first
    assert len((fresh / "cxx.log").read_text().split()) == 2 * runs


def test_without_openmp_it_is_compiled_for_one_thread(fresh, monkeypatch):
    fake = '[ "$1" = --version ] && exit 0; for a; do [ "$a" = -fopenmp ] && exit 1; last="$a"; done; echo > "$last"'
    monkeypatch.setenv("CXX", script(fresh / "cxx", fake))
    assert build.library("portable").exists()
