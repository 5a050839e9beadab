"""Make a model folder of a training state or network that the published code wrote, running nothing of what it holds.

`python -m components.registry.import_checkpoint FILE --preset ffhq64 --variant invfusion` writes the averaged weights
to artifacts/models/invfusion, where sampling, evaluation, further training and registration find them.
"""

import csv
import logging
from argparse import ArgumentTypeError
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components import cli
from components.paths import LOGS, MODELS
from components.tracking import git_revision, package_versions
from components.training.train import CURVE
from invfusion.interop.published import import_published
from invfusion.measuring import NOISELESS
from invfusion.models import PRESETS, Variant, save_denoiser
from invfusion.noise import AnyNoise

log = logging.getLogger(__name__)


def import_checkpoint(
    file: Path, preset: str, variant: Variant, out: Path | None = None, noise: AnyNoise = NOISELESS
) -> Path:
    """Write the model folder; returns it, artifacts/models/<variant> unless `out` names another.

    noise: of the measurements that it was trained on, which such files do not tell; no table of other noise takes it.
    Raises `CheckpointError` where the file is damaged, hostile, or holds another network; nothing is written then.
    """
    denoiser, facts = import_published(file, preset, variant)
    folder = out or MODELS / variant
    versions = {"git_revision": git_revision(), "packages": package_versions()}
    n_parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    described = {
        "preset": preset,
        "n_parameters": n_parameters,
        "nimg": facts["imported"].get("images", 0),
        "noise": None if variant == "unconditional" else noise.model_dump(mode="json"),
    }
    save_denoiser(denoiser, folder, facts | versions | described)
    if out is None:
        _write_curve(variant)
    log.info("%s: %s parameters from %s", folder, f"{n_parameters:,}", file)
    return folder


def _write_curve(variant: str) -> None:
    """The stage that trains the model names a curve; that of an imported one is empty."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{variant}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(CURVE)


def _noise(text: str) -> AnyNoise:
    """A law of noise, as params.yaml writes it."""
    try:
        noise: AnyNoise = TypeAdapter(AnyNoise).validate_python(YAML(typ="safe", pure=True).load(text))
    except (ValidationError, YAMLError) as error:
        raise ArgumentTypeError(f"no law of noise such as '{{kind: gaussian, sigma_y: 0.1}}': {text}") from error
    return noise


def main() -> None:
    """Import one file."""
    command = cli.parser(__doc__, params=False)
    command.add_argument("file", type=Path, help="training-state-*.pt, or a pickled network")
    command.add_argument("--preset", required=True, choices=PRESETS)
    command.add_argument("--variant", required=True, choices=get_args(Variant))
    command.add_argument("--out", type=Path, help="the folder to write (default: artifacts/models/<variant>)")
    command.add_argument(
        "--noise", type=_noise, default=NOISELESS, metavar="YAML",
        help="what it was trained with, such as '{kind: gaussian, sigma_y: 0.1}' (default: none)",
    )  # fmt: skip
    with cli.started(command) as options:
        import_checkpoint(options.file, options.preset, options.variant, options.out, options.noise)


if __name__ == "__main__":
    main()
