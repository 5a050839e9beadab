"""list the models at hand: the shipped one, and checkpoint folders below the given places"""

import argparse
import sys
from pathlib import Path

from invfusion.errors import InvFusionError
from invfusion.models.checkpoint import WEIGHTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to look."""
    parser.add_argument("folders", nargs="*", default=["artifacts"], help="where to look (default: artifacts)")


def run(options: argparse.Namespace) -> int:
    """One line for each model."""
    sys.stdout.write("photos  Gaussian model of photographs of any size, grey or colour, refined by a network\n")
    for folder in options.folders:
        for weights in sorted(Path(folder).rglob(WEIGHTS)):
            sys.stdout.write(f"{weights.parent}  {_description(weights.parent)}\n")
    return 0


def _description(folder: Path) -> str:
    from invfusion.models import load_denoiser

    try:
        denoiser = load_denoiser(folder)
    except InvFusionError as error:
        return f"cannot be loaded: {' '.join(str(error).split())}"
    millions = sum(p.numel() for p in denoiser.parameters()) / 1e6
    shape = "x".join(map(str, denoiser.image_shape))
    return f"{denoiser.variant}, trained on {shape}, {millions:.2f} million parameters"
