"""The compiler of the sparse runtime's kernels, and what it made.

Imports neither paddle nor onnx: with `--noconftest` it runs under AddressSanitizer, too.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sparse_networks import SMALL, expected, pictures

from sparse_runtime import Network, build
from sparse_runtime.network import Task
from sparse_runtime.operators import convolution, elementwise, moving, pooling

STRUCTURES = {
    "task": Task,
    "convolution": convolution.ConvolutionFields,
    "matrix": convolution.Matrix,
    "depthwise": convolution.DepthwiseFields,
    "pool": pooling.Pool,
    "binary": elementwise.Binary,
    "scale": elementwise.ScaleFields,
    "moved": moving.Moved,
}


@pytest.mark.parametrize("name", build.instruction_sets())
def test_both_sides_have_the_same_structures(name):
    library = build.library(name)
    sizes = {which: library[f"{which}_size"]() for which in STRUCTURES}
    assert sizes == {which: ctypes.sizeof(kind) for which, kind in STRUCTURES.items()}
    assert library.lanes() == {"avx512": 16, "avx2": 8, "plain": 4}[name]


def test_the_best_instructions_are_the_default():
    assert Network(SMALL, tune=False).lanes == build.library(build.instruction_sets()[0]).lanes()


@pytest.mark.parametrize("name", ["neon", "AVX2", "../plain"])
def test_unknown_instructions_are_refused(name):
    with pytest.raises(ValueError, match=f"no {name}; it has .*plain"):
        Network(SMALL, instruction_set=name)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("flags\t\t: fpu avx512f avx2 fma", ["avx512", "avx2", "plain"]),
        ("flags\t\t: fpu avx avx2 fma", ["avx2", "plain"]),
        ("flags\t\t: fpu avx512f avx2", ["plain"]),
        ("Features\t: fp asimd", ["plain"]),
        ("", ["plain"]),
    ],
)
def test_instructions_of_another_machine(flags, found, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: f"processor\t: 0\n{flags}\n")
    assert build.instruction_sets() == found
    build.library.cache_clear()
    for name in build.FLAGS.keys() - found:
        with pytest.raises(ValueError, match=f"no {name}; it has {', '.join(found)}$"):
            build.library(name)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that copies a library which is there already, and a list of its commands."""
    real = build.library("plain")._name
    log, program = tmp_path / "log", tmp_path / "compiler"
    program.write_text(f"""#!/bin/sh
        echo "$@" >> {log}
        case "$*" in *--version*) echo one; exit;; esac
        for last; do :; done
        cp {real} "$last"
    """)
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    monkeypatch.delenv("CXXFLAGS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield lambda: [line for line in log.read_text().splitlines() if "--version" not in line]
    build.library.cache_clear()


def compiled(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("cache/paddle-unstructured-pruning/*"))


def test_the_kernels_are_compiled_once(compiler, tmp_path, capsys):
    ((right, _),) = expected(SMALL, pictures(SMALL, 1))
    for _ in range(3):
        build.library.cache_clear()  # as in another process
        (result,) = Network(SMALL, instruction_set="plain", tune=False)(pictures(SMALL, 1))
        np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-4)
    message = "compiling the sparse runtime for plain (once, up to a minute)\n"
    assert capsys.readouterr() == ("", message)
    (command,) = compiler()
    assert all(f"{name}.cpp" in command for name in ("network", "patches", "sparse", "pool"))
    (name,) = compiled(tmp_path)  # and nothing beside it
    assert name.startswith("kernels-plain-")
    assert (tmp_path / "cache/paddle-unstructured-pruning").stat().st_mode & 0o077 == 0


def test_what_the_kernels_depend_on(compiler, tmp_path, monkeypatch):
    def again(count: int) -> None:
        for _ in range(2):
            build.library.cache_clear()
            build.library("plain")
        assert len(compiler()) == len(compiled(tmp_path)) == count

    again(1)
    monkeypatch.setenv("CXXFLAGS", "-g '-DA=b c'")
    again(2)
    assert "-g -DA=b c" in compiler()[-1]
    program = tmp_path / "compiler"
    program.write_text(program.read_text().replace("echo one", "echo two"))  # a new version
    again(3)
    monkeypatch.setenv("CXX", f"{program} -pipe")
    again(4)
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    for path in build.KERNELS.iterdir():
        (kernels / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "KERNELS", kernels)
    (kernels / "simd.h").write_text("another")
    again(5)
    monkeypatch.delenv("CXXFLAGS")
    monkeypatch.setenv("CXX", str(program))
    again(6)


def test_both_compile_at_once(compiler, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        tried = list(pool.map(lambda i: Network(SMALL, 1, 1, "plain", False), range(4)))
    assert len({network(pictures(SMALL, 1))[0].tobytes() for network in tried}) == 1
    assert len(compiled(tmp_path)) == 1


def refusal() -> str:
    build.library.cache_clear()
    with pytest.raises(ValueError, match=r".") as refused:
        Network(SMALL, instruction_set="plain")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_no_compiler(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -pipe")
    assert "there is no no-such-compiler" in refusal()
    assert "apt-get install g++" in refusal()
    for nothing in ("", " "):
        monkeypatch.setenv("CXX", nothing)
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        assert "there is no C++ compiler; install one" in refusal()
    monkeypatch.delenv("CXX")
    assert "there is no C++ compiler; install one" in refusal()


@pytest.mark.parametrize("which", ["*) ", "*--version*) exit;; *) echo some;"])
def test_a_compiler_that_fails(which, compiler, tmp_path, monkeypatch):
    program = tmp_path / "compiler"
    failing = "(echo warning: old; echo 'a.cpp:1: error: no AVX'; echo 'b: error') >&2; exit 1"
    program.write_text(f'#!/bin/sh\ncase "$*" in {which} {failing};; esac\n')
    assert refusal() == f"{program} could not compile the kernels: a.cpp:1: error: no AVX"
    assert compiled(tmp_path) == []
    program.write_text("#!/bin/sh\nexit 1\n")
    assert refusal() == f"{program} could not compile the kernels: status 1"
    program.write_text("no program")
    assert refusal().startswith(str(program))


def test_a_real_compiler_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXXFLAGS", "-std=c++1")
    try:
        assert "could not compile the kernels: " in refusal()
    finally:
        build.library.cache_clear()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners")
def test_a_cache_of_another_user(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert refusal() == (
        f"cannot keep the compiled kernels in {tmp_path}/paddle-unstructured-pruning: "
        "it belongs to another user; set XDG_CACHE_HOME"
    )


def test_a_cache_that_cannot_be_made(compiler, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = tmp_path / "file/paddle-unstructured-pruning"
    assert refusal() == (
        f"cannot keep the compiled kernels in {folder}: Not a directory; set XDG_CACHE_HOME"
    )
