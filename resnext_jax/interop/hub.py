"""Files of the Hugging Face Hub: fetched once, kept in its cache, and checked before each use.

A file that the cache has is taken without asking the server. The cache (`HF_HUB_CACHE`, by default
`~/.cache/huggingface/hub`) names a file by the hash that the server gave: the SHA-256 of a large
file, git's hash of a small one. Both are compared with the content here.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from resnext_jax.errors import one_line
from resnext_jax.interop.errors import WeightsError

# Seconds that the server may take to answer.
_TIMEOUT = 4

_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_CHUNK = 2**20


def fetch(repository: str, names: tuple[str, ...]) -> list[Path]:
    """Return the paths of a repository's files in the cache, fetching those that are not there.

    Args:
      repository: such as "timm/resnext50_32x4d.a1_in1k".
      names: of its files.

    Returns:
      A path for each, checked against its hash.

    Raises:
      WeightsError: huggingface_hub is not installed; a file does not exist, cannot be fetched, or
        its content is not what the hash says.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise WeightsError(
            f"weights by name ({repository}) need huggingface_hub, which is not installed; run "
            "pip install 'resnext-jax[hub]'."
        ) from error
    paths = []
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        path = Path(cached) if isinstance(cached, str) else _fetch_one(repository, name)
        _check(path, f"{name} of {repository}")
        paths.append(path)
    return paths


def _fetch_one(repository: str, name: str) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    server = constants.ENDPOINT
    file = f"{name} of {repository}"
    try:
        with _without_warnings():
            # Asks once. The library's download would ask for 25 s where there is no network.
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(repository, name), timeout=_TIMEOUT
            )
            return Path(huggingface_hub.hf_hub_download(repository, name, etag_timeout=_TIMEOUT))
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{server} gives {repository} only to those who accepted its terms; do so there, and "
            "set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{server} has no repository {repository}; check the name, which list_models("
            "pretrained=True) lists."
        ) from error
    except errors.EntryNotFoundError as error:
        # The hub library's error for everything that it cannot reach is one of these as well.
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise WeightsError(
                f"{repository} at {server} has no {name}; weights are read from model.safetensors "
                "only, so choose a repository that has it."
            ) from error
        raise _unfetched(file, server, error.__cause__ or error) from error
    except Exception as error:  # of the hub library, of its HTTP library, and of the disk
        raise _unfetched(file, server, error) from error


def _unfetched(file: str, server: str, error: BaseException) -> WeightsError:
    reason = one_line(error).partition(" (Request ID")[0].rstrip(".")
    return WeightsError(
        f"{file} is not in the cache and cannot be fetched from {server} "
        f"({type(error).__name__}: {reason}); check the connection, and try again."
    )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave out the hub library's warnings of transfers that it tries again."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(path: Path, file: str) -> None:
    """Compare a file's content with the hash that the cache names it by; raises WeightsError."""
    stored = Path(os.path.realpath(path))
    try:
        size = stored.stat().st_size
        if _SHA256.fullmatch(stored.name):
            hashed = hashlib.sha256()
        elif _GIT_SHA1.fullmatch(stored.name):
            hashed = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        else:
            raise WeightsError(
                f"{file} is in the cache as {stored}, without the hash to check it by; set "
                "HF_HUB_CACHE to a folder whose file system has symbolic links."
            )
        with stored.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                hashed.update(chunk)
    except OSError as error:
        raise WeightsError(
            f"{file} cannot be read from the cache ({error.strerror}: {stored}); check the file."
        ) from error
    if hashed.hexdigest() != stored.name:
        raise WeightsError(
            f"{file} is damaged in the cache: its content has another hash than its name; delete "
            f"{stored}, and it is fetched again."
        )
