"""make a measurement of a clean picture, to try things out

invfusion degrade clean.png -o measured.png --blur kernel.png --boundary valid --sigma 0.01 --seed 1
"""

import argparse
from pathlib import Path

from invfusion.cli.tasks import add_task_arguments, check_targets, files_of, task_from
from invfusion.errors import ConfigError
from invfusion.restoration.pictures import check_format, load_picture, save_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Input, output, the task, the noise."""
    parser.add_argument("input", metavar="IN")
    parser.add_argument("-o", "--output", required=True, metavar="OUT")
    add_task_arguments(parser)
    parser.add_argument("--sigma", type=float, default=0.0, help="standard deviation of the noise, in units of [-1, 1]")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    """One picture."""
    from invfusion.restoration.tasks import degrade_picture

    if options.sigma < 0:
        raise ConfigError(f"--sigma must not be negative, got {options.sigma}")
    check_format(options.output)
    check_targets([Path(options.input), *files_of(options)], [Path(options.output)])
    measured = degrade_picture(load_picture(options.input), task_from(options), options.sigma, options.seed)
    save_image(measured.image, options.output, like=measured)
    return 0
