"""The command `invfusion`: one subcommand per file. By argparse, since the library alone brings nothing else."""

import argparse
import sys
import warnings

from invfusion import __version__
from invfusion.cli import check, degrade, models, restore, serve
from invfusion.errors import InvFusionError

COMMANDS = (restore, degrade, check, models, serve)
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    whole = argparse.ArgumentParser(
        prog="invfusion", description="Restore pictures whose measurement is known: y = Hx + noise."
    )
    whole.add_argument("--version", action="version", version=f"invfusion {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="command")
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        summary, _, rest = (module.__doc__ or "").partition("\n")
        one = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=rest,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(one)
        one.set_defaults(run=module.run)
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run a command: 0 where all went well, 1 for bad input (one line says what), 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    warnings.showwarning = _one_line
    try:
        return int(options.run(options))
    except InvFusionError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 1
    except KeyboardInterrupt:
        say("stopped; nothing half written was left behind")
        return INTERRUPTED


def say(message: str) -> None:
    """A line for the person at the terminal."""
    sys.stderr.write(f"invfusion: {message}\n")
    sys.stderr.flush()


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    say(f"warning: {' '.join(str(message).split())}")


if __name__ == "__main__":
    sys.exit(main())
