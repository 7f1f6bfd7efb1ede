"""Command-line parsing: invalid flags end in a one-line error and exit status 2."""

import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from resnext_jax.config.fields import base_config, field, field_names, fields_of, set_field
from resnext_jax.errors import UserError, did_you_mean, fail

# Flags defined here belong to the program that requests them, and appear in its --help.
flags.disclaim_key_flags()

_NONE = ("None", "none")
_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort", "--helpxml"}


def keep_compiled_programs() -> None:
    """Enable JAX's persistent compilation cache, so that resuming or evaluating need not recompile.

    The folder is `~/.cache/resnext_jax` (or under `$XDG_CACHE_HOME`), unless JAX is configured
    with another (`JAX_COMPILATION_CACHE_DIR`) or without a cache
    (`JAX_ENABLE_COMPILATION_CACHE=false`). If the folder cannot be created, nothing is cached. Nor
    is anything on CPUs where oneDNN is available: programs that call it cannot be cached, and
    their speed is worth more (docs/performance.md).

    This initialises JAX, so the processes of a run must be connected first.
    """
    import jax  # imported late, so that invalid flags are reported without delay

    from resnext_jax.ops import cpu

    if cpu.may_use_onednn():
        return
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = home / "resnext_jax"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # the cache is a convenience: do not fail without it
        jax.config.update("jax_compilation_cache_dir", str(folder))


def define_host_flags() -> None:
    """Define the flags of a program that can run as several processes; see `host_flags`."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT: the host of process 0 and a free port there. This flag and the next two are "
        "for runs of several processes without a supported launcher (SLURM, Open MPI, TPU, "
        "Kubernetes).",
    )
    flags.DEFINE_integer(
        "num_processes", None, "Number of processes; 1 ignores the launcher's environment."
    )
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
    flags.DEFINE_float(
        "distributed_timeout",
        300.0,
        "Seconds to wait for other processes to start, and after which a silent process counts "
        "as lost.",
    )
    flags.DEFINE_bool(
        "peer_watch",
        True,
        "Detect missing or lost processes immediately, by TCP connections between the processes; "
        "--peer_watch=false leaves that to JAX's coordination service.",
    )


def host_flags() -> dict[str, Any]:
    """Return the values of these flags as arguments of `parallel.distributed.connected`."""
    return {
        "coordinator_address": flags.FLAGS.coordinator_address,
        "num_processes": flags.FLAGS.num_processes,
        "process_id": flags.FLAGS.process_id,
        "time_limit": flags.FLAGS.distributed_timeout,
        "peer_watch": flags.FLAGS.peer_watch,
    }


def default_workdir() -> str:
    """Return runs/NAME, where NAME is the config file's name and its argument after a colon."""
    path, _, choice = (_config_path(sys.argv) or "").partition(":")
    return str(Path("runs", "_".join(filter(None, [Path(path).stem, *re.split(r"\W+", choice)]))))


