"""A version's page for people: what the model restores, how well, what it was made from, and how to load it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open

from components.params import Params
from components.paths import DETAILS, file_name
from components.records import Record
from components.registry.gates import registered_method, scores, stored
from components.tracking import Version
from invfusion.codec import encode
from invfusion.noise import AnyNoise

PICTURE = "restorations.png"
# Each picture so many times as large: the smallest ones are of 16 pixels.
SHOWN_SIZE = 64
MARGIN = 4


@dataclass(frozen=True)
class Facts:
    """What stands in no parameter and no record."""

    revision: str
    licence: str
    data_licence: str
    data_digest: str
    noise: str


def page(params: Params, name: str, records: Sequence[Record], champion: Version | None, facts: Facts) -> str:
    """The page as markdown; the words `{version}`, `{run}` and `{experiment}` stand for what MLflow numbers."""
    return "\n\n".join(filter(None, _parts(params, name, records, champion, facts)))


def _parts(
    params: Params, name: str, records: Sequence[Record], champion: Version | None, facts: Facts
) -> Iterator[str]:
    method, size = registered_method(params), params.data.image_size
    kinds = ", ".join(family.kind.replace("_", " ") for family in params.evaluate.families)
    yield (
        f"Restores {size} by {size} pictures like those of **{params.data.name}** from measurements of a known "
        f"operator: one draw from the posterior, or their mean. It was judged on {kinds}."
    )
    yield f"![Measured, restored and true pictures of each degradation](get-artifact?path={PICTURE}&run_uuid={{run}})"
    yield _table(params, records, method, champion)
    nfe = max((record.nfe or 0 for record in records if record.method == method), default=0)
    yield (
        "| | |\n|---|---|\n"
        f"| trained on operators | {_operators(params)} |\n"
        f"| trained with noise | {_noise(facts.noise)} |\n"
        f"| data | {params.data.name}, sha256 `{facts.data_digest[:16]}`, licence {facts.data_licence} |\n"
        f"| licence | {facts.licence} |\n"
        f"| cost | {nfe} network calls for each picture |\n"
        f"| commit | `{facts.revision}` |"
    )
    yield (
        "```python\nimport mlflow\n"
        f'model = mlflow.pyfunc.load_model("models:/{name}/{{version}}")\n'
        'images = model.predict({"y": y.flatten().tolist(), "operator": spec_to_json(H.to_spec())})\n```'
    )
    yield (
        "[The run](#/experiments/{experiment}/runs/{run}) · the report: `reports/index.html` after `git checkout` of "
        "this commit and `dvc pull` · why it is champion or not: the tag `gates`"
    )


def _noise(written: str) -> str:
    """In words, as far as it is known."""
    try:
        known = TypeAdapter[AnyNoise](AnyNoise).validate_json(written)
    except ValidationError:
        return written
    return known.describe()


def _operators(params: Params) -> str:
    family = params.degradation
    members = getattr(family, "members", [family])
    return ", ".join(str(member.kind).replace("_", " ") for member in members)


def _table(params: Params, records: Sequence[Record], method: str, champion: Version | None) -> str:
    """PSNR with 95% intervals, against what costs nothing and against the champion."""
    columns = {
        "doing nothing": scores(records, _method(params, None)),
        "Wiener filter": scores(records, _method(params, "wiener")),
        "this version": scores(records, method),
    }
    if champion is not None:
        columns[f"champion (version {champion.number})"] = scores(stored(champion), method)
    columns = {title: found for title, found in columns.items() if found}
    if not columns:
        return ""
    names = dict.fromkeys(degradation for found in columns.values() for degradation in found)
    head = f"| PSNR in dB | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"
    rows = [
        f"| {name.replace('_', ' ')} | {' | '.join(_shown(found.get(name)) for found in columns.values())} |"
        for name in names
    ]
    return "\n".join([head, *rows])


def _method(params: Params, sampler: str | None) -> str:
    """The name of the method without model that reads out by this sampler, or by none."""
    found = (n for n, m in params.methods.items() if m.model is None and getattr(m.sampler, "kind", None) == sampler)
    return next(found, "")


def _shown(record: Record | None) -> str:
    if record is None or record.value is None:
        return "–"
    interval = f" [{record.low:.2f}, {record.high:.2f}]" if record.low is not None and record.high is not None else ""
    return f"{record.value:.2f}{interval}"


def picture(params: Params, target: Path) -> bool:
    """Measured, restored and true pictures, three rows for each degradation; False where the evaluation kept none."""
    name = f"{file_name(registered_method(params))}.safetensors"
    bands = []
    for family in params.evaluate.families:
        folder = DETAILS / "restorations" / family.kind
        paths = [folder / "measured.safetensors", folder / name, folder / "truth.safetensors"]
        if all(path.exists() for path in paths):
            bands.append([_images(path) for path in paths])
    if not bands:
        return False
    step, n = SHOWN_SIZE + MARGIN, max(len(row) for band in bands for row in band)
    height = 3 * step + MARGIN
    sheet = Image.new("RGB", (n * step, len(bands) * height), "white")
    for b, band in enumerate(bands):
        for r, row in enumerate(band):
            for i, image in enumerate(row):
                sheet.paste(image, (i * step, b * height + r * step))
    sheet.save(target)
    return True


def _images(path: Path) -> list[Image.Image]:
    with safe_open(path, framework="pt") as file:
        found = file.get_tensor("images")
    pixels = (found if found.dtype == torch.uint8 else encode(found)).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one).resize((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.NEAREST) for one in pixels]
