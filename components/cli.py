"""How every component is started from a command line: the same options, the same end where something is wrong.

A deliberate error becomes one line and exit code 1, without a traceback.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from components.params import Params, load_params
from invfusion.errors import InvFusionError


def parser(description: str | None, *, params: bool = True) -> argparse.ArgumentParser:
    """A command line that shows the description; with `--params` where the component reads the parameters."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if params:
        add_params(made)
    return made


def add_params(command: argparse.ArgumentParser) -> None:
    """The option that names the parameters."""
    command.add_argument("--params", default="params.yaml", help="the experiment's parameters (default: %(default)s)")


@contextmanager
def started(
    command: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
    *,
    quiet: bool = False,
    read: Callable[[str], Params] = load_params,
) -> Iterator[argparse.Namespace]:
    """Within the block the component runs on the parsed options, of which `params` is the validated `Params`.

    arguments: instead of the process's own; quiet: log nothing but errors, as the helpers of another process do; read:
    makes the parameters of their file.
    """
    options = command.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR if quiet else logging.INFO, format="%(message)s")
    with one_line_errors():
        if "params" in options:
            options.params = read(options.params)
        yield options


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with the message of a deliberate error."""
    try:
        yield
    except InvFusionError as error:
        sys.exit(f"error: {error}")