def run(main: Callable[[Sequence[str]], None], define_flags: Callable[[], None]) -> None:
    """Run a command that uses absl flags, from a script (train.py) or a module.

    Its flags are defined here and not when the command is imported: absl allows one definition
    per flag name and process, and several commands have a --config.

    Args:
      main: the command. Its module's docstring is the first part of --help.
      define_flags: defines the flags that --help lists.
    """
    before = set(flags.FLAGS)
    define_flags()
    for name in set(flags.FLAGS) - before:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line of `run`.

    Requires a `--config` flag defined by `config_flags.DEFINE_config_file`. Unknown flags and
    config fields (with the nearest names), values of a wrong type and a missing or broken config
    file end the program with a one-line error. If a field is given several times, the last value
    counts. Fields that may be None accept `--config.field=None`.
    """
    # Orbax logs every step of a save; its errors are raised as exceptions.
    logging.set_verbosity(logging.ERROR)
    path = _config_path(argv)
    if _HELP.intersection(argv):
        _print_help(_load_alone(argv[0], path) if path else base_config())
        sys.exit(0)
    if path is None:
        fail("--config is missing; for example --config=configs/digits_resnext29.py")
    config = _load_alone(argv[0], path)
    _check_fields(argv, config)
    try:
        argv, nones = last_overrides(argv, config)
        rest = flags.FLAGS(argv)
        for name in nones:
            set_field(flags.FLAGS["config"].value, name, None)
    except UserError as error:
        fail(str(error))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(_explain(error))
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options start with '--', as in --config=FILE.")
    return rest


def _print_help(config: ConfigDict) -> None:
    print(sys.modules["__main__"].__doc__)
    print(flags.FLAGS.main_module_help())
    print(f"config fields (task={config.task}) with their values:\n")
    print(_fields_help(config))


def _fields_help(config: ConfigDict) -> str:
    """Return the help text of all fields of a config, as flags with their values."""
    lines = []
    for name, row in fields_of(config).items():
        meaning = f"{row.meaning} Must be {row.allowed}." if row.allowed else row.meaning
        lines.append(f"  --config.{name}={_as_flag(field(config, name))}")
        lines += textwrap.wrap(meaning, 76, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return "\n".join(lines)


def _as_flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _config_path(argv: Sequence[str]) -> str | None:
    """Find FILE in `--config=FILE` or `--config FILE`."""
    path = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if re.match(r"--?config=", argument):
            path = argument.partition("=")[2]
        elif argument in ("--config", "-config"):
            path = following
    return path or None


def _load_alone(program: str, path: str) -> ConfigDict:
    """Load the config file without overrides, to report errors in the file itself."""
    values = flags.FlagValues()
    arguments = [program, f"--config={path}"]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = holder.value
        if not isinstance(config, ConfigDict):
            # The placeholder for a file that could not be read raises its error on any access.
            getattr(config, "get", None)
            raise TypeError("get_config() must return a ConfigDict")
    except UserError as error:
        fail(str(error))
    except OSError as error:
        reason = re.findall(r"\[Errno \d+\] ([^:]*)", str(error))
        fail(f"config file {path} cannot be read: {reason[-1] if reason else error}.")
    except Exception as error:
        # A config is a program and can raise anything; the last line of the message says most.
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        fail(f"config file {path} cannot be loaded: {reason[0].strip()}")
    return config


def _check_fields(argv: Sequence[str], config: ConfigDict) -> None:
    names = field_names(config)
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match is None or match[1] in names:
            continue
        inside = [name for name in names if name.startswith(f"{match[1]}.")]
        if inside:
            fail(f"config.{match[1]} is a section; set one of its fields: {', '.join(inside)}.")
        hint = did_you_mean(match[1], names, f"it has {', '.join(names)}.")
        fail(f"the config has no field {match[1]!r}; {hint}")


def last_overrides(argv: Sequence[str], config: ConfigDict) -> tuple[list[str], list[str]]:
    """Keep the last `--config.FIELD` of each field, and remove those with the value None.

    absl cannot parse None, and setting a field to None after parsing would undo a later flag.

    Args:
      argv: a command line whose fields are all in the config.
      config: the config file's own values, without the command line.

    Returns:
      The command line to parse, and the fields to set to None afterwards. `None` and `none` mean
      None only for fields that may be None.

    Raises:
      UserError: a value is empty.
    """
    may_be_none = [name for name, row in fields_of(config).items() if row.kind]
    others: list[str] = []
    words: dict[str, list[str]] = {}
    values: dict[str, str | None] = {}
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--":
            others += [argument, *arguments]
            break
        match = re.fullmatch(r"--?(no)?config\.([^=]+?)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            others.append(argument)
            continue
        negated, name, value = match.groups()
        words[name] = [argument]
        if value is None and not negated and not isinstance(field(config, name), bool):
            value = next(arguments, None)
            words[name] += [] if value is None else [value]
        if value == "":
            raise UserError(
                f"--config.{name}= has no value; leave it out, or give one"
                f"{' (=None for none)' if name in may_be_none else ''}."
            )
        values[name] = value
    nones = [name for name in values if values[name] in _NONE and name in may_be_none]
    kept = [word for name in words if name not in nones for word in words[name]]
    place = others.index("--") if "--" in others else len(others)
    return [*others[:place], *kept, *others[place:]], nones


def _explain(error: Exception) -> str:
    message = " ".join(str(error).split())
    match = re.fullmatch(r"flag --([\w.]+)=(.*?): (.*)", message)
    if match:
        return f"--{match[1]}={match[2]!r} is not a value of the right type ({match[3]})."
    return message
