"""Several hosts: connecting at the start, exchanging values, and exiting together.

One process runs per host (or per accelerator); all run the same program and see the devices of
all. A program with several processes runs inside `connected`.
"""

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np

# Used by jax.distributed internally, which offers no public way to query a launcher, nor to
# override a part of what it detects.
from jax._src.clusters import (
    ClusterEnv,
    GceTpuCluster,
    GkeTpuCluster,
    K8sCluster,
    OmpiCluster,
    SlurmCluster,
)
from jax.experimental import multihost_utils

from resnext_jax.errors import EXIT_INTERRUPTED, UserError, one_line
from resnext_jax.parallel.contact import GRACE, Contact

_T = TypeVar("_T")

_NO_PROXY = "no_grpc_proxy"

# Number of differences between hosts that an error names.
_NAMED = 3

# The thread that acquires it ends the process: the main thread, or that of the connections.
_ending = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, from the point of view of one of them.

    Attributes:
      address: host of process 0, and a port there.
      num_processes: 2 or more.
      process_id: index of this process, 0 to num_processes - 1.
      local_device_ids: this process's accelerators on this host; None: all.
    """

    address: tuple[str, int]
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _Launched:
    """The processes, as the launcher that started them describes them."""

    by: str
    num_processes: int
    process_id: int
    address: Callable[[], str | None]
    local_device_ids: tuple[int, ...] | None = None


@contextlib.contextmanager
def connected(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    time_limit: float = 300.0,
    peer_watch: bool = True,
) -> Iterator[None]:
    """Run the block together with the other processes, if there are any.

    All processes connect and initialise `jax.distributed` before the block, and wait for each
    other after it. If one exits with an error, is killed, or sends no heartbeat for the time
    limit, all exit: an exception that leaves the block ends this process and, within seconds, the
    others. With a single process this does nothing.

    Args:
      coordinator_address: HOST:PORT of process 0. This and the next two default to what SLURM,
        Open MPI, Cloud TPU or Kubernetes provide.
      num_processes: number of processes.
      process_id: index of this process, from 0.
      time_limit: seconds to wait for the other processes, and after which a silent one counts as
        lost.
      peer_watch: False leaves the detection of missing or lost processes to JAX's coordination
        service, which is later and aborts with a stack trace.

    Raises:
      UserError: the arguments are inconsistent.
      HostError: some processes did not connect within the time limit.
    """
    cluster = find_cluster(coordinator_address, num_processes, process_id, time_limit)
    if cluster is None:
        yield
        return
    if not peer_watch:
        _initialize_jax(cluster, time_limit, heartbeat=time_limit)
        yield
        return
    contact = Contact(
        cluster.address,
        num_processes=cluster.num_processes,
        process_id=cluster.process_id,
        time_limit=time_limit,
        on_end=_end_after_another,
    )
    contact.connect()
    try:
        # Our heartbeats expire first, with a better message; JAX's cover a hanging Python.
        _initialize_jax(cluster, time_limit, heartbeat=2 * time_limit)
        yield
        contact.barrier_and_close()
    except BaseException as error:
        _end_with(error, contact, cluster.process_id)


def broadcast_from_first_host(value: int) -> int:
    """Return the first host's value on all hosts; all must call it.

    Args:
      value: a 64-bit integer.
    """
    if jax.process_count() == 1:
        return value
    # As bytes, because JAX would truncate the number to 32 bits.
    sent = np.array([value], np.int64).view(np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent), np.uint8)
    return int(received.view(np.int64)[0])


def gather(value: int) -> list[int]:
    """Return a list of every host's value, on all hosts; all must call it.

    Args:
      value: a 32-bit integer.
    """
    if jax.process_count() == 1:
        return [value]
    values: list[int] = multihost_utils.process_allgather(np.int32(value)).tolist()
    return values


def check_hosts_agree(find_facts: Callable[[], Mapping[str, Any]]) -> None:
    """Check that values are equal on all hosts; all must call it, before they compute together.

    Args:
      find_facts: returns JSON-serialisable values, keyed by the names used in the error. Not
        called with a single host.

    Raises:
      UserError: on all hosts, with the same message: which values differ on which hosts.
    """
    if jax.process_count() == 1:
        return
    everyone = [json.loads(text) for text in _gather(json.dumps(dict(find_facts())).encode())]
    differences = []
    for name in dict.fromkeys(name for found in everyone for name in found):
        hosts: dict[str, list[str]] = {}
        for process, found in enumerate(everyone):
            hosts.setdefault(str(found.get(name)), []).append(str(process))
        if len(hosts) > 1:
            values = (f"{value} on {', '.join(where)}" for value, where in hosts.items())
            differences.append(f"{name}: {'; '.join(values)}")
    if differences:
        more = len(differences) - _NAMED
        raise UserError(
            f"the processes of this run do not have the same data or config ("
            f"{'. '.join(differences[:_NAMED])}{f'. And {more} more' if more > 0 else ''}; by "
            "process ID); make them the same on all processes, then start again."
        )


def _gather(sent: bytes) -> list[bytes]:
    """Return a list of every host's bytes, on all hosts."""
    lengths = gather(len(sent))
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(sent)] = np.frombuffer(sent, np.uint8)
    received = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return [row[:length].tobytes() for row, length in zip(received, lengths, strict=True)]


