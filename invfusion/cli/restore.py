"""restore pictures that were measured: masked, blurred, reduced, noisy, or by an operator of yours

  invfusion restore photo.png -o out.png --blur kernel.png --boundary valid --sigma 0.01
  invfusion restore photo.png -o out.png --mask scribble.png
  invfusion restore photo.png -o out.png --scale 4 --filter bicubic
  invfusion restore folder/ 'more/*.jpg' -o restored/ --scale 2 --samples 4 --std std.png

Beside out.png lies out.png.json: operator, model, seed, residual. With several samples, out.png is the mean, and
out-1.png, out-2.png, ... are the samples. --sigma is the noise's standard deviation in pixel units of [-1, 1]: 0.01 is
1.3 grey levels of 255. Without --model the shipped model `photos` is taken: a Gaussian model of photographs, whose
estimate a network refines.
"""

import argparse
import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from invfusion.cli.tasks import add_task_arguments, check_targets, files_of, task_from
from invfusion.errors import ConfigError, DataError, InvFusionError
from invfusion.restoration.models import PHOTOS, describe_model, load_model
from invfusion.restoration.pictures import (
    FORMATS,
    Picture,
    check_format,
    check_sides,
    encoded,
    load_picture,
    read_array,
    read_file,
    save_image,
    write_atomically,
)
from invfusion.restoration.tasks import Request, Restored, Task, restore_picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Inputs, outputs, the task, the method."""
    parser.add_argument("inputs", nargs="+", metavar="IN", help="pictures, folders of pictures, or patterns")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a picture, or a folder for several")
    add_task_arguments(parser)
    parser.add_argument("--sigma", default="0", metavar="S", help="standard deviation of the noise, or 'estimate'")
    how = parser.add_argument_group("how to restore it")
    how.add_argument(
        "--method",
        help="sample (default), mmse (the posterior mean; default with the model photos and one sample), nppc, or the "
        "name of a sampler",
    )
    how.add_argument("--samples", type=int, default=1, metavar="N", help="draws for each picture")
    how.add_argument("--std", metavar="S.png", help="also write the standard deviation of each pixel (white: largest)")
    how.add_argument("--model", default=PHOTOS, help="a checkpoint folder, models:/name@alias, or photos (default)")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--tile", type=int, help="side of the tiles for large pictures; 0: never any")
    how.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    how.add_argument("--quiet", action="store_true", help="no progress and no summary")


def run(options: argparse.Namespace) -> int:
    """All inputs in turn; one that fails does not keep the others from being restored."""
    from invfusion.cli.main import say

    sources = list(expanded(options.inputs))
    targets = [target_for(source, options.output, len(sources)) for source in sources]
    check_std(options.std, len(sources))
    outputs = [*chain.from_iterable(outputs_of(target, options.samples) for target in targets)]
    check_targets([*sources, *files_of(options)], outputs if options.std is None else [*outputs, Path(options.std)])
    task, request = task_from(options), request_from(options)
    if options.model == PHOTOS and not options.quiet:
        say("model 'photos': a Gaussian model of photographs, refined by a network")
    failed = 0
    for source, target in zip(sources, targets, strict=True):
        try:
            restored = restore_file(source, target, task, request, options.std)
        except InvFusionError as error:
            if len(sources) == 1:
                raise
            say(f"error: {source}: {' '.join(str(error).split())}")
            failed += 1
            continue
        if not options.quiet:
            record = restored.record
            say(
                f"{source} -> {target}  (residual {max(record['residual']):.4g}, sigma_y {record['sigma_y']:.4g}, "
                f"{record['seconds']:.1f} s)"
            )
    if failed:
        say(f"{failed} of {len(sources)} pictures could not be restored")
    return 1 if failed else 0


def request_from(options: argparse.Namespace) -> Request:
    """How to restore; the model is loaded. Raises `InvFusionError`."""
    try:
        sigma_y = options.sigma if options.sigma == "estimate" else float(options.sigma)
    except ValueError:
        raise ConfigError(f"--sigma is a number or 'estimate', got '{options.sigma}'") from None
    model = load_model(options.model, options.device)
    return Request(
        model=model,
        model_facts=describe_model(options.model, model),
        sigma_y=sigma_y,
        method=options.method or ("mmse" if options.model == PHOTOS and options.samples == 1 else "sample"),
        n_samples=options.samples,
        seed=options.seed,
        tile=options.tile,
        progress=not options.quiet,
        device=options.device,
    )


def expanded(inputs: list[str]) -> Iterator[Path]:
    """Files, the pictures of folders, and what patterns match, in order. Raises `DataError` where there is nothing."""
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in FORMATS)
        elif any(c in name for c in "*?[") and not path.exists():
            found = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        else:
            found = [path]
        if not found:
            raise DataError(f"{name}: no pictures there ({', '.join(FORMATS)})")
        yield from found


def target_for(source: Path, output: str, n_sources: int) -> Path:
    """Where a restored picture goes: OUT itself where that names a picture, else into the folder OUT."""
    out = Path(output)
    if n_sources == 1 and not out.is_dir() and not output.endswith("/"):
        check_format(out)
        return out
    if out.suffix.lower() in FORMATS and not out.is_dir():
        raise ConfigError(f"{n_sources} pictures do not fit into {output}; name a folder")
    return out / (source.name if source.suffix.lower() in FORMATS else f"{source.stem}.png")


def check_std(std: str | None, n_sources: int) -> None:
    """Raise `InvFusionError` where --std cannot be written as asked."""
    if std is not None:
        check_format(std)
        if n_sources > 1:
            raise ConfigError("--std names one picture, so it goes with one input")


def outputs_of(target: Path, n_samples: int) -> list[Path]:
    """The files that belong to one restored picture: itself, its record, and its samples where there are several."""
    samples = [sample_of(target, number) for number in range(1, n_samples + 1)] if n_samples > 1 else []
    return [target, record_of(target), *samples]


def sample_of(target: Path, number: int) -> Path:
    return target.with_stem(f"{target.stem}-{number}")


def record_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def restore_file(source: Path, target: Path, task: Task, request: Request, std: str | None) -> Restored:
    """Restore one file and write all that belongs to it."""
    y, picture = load_measurement(source)
    if y is None:
        height, width = picture.image.shape[2:]
        check_sides(target, (height * task.factor, width * task.factor))
    restored = restore_picture(picture, task, request, y)
    if std is not None and restored.std is None:
        raise ConfigError("--std needs several --samples, or the method nppc")
    record = {"input": str(source), "input_sha256": hashlib.sha256(read_file(source)).hexdigest(), **restored.record}
    for number, sample in enumerate(restored.samples, 1):
        save_image(sample.image, sample_of(target, number), like=sample)
    if std is not None and restored.std is not None:
        white = max(float(restored.std.max()), 1e-12)
        shown = Picture(restored.std / white * 2 - 1, bits=picture.bits)
        write_atomically(std, encoded(shown, FORMATS[Path(std).suffix.lower()]))
        record["std_white"] = white
    save_image(restored.mean.image, target, like=restored.mean)
    write_atomically(record_of(target), (json.dumps(record, indent=2) + "\n").encode())
    return replace(restored, record=record)


def load_measurement(source: Path) -> tuple[Tensor | None, Picture]:
    """A picture, which is its own measurement; or the numbers of a .npy file, (1, *M), in pixel units."""
    if source.suffix.lower() != ".npy":
        return None, load_picture(source)
    try:
        y = torch.from_numpy(read_array(read_file(source)))
    except ValueError as error:
        raise DataError(f"{source}: not an array of numbers ({error})") from error
    # Numbers are not rounded to the steps of a file of 8 bits.
    return y[None], Picture(torch.zeros(1, 3, 1, 1), bits=16)
