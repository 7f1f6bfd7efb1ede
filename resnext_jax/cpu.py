"""What makes XLA fast on CPUs, and is no business of a network.

The compiler's options here and the calls of `ops.onednn` are inner matters of jaxlib, which
may change with its next version. They are used with the versions that were tried, and left
alone with any other. docs/performance.md has what they bring.
"""

import ctypes
import os
import platform
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax
import jaxlib.version
from jax.sharding import Mesh

from resnext_jax.target import compiling_for, target_platform

# `make test` has passed on these, tests/ops/test_onednn.py in particular. To try another
# version, add it here and run them; benchmarks/train_step.py tells what it brings.
TRIED_JAXLIB = ("0.10.2", "0.12.0.1")

# glibc's names in malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_TOP_PAD_BYTES = 64 << 20


def carries_onednn() -> bool:
    """Whether the program is compiled for a CPU, with a jaxlib whose oneDNN was tried."""
    return target_platform() == "cpu" and not _why_not_carried()


def _why_not_carried() -> str:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "oneDNN is called on Linux on x86-64 only"
    version = jaxlib.version.__version__
    return "" if version in TRIED_JAXLIB else f"oneDNN's calls were not tried with jaxlib {version}"


def _cache_folder() -> str | None:
    """Return where JAX keeps compiled programs; it takes "" for none, too."""
    folder: str | None = jax.config.values["jax_compilation_cache_dir"]
    return folder if folder and jax.config.values["jax_enable_compilation_cache"] else None


def has_onednn() -> bool:
    """Whether `ops.onednn` may be called: where it is carried, and no compiled programs are kept.

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
    reason = _why_not_carried()
    if not reason and _cache_folder():
        reason = f"compiled programs are kept in {_cache_folder()}, which cannot hold oneDNN's"
    elif not reason and dtype != "float32":
        reason = f"oneDNN is called for float32 only, not for {dtype}"
    if reason:
        return f"convolutions on the CPU: XLA's own ({reason})"
    return f"convolutions on the CPU: oneDNN's, as jaxlib {jaxlib.version.__version__} bundles it"


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options of `jax.jit` for whole training steps on a mesh; none where it is not of CPUs.

    XLA leaves sums to its library YNN, which does not take in what they are sums of, and is
    slow where it does. XLA's own loops do the sums of batch normalisation in fewer passes.
    """
    with compiling_for(mesh.abstract_mesh.abstract_device.platform):
        return {"xla_cpu_experimental_ynn_fusion_type": ""} if carries_onednn() else {}


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
