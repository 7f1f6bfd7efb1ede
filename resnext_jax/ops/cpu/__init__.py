"""Settings that make XLA fast on CPUs, kept apart from the networks.

The compiler options here and the custom calls of `ops.cpu.onednn` are internals of jaxlib that can
change in any release, so they are only used with tested versions. With other versions, XLA's own
oneDNN pass is enabled if it exists: a part of the gain, without private calls. docs/performance.md
has measurements.
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

# `make test` has passed with these, tests/ops/cpu/test_onednn.py in particular. To use another
# version, add it here and run the tests; benchmarks/train_step.py measures the speed.
TRIED_JAXLIB = ("0.10.2", "0.11.2", "0.12.0.1")

# XLA's library YNN for sums and convolutions has priority over oneDNN, so it is disabled for both.
_WITHOUT_YNN: dict[str, bool | str] = {"xla_cpu_experimental_ynn_fusion_type": ""}
_XLAS_ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True, **_WITHOUT_YNN}

# glibc's names in malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_TOP_PAD_BYTES = 64 << 20


def carries_onednn() -> bool:
    """Whether the program is compiled for a CPU, with a jaxlib whose oneDNN calls were tested."""
    return target_platform() == "cpu" and not _why_not_carried()


def _no_onednn_here() -> str:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "oneDNN is called on Linux on x86-64 only"
    return ""


def _why_not_carried() -> str:
    if reason := _no_onednn_here():
        return reason
    version = jaxlib.version.__version__
    if version in TRIED_JAXLIB:
        return ""
    return f"oneDNN's calls were not tested with jaxlib {version}"


def may_use_onednn() -> bool:
    """Whether programs for a CPU call oneDNN, by our calls or XLA's, unless they are cached."""
    return carries_onednn() or (target_platform() == "cpu" and _xla_knows_onednn())


@functools.cache
def _xla_knows_onednn() -> bool:
    """Whether this jaxlib has the options of XLA's own oneDNN pass; unknown options are errors."""
    if _no_onednn_here():
        return False
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0, compiler_options=_XLAS_ONEDNN).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _cache_folder() -> str | None:
    """Return the folder of JAX's persistent compilation cache, None if it is disabled."""
    folder: str | None = jax.config.values["jax_compilation_cache_dir"]
    return folder if folder and jax.config.values["jax_enable_compilation_cache"] else None


def has_onednn() -> bool:
    """Whether `ops.cpu.onednn` may be called: it is available, and programs are not cached.

    JAX's persistent compilation cache cannot store a program that calls oneDNN, because XLA
    serialises such a call incorrectly. JAX initialises its cache at the first compilation, so the
    cache has to be enabled or disabled before that.
    """
    return carries_onednn() and not _cache_folder()


def describe_convolutions(dtype: str) -> str:
    """Describe which convolutions are used on the CPU, and why, for the log of a run.

    Args:
      dtype: dtype of the computation.
    """
    untried = _why_not_carried()
    if may_use_onednn() and _cache_folder():
        kept = f"compiled programs are cached in {_cache_folder()}, which cannot store oneDNN's"
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
    """Return the compiler options of whole training steps on a mesh; {} if it is not of CPUs.

    XLA delegates sums to its library YNN, which does not fuse the computation of the summands, or
    is slow if it does. XLA's own loops compute the sums of batch normalisation in fewer passes. If
    this package does not call oneDNN, XLA's own oneDNN pass is enabled.
    """
    with compiling_for(mesh.abstract_mesh.abstract_device.platform):
        if carries_onednn():
            return _WITHOUT_YNN
        return _XLAS_ONEDNN if may_use_onednn() and not _cache_folder() else {}


def keep_memory() -> None:
    """Configure malloc to keep freed memory in this process, if the CPU is JAX's only platform.

    XLA allocates its intermediate results, a gigabyte for ResNet-50, in every step. By default the
    C library requests them from the kernel each time, which clears the pages first. Keeping them
    does not increase the peak, but the process stays at its peak.

    Call this before JAX starts its threads, that is, before its first computation: later, memory is
    kept too, but steps do not become faster. It has no effect with C libraries other than glibc.
    """
    if not _has_only_cpu() or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    # A single arena, which is never trimmed and grows in large steps.
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    library.mallopt(_ARENA_MAX, 1)
    library.mallopt(_TOP_PAD, _TOP_PAD_BYTES)


def _has_only_cpu() -> bool:
    """Whether JAX will run on the CPU, determined without initialising it."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if wanted:
        return wanted == "cpu"
    # Accelerators are plugins; TPUs are detected by their library.
    return not entry_points(group="jax_plugins") and find_spec("libtpu") is None
