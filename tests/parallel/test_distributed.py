"""Several hosts find each other, broadcast_from_first_host, and end together."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import pytest
from jax._src.clusters import GceTpuCluster, GkeTpuCluster, K8sCluster, cloud_tpu_cluster, cluster

from resnext_jax.errors import EXIT_LOST_HOST, UserError
from resnext_jax.parallel import distributed
from resnext_jax.parallel.distributed import (
    Cluster,
    broadcast_from_first_host,
    connected,
    find_cluster,
    is_first_host,
)
from tests.training.hosts import ROOT, run_hosts, start_hosts

DIGITS = "--config=configs/digits_resnext29.py"

# What launchers set.
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI_4 = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
OPEN_MPI_5 = {name: value for name, value in OPEN_MPI_4.items() if "orte" not in name}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine of one's own, wherever the tests run."""
    for name in list(os.environ):
        if re.match("SLURM|OMPI|PMIX|KUBERNETES|TPU|MEGASCALE|CUDA_VISIBLE|JAX_COORDINATOR", name):
            monkeypatch.delenv(name)
    monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> "Environment":
    return Environment(monkeypatch)


class Environment:
    """Sets variables for one test, and finds the cluster that they tell of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._monkeypatch = monkeypatch

    def set(self, values: Mapping[str, str], **more: str) -> None:
        """Set variables."""
        for name, value in (dict(values) | more).items():
            self._monkeypatch.setenv(name, value)

    def find(
        self, address: str | None = None, count: int | None = None, number: int | None = None
    ) -> Cluster | None:
        """Find the cluster, with these flags given."""
        return find_cluster(address, count, number, time_limit=5.0)


def test_alone_nothing_is_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("one process alone needs no coordinator")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    with connected():
        assert is_first_host()
        assert broadcast_from_first_host(2**40 + 3) == 2**40 + 3
    with connected(num_processes=1):
        pass
    with pytest.raises(ValueError, match="passed on"), connected():
        raise ValueError("passed on")


def test_all_flags(environment: Environment) -> None:
    environment.set(SLURM)  # is not asked then
    assert environment.find("node1:1234", 3, 2) == Cluster(("node1", 1234), 3, 2)
    assert environment.find("10.0.0.1:1", 2, 0) == Cluster(("10.0.0.1", 1), 2, 0)
    assert environment.find("[fe80::1]:1234", 2, 0) == Cluster(("fe80::1", 1234), 2, 0)


# Flags, and parts of the sentence.
MISTAKES: dict[str, tuple[dict[str, str], list[str]]] = {
    "address alone": (
        {"coordinator_address": "node1:1234"},
        ["--num_processes and --process_id are missing", "needs --coordinator_address"],
    ),
    "number of processes alone": (
        {"num_processes": "2"},
        ["--coordinator_address and --process_id are missing"],
    ),
    "number of the process alone": (
        {"process_id": "0"},
        ["--coordinator_address and --num_processes are missing"],
    ),
    "no address": (
        {"num_processes": "2", "process_id": "1"},
        ["--coordinator_address is missing"],
    ),
    "number too high": (
        {"coordinator_address": "node1:1234", "num_processes": "2", "process_id": "2"},
        ["--process_id=2 must be from 0 to 1"],
    ),
    "number too high for one": (
        {"num_processes": "1", "process_id": "1"},
        ["--process_id=1 must be from 0 to 0"],
    ),
    "negative number": (
        {"coordinator_address": "node1:1234", "num_processes": "2", "process_id": "-1"},
        ["--process_id=-1 must be from 0 to 1"],
    ),
    "no processes": (
        {"coordinator_address": "node1:1234", "num_processes": "0", "process_id": "0"},
        ["--num_processes=0 must be at least 1"],
    ),
    "no port": (
        {"coordinator_address": "node1", "num_processes": "2", "process_id": "1"},
        ["--coordinator_address='node1' must be HOST:PORT"],
    ),
    "no host": (
        {"coordinator_address": ":1234", "num_processes": "2", "process_id": "1"},
        ["--coordinator_address=':1234' must be HOST:PORT"],
    ),
    "port that is no number": (
        {"coordinator_address": "node1:http", "num_processes": "2", "process_id": "1"},
        ["--coordinator_address='node1:http' must be HOST:PORT"],
    ),
    "port too high": (
        {"coordinator_address": "node1:65536", "num_processes": "2", "process_id": "1"},
        ["--coordinator_address='node1:65536' must be HOST:PORT"],
    ),
    "no time": ({"time_limit": "0.5"}, ["--distributed_timeout=0.5 must be at least 1 second"]),
}


@pytest.mark.parametrize(("given", "parts"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(given: dict[str, str], parts: list[str]) -> None:
    kinds = {"num_processes": int, "process_id": int, "time_limit": float}
    values = {name: kinds.get(name, str)(value) for name, value in given.items()}
    with pytest.raises(UserError) as error, connected(**values):
        pass
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert error.value.exit_status == 2


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_mistakes_end_the_scripts_with_status_2(tmp_path: Path, script: str) -> None:
    result = subprocess.run(
        [sys.executable, script, DIGITS, f"--workdir={tmp_path / 'run'}", "--num_processes=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert re.fullmatch("error: --coordinator_address and --process_id .*\n", result.stderr)
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_slurm(environment: Environment) -> None:
    environment.set(SLURM)
    # JAX makes the port of the number of the job.
    assert environment.find() == Cluster(("node07", 61440 + 4242 % 4096), 2, 1)
    environment.set({}, JAX_COORDINATOR_PORT="7777")
    assert environment.find() == Cluster(("node07", 7777), 2, 1)
    # Flags come first.
    assert environment.find("other:1") == Cluster(("other", 1), 2, 1)
    environment.set({}, JAX_COORDINATOR_ADDRESS="named:2")
    assert environment.find(number=0) == Cluster(("named", 2), 2, 0)
    assert environment.find(count=1) is None


@pytest.mark.parametrize(
    "variables",
    [
        # A batch script, outside of srun.
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        # The interactive step of salloc, in a job with room for eight.
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    ],
    ids=["batch script", "one task", "interactive"],
)
def test_one_process_in_a_slurm_job_is_alone(
    environment: Environment, variables: dict[str, str]
) -> None:
    environment.set(variables)
    assert environment.find() is None


def share(environment: Environment) -> tuple[int, ...] | None:
    found = environment.find()
    assert found is not None
    return found.local_device_ids


def test_which_of_a_hosts_gpus_a_slurm_task_takes(environment: Environment) -> None:
    environment.set(SLURM)
    assert share(environment) is None  # one process a host takes all
    environment.set({}, SLURM_STEP_NUM_TASKS="16", SLURM_PROCID="13", SLURM_LOCALID="5")
    assert share(environment) == (5,)
    environment.set({}, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    assert share(environment) == (5,)
    environment.set({}, CUDA_VISIBLE_DEVICES="3")  # --gpus-per-task=1 has shared them out
    assert share(environment) is None
    environment.set({}, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7", JAX_LOCAL_DEVICE_IDS="4")
    assert share(environment) is None  # JAX reads it itself


def test_open_mpi(environment: Environment) -> None:
    environment.set(SLURM)  # mpirun in a job of SLURM: mpirun knows better
    environment.set(OPEN_MPI_4)
    port = 61440 + 1531576320 // 4096 % 4096
    assert environment.find() == Cluster(("10.96.0.1", port), 4, 3, (1,))
    environment.set({}, OMPI_COMM_WORLD_LOCAL_SIZE="1", OMPI_COMM_WORLD_LOCAL_RANK="0")
    assert environment.find() == Cluster(("10.96.0.1", port), 4, 3)
    environment.set({}, OMPI_COMM_WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="0")
    assert environment.find() is None


def test_open_mpi_5_tells_all_but_the_address(environment: Environment) -> None:
    environment.set(OPEN_MPI_5)
    with pytest.raises(UserError, match="--coordinator_address is missing"):
        environment.find()
    assert environment.find("node1:1234") == Cluster(("node1", 1234), 4, 3, (1,))


def test_a_launcher_that_tells_nonsense(environment: Environment) -> None:
    environment.set(OPEN_MPI_4, OMPI_COMM_WORLD_SIZE="many")
    with pytest.raises(UserError, match=r"Open MPI does not report .*'many'.*--num_processes=1"):
        environment.find()
    assert environment.find(count=1) is None


@pytest.fixture
def _tpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)


@pytest.mark.usefixtures("_tpu_machine")
def test_tpu_slice(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {
        "agent-worker-number": "2",
        "worker-network-endpoints": "a:0:127.0.0.1,b:1:10.0.0.3,c:2:10.0.0.4",
        "tpu-env": "ACCELERATOR_TYPE: 'v4-24'",
    }
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))
    assert GceTpuCluster.is_env_present()
    assert environment.find() == Cluster(("127.0.0.1", 8482), 3, 2)
    metadata["worker-network-endpoints"] = "a:0:127.0.0.1"
    metadata["agent-worker-number"] = "0"
    assert environment.find() is None
    del metadata["agent-worker-number"]  # TPUs without a metadata server
    assert environment.find() is None


@pytest.mark.usefixtures("_tpu_machine")
def test_tpus_of_kubernetes(environment: Environment) -> None:
    environment.set({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"})
    environment.set({"TPU_SKIP_MDS_QUERY": "true"})
    assert GkeTpuCluster.is_env_present()
    assert environment.find() is None  # without asking anyone
    environment.set({"TPU_WORKER_HOSTNAMES": "127.0.0.1,10.0.0.3", "TPU_WORKER_ID": "1"})
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    environment.set(slices, MEGASCALE_COORDINATOR_ADDRESS="127.0.0.1:8080")
    assert environment.find() == Cluster(("127.0.0.1", 8482), 4, 3)


def test_kubernetes(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(K8sCluster, "is_env_present", lambda: True)
    monkeypatch.setattr(K8sCluster, "get_process_count", lambda: 4)
    monkeypatch.setattr(
        K8sCluster, "get_coordinator_address", lambda limit, port: "job-0.svc:55527"
    )
    assert environment.find() is None  # any pod, such as a notebook's
    environment.set({"JOB_COMPLETION_INDEX": "3"})
    assert environment.find() == Cluster(("job-0.svc", 55527), 4, 3)


# A program of several hosts: what follows runs in `connected`, on each.
PROGRAM = """
import os, signal, sys, time
from absl import app, logging
from resnext_jax.config import cli
from resnext_jax.errors import UserError, reports_user_errors
from resnext_jax.parallel.distributed import (
    broadcast_from_first_host, connected, gather, is_first_host
)

