"""The command `python -m resnext_jax.reports`: tables, curves and the commands of sweeps."""

import argparse
import sys
from collections.abc import Sequence

from resnext_jax.errors import CommandParser, fail, reports_user_errors
from resnext_jax.files import path_argument
from resnext_jax.reports.curves import FORMATS, error_by_parameters, errors_by_epoch
from resnext_jax.reports.errors import ReportError, write_report
from resnext_jax.reports.runs import Group, find_workdirs, group_runs, read_run
from resnext_jax.reports.sweeps import SWEEPS, commands
from resnext_jax.reports.tables import RUNS, TABLES, render_tables


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the report command."""
    options = _parse(argv)
    if options.command == "tables":
        _tables(options)
    elif options.command == "curves":
        _curves(options)
    else:
        _sweep(options)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    argv, extra = list(argv), []
    if "--" in argv:
        place = argv.index("--")
        argv, extra = argv[:place], argv[place + 1 :]
    parser = CommandParser(
        prog="python -m resnext_jax.reports",
        description="The paper's tables and figures with results of your runs, and the commands "
        "of the runs they need.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_tables(
        commands.add_parser(
            "tables",
            help="the paper's tables, with your results next to the published ones",
            allow_abbrev=False,
        )
    )
    _add_curves(
        commands.add_parser(
            "curves",
            help="plot errors over epochs or parameters, as in the paper's figures",
            allow_abbrev=False,
        )
    )
    _add_sweep(
        commands.add_parser(
            "sweep",
            help="print the commands that train the runs of a table or figure",
            description="Print the commands that train the runs of a table or figure; run them "
            "with: ... | sh -e. Flags after -- are added to every train.py command, as in "
            "-- --config.num_epochs=2",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="\n".join(f"{name:10s}{of.summary}" for name, of in SWEEPS.items()),
            allow_abbrev=False,
        )
    )
    options = parser.parse_args(argv)
    if extra and options.command != "sweep":
        fail(f"{options.command} takes no flags after --; --help lists the options.")
    options.extra = extra
    return options


def _add_tables(parser: argparse.ArgumentParser) -> None:
    _add_workdirs(parser, required=False)
    parser.add_argument(
        "--table",
        nargs="+",
        action="extend",
        choices=(*TABLES, RUNS),
        metavar="N",
        help=f"tables to print (default: all): {', '.join(TABLES)}; or {RUNS}, only the runs that "
        "match no table",
    )
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help="file to write (default: stdout)"
    )


def _add_curves(parser: argparse.ArgumentParser) -> None:
    _add_workdirs(parser, required=True)
    parser.add_argument(
        "--figure",
        type=int,
        choices=(5, 6, 7),
        default=5,
        help="figure of the paper: 5, training and test error over epochs (default); 6, 1K-way "
        "test error of ImageNet-5K networks; 7, test error over parameters",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=path_argument,
        metavar="FILE",
        help=f"picture to write: {', '.join(FORMATS)}",
    )


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=SWEEPS, metavar="NAME", help=f"{', '.join(SWEEPS)}")
    parser.add_argument(
        "--workdir",
        required=True,
        type=path_argument,
        metavar="DIR",
        help="parent folder: workdirs are DIR/SETTING/seedN",
    )
    defaults = ", ".join(f"{name} {of.seeds}" for name, of in SWEEPS.items())
    parser.add_argument("--seeds", type=int, metavar="N", help=f"seeds per setting ({defaults})")


def _add_workdirs(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--workdir",
        nargs="+",
        action="extend",
        default=[],
        required=required,
        metavar="DIR",
        help="workdirs, or patterns such as 'runs/*/seed*'; may be repeated",
    )


def _groups(options: argparse.Namespace) -> list[Group]:
    workdirs = find_workdirs(options.workdir, lambda line: print(line, file=sys.stderr))
    return group_runs(map(read_run, workdirs))


def _tables(options: argparse.Namespace) -> None:
    text = render_tables(_groups(options), options.table or TABLES)
    if options.out is None:
        print(text, end="")
    else:
        write_report(options.out, text)
        print(f"written: {options.out}")


def _curves(options: argparse.Namespace) -> None:
    kind = options.out.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ReportError(
            f"--out={options.out} is not a supported picture format; "
            f"use {', '.join(f'.{name}' for name in FORMATS)}."
        )
    groups = _groups(options)
    if options.figure == 7:
        for group in groups:
            for run, why in group.others:
                print(f"left out: {run.workdir}: {why}", file=sys.stderr)
        picture = error_by_parameters(groups, kind=kind)
    else:
        picture = errors_by_epoch(groups, figure=options.figure, kind=kind)
    write_report(options.out, picture)
    runs = sum(len(group.runs) + len(group.others) for group in groups)
    print(f"written: {options.out}, of {runs} run(s) of {len(groups)} experiment(s)")


def _sweep(options: argparse.Namespace) -> None:
    if options.seeds is not None and options.seeds < 1:
        raise ReportError(f"--seeds={options.seeds} must be at least 1.")
    sweep = SWEEPS[options.name]
    seeds = options.seeds or sweep.seeds
    for line in commands(sweep, options.workdir, seeds=seeds, extra=options.extra):
        print(line)
