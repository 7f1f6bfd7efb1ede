"""Command lines: flags in, one sentence and exit status 2 for a user's mistake."""

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

# Flags defined here belong to the program that asks for them, and stand in its --help.
flags.disclaim_key_flags()

_NONE = ("None", "none")
_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort", "--helpxml"}


def keep_compiled_programs() -> None:
    """Keep compiled programs from run to run, so that resuming or evaluating need not compile.

    In `~/.cache/resnext_jax` (or under `$XDG_CACHE_HOME`), unless JAX was told
    another folder (`JAX_COMPILATION_CACHE_DIR`) or none
    (`JAX_ENABLE_COMPILATION_CACHE=false`). Where that folder cannot be made,
    programs are not kept. Nor are they on CPUs where oneDNN is to be had: its
    programs cannot be kept, and are worth more (docs/performance.md).

    This starts JAX, so processes of one run must be connected before.
    """
    import jax  # late, so that a wrong flag is told at once

    from resnext_jax.ops import cpu

    if cpu.may_use_onednn():
        return
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = home / "resnext_jax"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a convenience: nobody should be stopped for want of it
        jax.config.update("jax_compilation_cache_dir", str(folder))


def define_host_flags() -> None:
    """Define the flags of a program that may run as several processes, for `host_flags`."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT, the host of process 0 and a free port there. This and the next two are for "
        "runs of several processes, where no launcher tells them (SLURM, Open MPI, TPU and "
        "Kubernetes do).",
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes, 1 for one alone.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    flags.DEFINE_float(
        "distributed_timeout",
        300.0,
        "Seconds to wait for other processes to start; a process silent for so long is lost.",
    )
    flags.DEFINE_bool(
        "peer_watch",
        True,
        "Notice a missing or lost process at once, by connections of our own; --peer_watch=false "
        "leaves that to JAX's coordination service.",
    )


def host_flags() -> dict[str, Any]:
    """Return the values of these flags, arguments of `parallel.distributed.connected`."""
    return {
        "coordinator_address": flags.FLAGS.coordinator_address,
        "num_processes": flags.FLAGS.num_processes,
        "process_id": flags.FLAGS.process_id,
        "time_limit": flags.FLAGS.distributed_timeout,
        "peer_watch": flags.FLAGS.peer_watch,
    }


def default_workdir() -> str:
    """Return runs/NAME, by the config file's name and what follows it after a colon."""
    path, _, choice = (_config_path(sys.argv) or "").partition(":")
    return str(Path("runs", "_".join(filter(None, [Path(path).stem, *re.split(r"\W+", choice)]))))


def run(main: Callable[[Sequence[str]], None], define_flags: Callable[[], None]) -> None:
    """Run a command whose flags are absl's, from whatever program: train.py, or a module.

    Not at a command's import, but here its flags are defined: absl takes a flag's name once in a
    process, and several commands have a --config.

    Args:
      main: the command. Its module's docstring is what --help says first.
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

    Needs a `--config` flag made by `config_flags.DEFINE_config_file`. Mistakes
    end the program with one sentence: unknown flags and config fields (with the
    nearest names), values of a wrong type, a missing or broken config file.
    Of a field that is given several times the last value counts. Fields that may
    be None take `--config.field=None`.
    """
    # Orbax tells every step of a save; its errors come as exceptions.
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
    print(f"fields of the config (task={config.task}), set to a value as here:\n")
    print(_fields_help(config))


def _fields_help(config: ConfigDict) -> str:
    """List the fields of a config with its values, as flags."""
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
    """Load the config file without the overrides, to tell what is wrong with the file itself."""
    values = flags.FlagValues()
    arguments = [program, f"--config={path}"]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = holder.value
        if not isinstance(config, ConfigDict):
            # What stands for a file that could not be read raises its error at any access.
            getattr(config, "get", None)
            raise TypeError("get_config() must return a ConfigDict")
    except UserError as error:
        fail(str(error))
    except OSError as error:
        reason = re.findall(r"\[Errno \d+\] ([^:]*)", str(error))
        fail(f"config file {path} cannot be read: {reason[-1] if reason else error}.")
    except Exception as error:
        # A config is a program: whatever it raises, its last line says most.
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
    """Keep the last `--config.FIELD` of each field, and take out those that say None.

    absl cannot parse None, and what is set to None after parsing would undo a later flag.

    Args:
      argv: a command line whose fields are all in the config.
      config: as its file makes it, without the command line.

    Returns:
      The command line to parse, and the fields to set to None afterwards. `None` and `none` are
      None for the fields that may be None, and for no others.

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