logging.set_verbosity(logging.ERROR)
cli.define_host_flags()

@reports_user_errors
def main(argv):
    with connected(**cli.host_flags()):
        import jax
        import jax.numpy as jnp
        import numpy as np
        from jax.experimental import multihost_utils
        me = jax.process_index()
        def work_for_ever():
            print("at work", flush=True)
            while True:
                multihost_utils.process_allgather(np.int32(1))
        BODY
    print("done", flush=True)

app.run(main)
"""


def program(body: str) -> list[str]:
    return ["-c", PROGRAM.replace("BODY", body.replace("\n", "\n        "))]


def lines(output: str) -> list[str]:
    """Return what the program wrote; Gloo, which carries the CPU's collectives, writes too."""
    # Two of its threads may write into one line.
    return [line for line in output.splitlines() if "peer ranks" not in line]


SUM = """
from jax.sharding import AxisType, NamedSharding, PartitionSpec
mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("all"))
mine = np.arange(4, dtype=np.float32) + 4 * me
numbers = jax.make_array_from_process_local_data(sharding, mine)
total = jax.shard_map(
    lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=sharding.spec, out_specs=PartitionSpec()
)(numbers)
print(jax.process_count(), jax.device_count(), jax.local_device_count())
sent = broadcast_from_first_host(2**40 + 3 + me), broadcast_from_first_host(-1 - me)
print(float(total[0]), *sent, is_first_host(), gather(5 - me))
time.sleep(4 * (1 - me))
"""


