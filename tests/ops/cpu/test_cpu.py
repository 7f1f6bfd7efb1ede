"""What is set for the CPU, and where it is left alone."""

import platform
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import jaxlib.version
import pytest

from resnext_jax.ops import cpu
from resnext_jax.parallel.mesh import make_mesh

ALLOCATE = """
import ctypes, resource
from resnext_jax.ops import cpu

if {keep}:
    cpu.keep_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def use():
    block = library.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    library.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    """Pages that the system has to give a second time."""
    command = [sys.executable, "-c", ALLOCATE.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_freed_memory_is_kept() -> None:
    assert page_faults(keep=True) < 100 < page_faults(keep=False)


@pytest.mark.parametrize("platforms", ["cuda", "cpu,cuda"])
def test_memory_is_left_alone_beside_an_accelerator(
    platforms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    with mock.patch.object(cpu.ctypes, "CDLL") as library:
        cpu.keep_memory()
    library.assert_not_called()


def test_an_accelerator_is_known_by_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(cpu, "find_spec", lambda name: None)
    with mock.patch.object(cpu.ctypes, "CDLL") as library:
        monkeypatch.setattr(cpu, "entry_points", lambda group: [group])
        cpu.keep_memory()
        library.assert_not_called()
        monkeypatch.setattr(cpu, "entry_points", lambda group: [])
        cpu.keep_memory()
        library.assert_called()


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("", ""))
    with mock.patch.object(cpu.ctypes, "CDLL") as library:
        cpu.keep_memory()
    library.assert_not_called()


def test_programs_that_are_kept_do_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA fails to store one with oneDNN's calls: `MemoryError`, at best."""
    monkeypatch.setattr(cpu, "carries_onednn", lambda: True)
    folder, enabled = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
    usual = {name: jax.config.values[name] for name in (folder, enabled)}
    try:
        for none in (None, ""):
            jax.config.update(folder, none)
            assert cpu.has_onednn()
        jax.config.update(folder, "/somewhere")
        assert not cpu.has_onednn()
        jax.config.update(enabled, False)
        assert cpu.has_onednn()
    finally:
        for name, value in usual.items():
            jax.config.update(name, value)


@pytest.fixture
def another_jaxlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of jaxlib whose calls of oneDNN were not tried, on a machine that could."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(jaxlib.version, "__version__", "0.99.0")
    monkeypatch.setattr(cpu, "_cache_folder", lambda: None)


@pytest.mark.skipif(
    jaxlib.version.__version__.startswith("0.10."), reason="knows the option and has no such pass"
)
@pytest.mark.usefixtures("another_jaxlib", "no_programs_stored")
def test_another_jaxlib_calls_onednn_by_xlas_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cpu.has_onednn()
    if not cpu.may_use_onednn():
        pytest.skip("this jaxlib has no such pass")
    options = cpu.compiler_options(make_mesh(8, None))

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    program = jax.jit(conv, compiler_options=options).lower(x, kernel).compile()
    assert "__onednn$convolution" in str(program.as_text())
    assert "oneDNN's, where XLA calls it" in cpu.describe_convolutions("float32")
    monkeypatch.setattr(cpu, "_cache_folder", lambda: "/kept")
    assert cpu.compiler_options(make_mesh(8, None)) == {}


@pytest.mark.usefixtures("another_jaxlib")
def test_options_that_xla_does_not_know_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_XLAS_ONEDNN", {"xla_cpu_unknown": True})
    cpu._xla_knows_onednn.cache_clear()
    try:
        assert not cpu.may_use_onednn()
        assert cpu.compiler_options(make_mesh(8, None)) == {}
        assert "own (oneDNN's calls were not tested" in cpu.describe_convolutions("float32")
    finally:
        cpu._xla_knows_onednn.cache_clear()


@pytest.mark.usefixtures("onednn")
def test_compiler_options_keep_sums_out_of_the_library() -> None:
    def total(x: jax.Array) -> jax.Array:
        return (x * 2 + 1).sum(axis=0)

    x = jnp.ones((25088, 256))
    options = cpu.compiler_options(make_mesh(8, None))
    program = jax.jit(total, compiler_options=options).lower(x).compile()
    assert "ynn_fusion" not in str(program.as_text())


def test_the_log_says_whose_convolutions_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(jaxlib.version, "__version__", cpu.TRIED_JAXLIB[0])
    monkeypatch.setattr(cpu, "_cache_folder", lambda: None)
    assert "oneDNN's, as jaxlib 0.10.2 bundles it" in cpu.describe_convolutions("float32")
    assert "own (oneDNN is called for float32 only" in cpu.describe_convolutions("bfloat16")
    monkeypatch.setattr(cpu, "_cache_folder", lambda: "/kept")
    assert "own (compiled programs are cached in /kept" in cpu.describe_convolutions("float32")
    monkeypatch.setattr(jaxlib.version, "__version__", "9.9.9")
    monkeypatch.setattr(cpu, "_cache_folder", lambda: None)
    assert "not tested with jaxlib 9.9.9" in cpu.describe_convolutions("float32")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "on Linux on x86-64 only" in cpu.describe_convolutions("float32")
