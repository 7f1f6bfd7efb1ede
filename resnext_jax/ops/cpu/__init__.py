"""What makes XLA fast on CPUs, and is no business of a network.

The compiler's options here and the calls of `ops.cpu.onednn` are inner matters of jaxlib, which
may change with its next version. They are used with the versions that were tried. With any other
XLA's own use of oneDNN is switched on, if that version has it: a part of the gain, and no private
call. docs/performance.md has what they bring.
"""

import ctypes
import functools
import os
import platform
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax
import jaxlib.version
from jax.sharding import Mesh

from resnext_jax.ops.target import compiling_for, target_platform

# `make test` has passed on these, tests/ops/cpu/test_onednn.py in particular. To try another
# version, add it here and run them; benchmarks/train_step.py tells what it brings.
TRIED_JAXLIB = ("0.10.2", "0.11.2", "0.12.0.1")

# XLA's library for sums and convolutions, which comes before oneDNN, is switched off for both.
_WITHOUT_YNN: dict[str, bool | str] = {"xla_cpu_experimental_ynn_fusion_type": ""}
_XLAS_ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True, **_WITHOUT_YNN}

# glibc's names in malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_TOP_PAD_BYTES = 64 << 20


def carries_onednn() -> bool:
    """Whether the program is compiled for a CPU, with a jaxlib whose oneDNN was tried."""
    return target_platform() == "cpu" and not _why_not_carried()


def _no_onednn_here() -> str:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "oneDNN is called on Linux on x86-64 only"
    return ""


def _why_not_carried() -> str:
    if reason := _no_onednn_here():
        return reason
    version = jaxlib.version.__version__
    return "" if version in TRIED_JAXLIB else f"oneDNN's calls were not tried with jaxlib {version}"


def may_use_onednn() -> bool:
    """Whether programs for a CPU call oneDNN, by our calls or XLA's, unless they are to be kept."""
    return carries_onednn() or (target_platform() == "cpu" and _xla_knows_onednn())


@functools.cache
def _xla_knows_onednn() -> bool:
    """Whether this jaxlib has the options of XLA's own oneDNN pass; unknown ones stop a compile."""
    if _no_onednn_here():
        return False
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0, compiler_options=_XLAS_ONEDNN).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _cache_folder() -> str | None:
    """Return where JAX keeps compiled programs; it takes "" for none, too."""
    folder: str | None = jax.config.values["jax_compilation_cache_dir"]
    return folder if folder and jax.config.values["jax_enable_compilation_cache"] else None


def has_onednn() -> bool:
    """Whether `ops.cpu.onednn` may be called: it is carried, and no compiled programs are kept.

    JAX's persistent compilation cache cannot store a program that calls oneDNN: XLA takes
    such a call for one of another kind when it writes it. JAX decides about its cache when it
    first compiles, so the cache should be chosen, or given up, before that.
    """
    return carries_onednn() and not _cache_folder()


def describe_convolutions(dtype: str) -> str:
    """Say which convolutions a CPU computes with, and why, for the log of a run.

    Args:
      dtype: of the computation.
    """
    untried = _why_not_carried()
    if may_use_onednn() and _cache_folder():
        kept = f"compiled programs are kept in {_cache_folder()}, which cannot hold oneDNN's"
        how = f"XLA's own ({kept})"
    elif may_use_onednn() and untried:
        how = f"oneDNN's, where XLA calls it ({untried})"
    elif untried:
        how = f"XLA's own ({untried})"
    elif dtype != "float32":
        how = f"XLA's own (oneDNN is called for float32 only, not for {dtype})"
    else:
        how = f"oneDNN's, as jaxlib {jaxlib.version.__version__} bundles it"
    return f"convolutions on the CPU: {how}"


def compiler_options(mesh: Mesh) -> dict[str, bool | str]:
    """Options of `jax.jit` for whole training steps on a mesh; none where it is not of CPUs.

    XLA leaves sums to its library YNN, which does not take in what they are sums of, and is
    slow where it does. XLA's own loops do the sums of batch normalisation in fewer passes.
    Where this package does not call oneDNN, XLA is asked to.
    """
    with compiling_for(mesh.abstract_mesh.abstract_device.platform):
        if carries_onednn():
            return _WITHOUT_YNN
        return _XLAS_ONEDNN if may_use_onednn() and not _cache_folder() else {}


def keep_memory() -> None:
    """Have this process keep the memory it frees, where JAX has nothing but the CPU.

    XLA asks for its intermediate results, a gigabyte for ResNet-50, in every step anew. The C
    library would take it from the system each time, in pages that are cleared first. A process
    that keeps it never grows for it, but does not shrink either: it holds what it needed most.

    To be called before JAX starts its threads, which is when it first computes: later, memory
    is kept too, but no step is faster for it. Does nothing with other C libraries than glibc.
    """
    if not _has_only_cpu() or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    # All from one arena, which is never given back and grows in large steps.
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    library.mallopt(_ARENA_MAX, 1)
    library.mallopt(_TOP_PAD, _TOP_PAD_BYTES)


def _has_only_cpu() -> bool:
    """Whether JAX will run on the CPU, told without starting it."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if wanted:
        return wanted == "cpu"
    # Accelerators are plugins; a TPU's is known by its library.
    return not entry_points(group="jax_plugins") and find_spec("libtpu") is None