def is_first_host() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def find_cluster(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    time_limit: float,
) -> Cluster | None:
    """Determine the processes of the run, from the arguments and then from the launcher.

    Args:
      coordinator_address: see `connected`.
      num_processes: see `connected`; 1 ignores the launcher.
      process_id: see `connected`.
      time_limit: seconds to wait for the coordinator's address (Kubernetes, TPU).

    Returns:
      The cluster; None for a single process.

    Raises:
      UserError: the arguments are invalid, or incomplete without a launcher.
    """
    if time_limit < 1:
        raise UserError(f"--distributed_timeout={time_limit:g} must be at least 1 second.")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes} must be at least 1.")
    given = (coordinator_address, num_processes, process_id)
    launched = _launched(time_limit) if None in given and num_processes != 1 else None
    if launched is not None:
        num_processes = launched.num_processes if num_processes is None else num_processes
        process_id = launched.process_id if process_id is None else process_id
    elif given == (None, None, None):
        return None
    if num_processes is not None and process_id is not None:
        _check_number(process_id, num_processes)
    if num_processes == 1:
        return None
    if coordinator_address is None:
        coordinator_address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator_address is None and launched is not None:
        coordinator_address = _query(launched.by, launched.address)
    if coordinator_address is None or num_processes is None or process_id is None:
        flags = {
            "--coordinator_address": coordinator_address,
            "--num_processes": num_processes,
            "--process_id": process_id,
        }
        missing = [flag for flag, value in flags.items() if value is None]
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, and not "
            f"provided by a launcher; a run of several processes needs {', '.join(flags)}."
        )
    share = None if launched is None else launched.local_device_ids
    return Cluster(_host_and_port(coordinator_address), num_processes, process_id, share)


def _check_number(process_id: int, num_processes: int) -> None:
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, one less than the "
            f"number of processes, {num_processes}."
        )


