"""Errors that the user can fix: a one-line message, no traceback, exit status 2."""

import argparse
import difflib
import functools
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
EXIT_LOST_HOST = 75  # EX_TEMPFAIL of sysexits.h: a retry may succeed
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# Each requests that a training run saves and exits, with status 128 plus the signal number. Batch
# queues send SIGTERM or a signal of the user's choice (SIGUSR1, say), a lost terminal SIGHUP.
STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what to do."""

    exit_status = EXIT_USER_ERROR


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """A data set that is missing, damaged or cannot be read yet."""


class CheckpointError(UserError):
    """A checkpoint that is missing or does not fit the model."""


class DivergedError(UserError):
    """A training run whose loss is not finite any more."""


class WorkdirError(UserError):
    """A work directory that cannot be read or written."""


class HostError(UserError):
    """A host of the run that did not connect, or was lost."""

    exit_status = EXIT_LOST_HOST


def did_you_mean(name: str, names: Iterable[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """Return a hint for a name that does not exist: the names nearest to it, or `otherwise`."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def fail(message: str, status: int = EXIT_USER_ERROR) -> NoReturn:
    """Print a one-line error to stderr and exit, by default with status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def drop_lost_output() -> None:
    """Redirect stdout and stderr to /dev/null if their terminal or pipe reader is gone."""
    poll = select.poll()
    for file in (1, 2):
        poll.register(file, 0)
    for file, events in poll.poll(0):
        if events & (select.POLLERR | select.POLLHUP):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)


def one_line(error: BaseException, longest: int | None = 200) -> str:
    """Return the exception's message on one line, truncated to `longest` characters."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def quoted(text: str) -> str:
    """Return a text that has a line of its own, in quotes if it has newlines or the like."""
    return text if text.isprintable() else repr(text)


def positive_int(text: str) -> int:
    """Parse a positive integer; the `type` of a command-line argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports invalid arguments as `fail` does."""

    def add_network(self) -> None:
        """Add the arguments that select a network and its weights."""
        origin = self.add_mutually_exclusive_group(required=True)
        origin.add_argument(
            "--weights",
            metavar="FILE",
            help=".safetensors or .pth, or a name such as timm/resnet50.a1_in1k",
        )
        origin.add_argument("--workdir", metavar="DIR", help="of a run")
        self.add_argument(
            "--checkpoint",
            default="latest",
            help="of the run: latest (the default), best, or a step",
        )
        self.add_argument("--ema", action="store_true", help="the average of the weights")

    def error(self, message: str) -> NoReturn:
        """Exit with a one-line error and status 2."""
        fail(f"{message}; --help lists the options.")


def reports_user_errors(main: Callable[[Any], None]) -> Callable[[Any], None]:
    """Decorate `main` to end with a one-line error and an exit status instead of a traceback.

    A UserError exits with its status (usually 2), Ctrl-C without another handler with 130, and a
    closed output pipe with 141, like SIGPIPE. Characters that stdout cannot encode are written as
    escapes: file names may have any.
    """

    @functools.wraps(main)
    def wrapped(argv: Any) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            main(argv)
            sys.stdout.flush()  # here and not at Python's exit: the reader may be gone
        except UserError as error:
            fail(str(error), error.exit_status)
        except BrokenPipeError:
            # The reader of the output (head, say) is gone. Python would report that once more at
            # exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_BROKEN_PIPE)
        except KeyboardInterrupt:
            print("interrupted; run the same command again.", file=sys.stderr, flush=True)
            # tfds downloads in a thread, which Python would wait for.
            os._exit(EXIT_INTERRUPTED)

    return wrapped
