"""Command lines: flags in, one sentence and exit status 2 for a user's mistake."""

import difflib
import functools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import config_flags

from resnext_jax.errors import UserError
from resnext_jax.training.config import field_names

EXIT_USER_ERROR = 2


def fail(message: str) -> NoReturn:
    """Print one sentence to stderr and leave with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def reports_user_errors(main: Callable[[Any], None]) -> Callable[[Any], None]:
    """Turn a UserError that leaves `main` into a sentence and exit status 2."""

    @functools.wraps(main)
    def wrapped(argv: Any) -> None:
        try:
            main(argv)
        except UserError as error:
            fail(str(error))

    return wrapped


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line for `absl.app.run(main, flags_parser=parse_flags)`.

    Needs a `--config` flag made by `config_flags.DEFINE_config_file`. Mistakes
    end the program with one sentence: unknown flags and config fields (with the
    nearest names), values of a wrong type, a missing or broken config file.
    """
    try:
        rest = flags.FLAGS(argv)
        config = flags.FLAGS["config"].value
        if config is not None:
            field_names(config)  # a config file that is missing fails on first use
    except UserError as error:
        fail(str(error))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_explain(argv, error))
    # Orbax tells every step of a save; its errors come as exceptions.
    logging.set_verbosity(logging.ERROR)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options start with '--', as in --config=FILE.")
    if config is None:
        fail("--config is missing; for example --config=configs/digits_resnext29.py")
    return rest


def _explain(argv: Sequence[str], error: Exception) -> str:
    names = _config_field_names(argv)
    if names:
        for argument in argv:
            match = re.match(r"--?config\.([^=]+)", argument)
            if match and not _known(match[1], names):
                near = difflib.get_close_matches(match[1], names, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"known: {sorted(names)}"
                return f"the config has no field {match[1]!r}; {hint}"
    message = " ".join(str(error).split())
    match = re.fullmatch(r"flag --([\w.]+)=(.*?): (.*)", message)
    if match:
        return f"--{match[1]}={match[2]!r} is not a value of the right type ({match[3]})."
    return message


def _known(name: str, names: Sequence[str]) -> bool:
    # A section such as `model` is a field too, and booleans may be given as --config.nofield.
    return any(known == name or known.startswith(name + ".") for known in names)


def _config_field_names(argv: Sequence[str]) -> list[str]:
    """Load the config file alone, without the overrides, to learn its fields."""
    chosen = [argument for argument in argv if re.match(r"--?config=", argument)]
    if not chosen:
        return []
    values = flags.FlagValues()
    arguments = [argv[0], chosen[-1]]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        return field_names(holder.value)
    except Exception:  # the file itself is what is wrong: the first error tells
        return []