def _host_and_port(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?([^][]+?)\]?:(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise UserError(
            f"--coordinator_address={address!r} must be HOST:PORT, the host of process 0 and "
            "a free port there, such as node1:8476."
        )
    return match[1], int(match[2])


def _launched(time_limit: float) -> _Launched | None:
    """Query Open MPI, SLURM, Cloud TPU and Kubernetes, in this order; None without a launcher."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return _query("Open MPI", _from_open_mpi)
    if SlurmCluster.is_env_present():
        return _query("SLURM", _from_slurm)
    for tpus in (GkeTpuCluster, GceTpuCluster):
        if _has_hosts(tpus):
            return _query("Cloud TPU", partial(_from_jax, "Cloud TPU", tpus, time_limit))
    # JAX detects every Kubernetes pod, but only an indexed job has several processes.
    if "JOB_COMPLETION_INDEX" in os.environ and K8sCluster.is_env_present():
        return _query("Kubernetes", partial(_from_jax, "Kubernetes", K8sCluster, time_limit))
    return None


def _has_hosts(tpus: type[ClusterEnv]) -> bool:
    """Whether this is a TPU machine that knows the hosts of its slice."""
    try:
        present = tpus.is_env_present()
    except Exception:  # no metadata server, as for the TPUs of a notebook
        return False
    if present and tpus is GkeTpuCluster:
        environ = os.environ
        names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
        return "," in names or "MEGASCALE_NUM_SLICES" in environ
    return present


def _query(launcher: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except Exception as error:  # environment variables and metadata servers can fail in any way
        raise UserError(
            f"{launcher} does not report the processes of this run ({one_line(error)}); give "
            "--coordinator_address, --num_processes and --process_id, or --num_processes=1."
        ) from error


def _from_jax(by: str, cluster: type[ClusterEnv], time_limit: float) -> _Launched:
    """Query one of JAX's cluster environments."""
    port = os.environ.get("JAX_COORDINATOR_PORT")
    return _Launched(
        by,
        cluster.get_process_count(),
        cluster.get_process_id(),
        lambda: cluster.get_coordinator_address(math.ceil(time_limit), port),
    )


def _from_slurm() -> _Launched:
    launched = _from_jax("SLURM", SlurmCluster, 0)
    # An interactive step is one process, in a job that may have resources for more.
    count = int(os.environ.get("SLURM_STEP_NUM_TASKS", launched.num_processes))
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
    share = _share_of_devices(int(os.environ["SLURM_LOCALID"]), math.ceil(count / nodes))
    return dataclasses.replace(launched, num_processes=count, local_device_ids=share)


def _from_open_mpi() -> _Launched:
    environ = os.environ
    rank = int(environ["OMPI_COMM_WORLD_LOCAL_RANK"])
    here = int(environ["OMPI_COMM_WORLD_LOCAL_SIZE"])

    def address() -> str | None:
        # Open MPI 5 no longer provides the host that mpirun was started on.
        if "OMPI_MCA_orte_hnp_uri" not in environ:
            return None
        return OmpiCluster.get_coordinator_address(None, environ.get("JAX_COORDINATOR_PORT"))

    return _Launched(
        "Open MPI",
        int(environ["OMPI_COMM_WORLD_SIZE"]),
        int(environ["OMPI_COMM_WORLD_RANK"]),
        address,
        _share_of_devices(rank, here),
    )


def _share_of_devices(rank: int, processes_here: int) -> tuple[int, ...] | None:
    """Return the accelerators of a process: its own, or all if it is alone on its host.

    JAX's default would be one, even for a single process on a host of eight.
    """
    if processes_here == 1 or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and rank >= len(visible.split(",")):
        return None  # the launcher has assigned them
    return (rank,)


def _initialize_jax(cluster: Cluster, time_limit: float, *, heartbeat: float) -> None:
    # The preemption service would handle SIGTERM, which the training loop has to handle.
    jax.config.update("jax_enable_preemption_service", False)
    host, port = cluster.address
    # Connect to process 0 directly, even if the environment configures an HTTP proxy for gRPC.
    direct = os.environ.get(_NO_PROXY) or os.environ.get("no_proxy")
    os.environ[_NO_PROXY] = f"{direct},{host}" if direct else host
    seconds = math.ceil(time_limit)
    jax.distributed.initialize(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        cluster.num_processes,
        cluster.process_id,
        cluster.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=math.ceil(heartbeat),
        shutdown_timeout_seconds=seconds,
    )


def _end_with(error: BaseException, contact: Contact, process_id: int) -> NoReturn:
    """Exit with this process's error, and end the other processes too.

    If another process was lost, that is reported instead: a failed collective or checkpoint is
    only its consequence here.
    """
    if isinstance(error, UserError):
        another = contact.lost.wait(GRACE / 4)
    else:
        another = isinstance(error, Exception) and contact.ended.wait(GRACE)
    if another or not _ending.acquire(blocking=False):
        threading.Event().wait()  # the other thread ends the process
    me = f"process {process_id} on {socket.gethostname()}"
    status = 1
    if isinstance(error, UserError):
        sentence = " ".join(str(error).split())
        own, others = f"error: {sentence}", f"{me} ended with an error: {sentence}"
        status = error.exit_status
    elif isinstance(error, KeyboardInterrupt):
        own, others = "interrupted; run the same command again.", f"{me} was interrupted"
        status = EXIT_INTERRUPTED
    else:
        own = "".join(traceback.format_exception(error)).rstrip()
        last = own.splitlines()[-1][:300]
        others = f"{me} ended with an unexpected error, see its own output ({last})"
    _say(own)
    contact.abort(others, status)
    _leave(status)


def _end_after_another(sentence: str, status: int) -> None:
    """Exit because another process was lost or has aborted."""
    if _ending.acquire(blocking=False):
        _say(f"error: {sentence}")
        _leave(status)


def _say(text: str) -> None:
    # In a thread, because the main thread may hang while it holds the stream's lock.
    speaker = threading.Thread(target=lambda: print(text, file=sys.stderr, flush=True), daemon=True)
    speaker.start()
    speaker.join(1)


def _leave(status: int) -> NoReturn:
    """Exit immediately: a normal exit would wait for the other processes."""
    with contextlib.suppress(Exception):  # an orphaned worker process is better than a hang
        for child in multiprocessing.active_children():
            child.kill()
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)
    flush.start()
    flush.join(1)
    os._exit(status)
