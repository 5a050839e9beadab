"""check an operator of yours: adjoint, inverses, and which samplers work with it

invfusion check my_ops.py:MyOp --image-size 17x12
"""

import argparse
import sys

from invfusion.cli.tasks import image_size, load_operator
from invfusion.operators import check_operator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The operator and the images to try it on."""
    parser.add_argument("operator", metavar="my_ops.py:MyOp", help="or a spec (op.json)")
    parser.add_argument("--image-size", default="17x12", metavar="HxW", help="or CxHxW")
    parser.add_argument("--channels", type=int, default=3)


def run(options: argparse.Namespace) -> int:
    """The report; 1 where a check failed."""
    shape = (options.channels, 17, 12)
    report = check_operator(load_operator(options.operator, shape, image_size(options.image_size)))
    sys.stdout.write(f"{report}\n")
    return 0 if report.passed else 1