def test_two_hosts_see_all_devices_and_agree() -> None:
    # A proxy for the web that does not answer is none of their business.
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    begin = time.monotonic()
    # One ends later than the limit, and the other waits for it.
    command = [*program(SUM), "--distributed_timeout=3"]
    for number, host in enumerate(run_hosts(command, hosts=2, devices=4, env=proxy, timeout=60)):
        assert host.returncode == 0, host.stderr
        assert lines(host.stdout) == [
            "2 8 4",
            f"28.0 {2**40 + 3} -1 {number == 0} [5, 4]",
            "done",
        ]
        assert host.stderr == ""
    assert time.monotonic() - begin < 30


@pytest.mark.slow
def test_without_the_peer_watch_jax_ends_the_others() -> None:
    """And nothing of ours connects the processes."""
    flags = ["--peer_watch=false", "--distributed_timeout=5"]
    for host in run_hosts([*program(SUM), *flags], hosts=2, devices=4, timeout=60):
        assert host.returncode == 0, host.stderr
        assert lines(host.stdout)[-1] == "done"
    with start_hosts([*program("work_for_ever()"), *flags], devices=1) as hosts:
        for number in (0, 1):
            hosts.wait_for(number, "at work")
        hosts.kill(1)
        first, _ = hosts.finish(timeout=60)
    assert first.returncode == -signal.SIGABRT
    assert "error: process 1" not in first.stderr


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_killed_ends_all(lost: int) -> None:
    with start_hosts(program("work_for_ever()"), devices=1) as hosts:
        for number in (0, 1):
            hosts.wait_for(number, "at work")
        begin = time.monotonic()
        hosts.kill(lost)
        finished = hosts.finish(timeout=30)
    assert time.monotonic() - begin < 15  # silence would be noticed after 300 seconds
    assert finished[lost].returncode == -signal.SIGKILL
    other = finished[1 - lost]
    assert "Traceback" not in other.stderr
    assert "done" not in lines(other.stdout)
    # When process 0 is gone, JAX may be faster to end the others than we are.
    if lost == 0 and other.returncode == -signal.SIGABRT:
        assert "another task died" in other.stderr
        return
    assert other.returncode == EXIT_LOST_HOST
    (message,) = [line for line in other.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith(f"error: process {lost} on ")
    assert "was lost (its connection broke); start all processes again" in message
    if lost == 1:
        assert other.stderr.splitlines() == [message]


ERROR = """
if me == FAILS:
    raise ERROR
work_for_ever()
"""


def failing(number: int, error: str) -> list[str]:
    return program(ERROR.replace("FAILS", str(number)).replace("ERROR", error))


@pytest.mark.parametrize("fails", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_of_one_host_ends_all(fails: int) -> None:
    begin = time.monotonic()
    command = failing(fails, 'UserError("no images in /data; put them there.")')
    finished = run_hosts(command, devices=1, timeout=60)
    assert time.monotonic() - begin < 30  # no waiting for each other, of 300 seconds
    assert [host.returncode for host in finished] == [2, 2]
    assert finished[fails].stderr == "error: no images in /data; put them there.\n"
    (line,) = finished[1 - fails].stderr.splitlines()
    assert re.fullmatch(
        f"error: process {fails} on .* ended with an error: no images in /data; put them there.",
        line,
    )


@pytest.mark.slow
@pytest.mark.parametrize("fails", [0, 1])
def test_a_bug_on_one_host_ends_all(fails: int) -> None:
    finished = run_hosts(failing(fails, 'KeyError("bug")'), devices=1, timeout=60)
    assert [host.returncode for host in finished] == [1, 1]
    assert finished[fails].stderr.startswith("Traceback")
    assert finished[fails].stderr.endswith("KeyError: 'bug'\n")
    (line,) = finished[1 - fails].stderr.splitlines()
    assert line.startswith(f"error: process {fails} on ")
    assert line.endswith("ended with an unexpected error, see its own output (KeyError: 'bug')")


@pytest.mark.slow
def test_all_hosts_with_the_same_error_tell_it_themselves() -> None:
    body = 'time.sleep(0.3 * me)\nraise UserError("no images in /data.")'
    for host in run_hosts(program(body), hosts=3, devices=1, timeout=60):
        assert host.returncode == 2
        assert host.stderr == "error: no images in /data.\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_host_that_hangs_ends_the_others(number: int) -> None:
    with start_hosts([*program("work_for_ever()"), "--distributed_timeout=4"], devices=1) as hosts:
        for other in (0, 1):
            hosts.wait_for(other, "at work")
        begin = time.monotonic()
        hosts.send(number, signal.SIGSTOP)
        assert hosts.processes[1 - number].wait(20) == EXIT_LOST_HOST
        assert 2 < time.monotonic() - begin < 8
        hosts.kill(number)
        other_host = hosts.finish(10)[1 - number]
    assert f"error: process {number} on " in other_host.stderr
    assert "was lost (no heartbeat for 4 seconds)" in other_host.stderr


@pytest.mark.slow
def test_ctrl_c_on_one_host_ends_all() -> None:
    with start_hosts(program("work_for_ever()"), devices=1) as hosts:
        for number in (0, 1):
            hosts.wait_for(number, "at work")
        hosts.send(1, signal.SIGINT)
        first, second = hosts.finish(20)
    assert (first.returncode, second.returncode) == (130, 130)
    assert second.stderr == "interrupted; run the same command again.\n"
    assert re.fullmatch("error: process 1 on .* was interrupted\n", first.stderr)


@pytest.mark.slow
def test_workers_of_a_host_end_with_it() -> None:
    body = """
import multiprocessing
worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(100,))
worker.start()
print("worker", worker.pid, flush=True)
work_for_ever()
"""
    with start_hosts(program(body), devices=1) as hosts:
        for number in (0, 1):
            hosts.wait_for(number, "at work")
        hosts.kill(0)
        survivor = hosts.finish(20)[1]
        (pid,) = re.findall(r"worker (\d+)", survivor.stdout)
        deadline = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("present", "part"),
    [
        (0, "process 1 did not connect within 1 seconds"),
        pytest.param(1, "process 0 could not be reached at 127.0.0.1:", marks=pytest.mark.slow),
    ],
)
def test_train_says_which_host_is_missing(tmp_path: Path, present: int, part: str) -> None:
    command = ["train.py", DIGITS, f"--workdir={tmp_path / 'run'}", "--distributed_timeout=1"]
    (host,) = run_hosts(command, only=[present], timeout=30)
    assert host.returncode == EXIT_LOST_HOST
    (line,) = host.stderr.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_evaluation_says_which_host_is_missing(tmp_path: Path) -> None:
    command = ["eval.py", DIGITS, f"--workdir={tmp_path / 'run'}", "--distributed_timeout=1"]
    (host,) = run_hosts(command, only=[0], timeout=30)
    assert host.returncode == EXIT_LOST_HOST
    assert "error: process 1 did not connect within 1 seconds" in host.stderr


def test_the_time_limit_is_what_jax_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kw: told.update(kw, a=args))
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv(distributed._NO_PROXY, "")
    preempts = jax.config.values["jax_enable_preemption_service"]
    try:
        distributed._initialize_jax(Cluster(("fe80::1", 99), 3, 2, (1,)), 2.5, heartbeat=5.0)
        assert jax.config.values["jax_enable_preemption_service"] is False
    finally:
        jax.config.update("jax_enable_preemption_service", preempts)
    assert told["a"] == ("[fe80::1]:99", 3, 2, (1,))
    assert told["cluster_detection_method"] == "deactivate"
    assert told["initialization_timeout"] == 3
    assert told["heartbeat_timeout_seconds"] == 5
    assert os.environ[distributed._NO_PROXY] == "localhost,fe80::1"
