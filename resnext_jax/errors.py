"""Errors that are the user's to mend: one sentence, no traceback, exit status 2."""

import argparse
import difflib
import functools
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
EXIT_LOST_HOST = 75  # sysexits.h's EX_TEMPFAIL: trying again may do
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# Each asks a training run to save and end; the exit status is then 128 and its number. Batch queues
# send SIGTERM or what one asks them for (SIGUSR1, say), a lost terminal SIGHUP.
STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do."""

    exit_status = EXIT_USER_ERROR


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """A data set that is missing, damaged or cannot be read yet."""


class CheckpointError(UserError):
    """A checkpoint that is missing or does not fit the model."""


class DivergedError(UserError):
    """A training whose loss is no longer usable."""


class WorkdirError(UserError):
    """A work directory that cannot be read or written."""


class HostError(UserError):
    """A host of the run that did not come, or was lost."""

    exit_status = EXIT_LOST_HOST


def did_you_mean(name: str, names: Iterable[str], otherwise: str, *, cutoff: float = 0.5) -> str:
    """Return a hint for a name that does not exist: the names nearest to it, or `otherwise`."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def fail(message: str, status: int = EXIT_USER_ERROR) -> NoReturn:
    """Print one sentence to stderr and leave, with status 2 unless told otherwise."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def drop_lost_output() -> None:
    """Send to nowhere what goes to a terminal, or to a reader of a pipe, that is gone."""
    poll = select.poll()
    for file in (1, 2):
        poll.register(file, 0)
    for file, events in poll.poll(0):
        if events & (select.POLLERR | select.POLLHUP):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)


def one_line(error: BaseException, longest: int | None = 200) -> str:
    """Say in one line, of at most so many characters, what an error says."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def positive_int(text: str) -> int:
    """Read a whole number above 0, the `type` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


class CommandParser(argparse.ArgumentParser):
    """A parser whose user's mistakes are told as all others are."""

    def add_network(self) -> None:
        """Add what names a network with its weights, arguments of `runs.weights.load_network`."""
        origin = self.add_mutually_exclusive_group(required=True)
        origin.add_argument("--weights", metavar="FILE", help=".safetensors or .pth")
        origin.add_argument("--workdir", metavar="DIR", help="of a run")
        self.add_argument(
            "--checkpoint",
            default="latest",
            help="of the run: latest (the default), best, or a step",
        )
        self.add_argument("--ema", action="store_true", help="the average of the weights")

    def error(self, message: str) -> NoReturn:
        """Leave with one sentence and status 2."""
        fail(f"{message}; --help lists the options.")


def reports_user_errors(main: Callable[[Any], None]) -> Callable[[Any], None]:
    """Turn a UserError that leaves `main` into a sentence and its exit status, mostly 2.

    And Ctrl-C, where nothing handles it better, into a sentence and exit status 130, and output
    that nobody reads any more into status 141, as SIGPIPE would.
    """

    @functools.wraps(main)
    def wrapped(argv: Any) -> None:
        try:
            main(argv)
            sys.stdout.flush()  # here, and not when Python ends: nobody may read any more
        except UserError as error:
            fail(str(error), error.exit_status)
        except BrokenPipeError:
            # Who read the output (head, say) has left. Python would complain of it once more
            # when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_BROKEN_PIPE)
        except KeyboardInterrupt:
            print("interrupted; run the same command again.", file=sys.stderr, flush=True)
            # tfds downloads in a thread, and Python would wait for it to finish.
            os._exit(EXIT_INTERRUPTED)

    return wrapped
