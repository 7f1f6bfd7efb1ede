"""Eight virtual CPU devices for every test, set up before JAX starts."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest

_flags = [*os.environ.get("XLA_FLAGS", "").split(), "--xla_force_host_platform_device_count=8"]
# Where programs are not optimised, XLA's older way of making them takes half the time. Later
# versions do not have it.
if "--xla_backend_optimization_level=0" in _flags and version("jaxlib").startswith("0.10."):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(_flags)
os.environ["JAX_PLATFORMS"] = "cpu"
# So that only the first of the processes that tests start compiles the package's modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Most of a test's time is compiling, often of what another has compiled: programs are kept, of one
# session alone, by the commands that tests run too.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share that of the process that starts them
    _cache = tempfile.TemporaryDirectory(prefix="resnext_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Some tests send Ctrl-C to what they start, which would ignore it where this process does: in a
# script's background, say.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests import shapes

shapes.install()

import jax
import jaxtyping

from resnext_jax.ops import cpu


def pytest_collection_finish() -> None:
    """Spare Python looking for garbage among a million objects of modules, and as often as usual.

    It would be a tenth of all time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Wrong shapes get past the annotations, to what functions themselves say of them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def no_programs_stored() -> Iterator[None]:
    """The cache of compiled programs takes none of one test's: it cannot hold oneDNN's."""
    name = "jax_persistent_cache_min_compile_time_secs"
    usual = jax.config.values[name]
    jax.config.update(name, 1e9)
    yield
    jax.config.update(name, usual)


@pytest.fixture
def onednn(no_programs_stored: None) -> Iterator[None]:
    """Convolutions of oneDNN, which the cache of compiled programs above keeps away elsewhere."""
    if not cpu.carries_onednn():
        pytest.skip("oneDNN is used with versions of jaxlib that were tried")
    with mock.patch.object(cpu, "has_onednn", cpu.carries_onednn):
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for prepared data sets, shared by the tests of one run."""
    return tmp_path_factory.mktemp("tfds")
