"""Eight virtual CPU devices for every test, set up before JAX starts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_FLAG = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
# Commands that tests run leave the user's cache of compiled programs alone.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
from absl import flags

# Grain reads absl flags, which outside of an absl program nobody parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for prepared data sets, shared by the tests of one run."""
    return tmp_path_factory.mktemp("tfds")
