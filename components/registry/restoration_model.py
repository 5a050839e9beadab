"""The code of the registered model: it turns measurements and an operator into images.

    model = mlflow.pyfunc.load_model("models:/invfusion@champion")
    family = FAMILIES["strided_motion_blur"]()
    operator = family.sample(batch_size=4, image_shape=(3, 16, 16), generator=generator(0, "H"))
    request = {"y": operator.H(x).flatten().tolist(), "operator": spec_to_json(operator.to_spec())}
    images = model.predict(request, params={"method": "sample", "seed": 1})   # (4, 3, 16, 16) float32 in [-1, 1]

Input: a dict as above, or a DataFrame whose rows are such requests. Columns:
    y           the measurements of the B operators, flattened in C order: B * prod(M) numbers in pixel units ([-1, 1])
    operator    the JSON text of an operator's spec (`operators.spec_to_json`); tensors may be nested lists
    sigma_y     optional, B noise standard deviations; 0 where absent
    class_labels  optional, B integers, for a class-conditional model
Parameters: `method` ("sample", "mmse" or "nppc"), `n_steps`, `seed`, `n_samples`, `guidance`.
Output: images (B, C, H, W) of all rows together; (B, n_samples, C, H, W) where n_samples > 1; for "nppc" a dict of
`mean` (B, C, H, W), `components` (B, K, C, H, W), unit directions, and `stds` (B, K), the deviation along each.

Or pictures: a column `picture` with the bytes of a file, and beside it what happened to it, as in `invfusion serve`:
`mask` or `blur` (bytes of a picture each), `blur_sigma`, `scale`, and `boundary`, `filter`, `sigma`. Each row gives a
dict of `picture`, `samples`, `std` (base64 of PNG files, at the picture's own size) and `record`.

Through HTTP (`mlflow models serve`) the same columns travel as {"dataframe_records": [request], "params": {...}};
bytes travel as base64.
An image does not depend on its neighbours in the request. A request has bounds (`MAX_...`), known before any work.
MLflow runs this file as a script when the model is loaded.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from pydantic import ValidationError
from torch import Tensor

from invfusion.diffusion.guidance import GuidedDenoiser
from invfusion.errors import InvFusionError, ShapeError
from invfusion.models import load_denoiser
from invfusion.operators import LinearOperator, Measurement, operator_from_spec, spec_from_json
from invfusion.operators.combined import Combined
from invfusion.restoration.requests import Bounds, Options, answer, as_json, decoded
from invfusion.samplers import MMSE, NPPC, SAMPLERS, SampleOutput, Sampler

# What one request may ask for in all its rows: images, network passes (images times steps), and the squared row counts
# of all matrices (256 of 128 rows; one of 2,048), which pseudo-inverses take time and memory for; a matrix may have as
# many rows as the image has numbers. Operators made of operators have so many in all.
MAX_IMAGES = 256
MAX_PASSES = 2**15
MAX_SQUARED_ROWS = 2**22
MAX_PARTS = 16
MAX_STEPS = 1000
METHODS = ("sample", "mmse", "nppc")
# What a row may say of its picture in words and numbers.
OF_PICTURES = ("blur_sigma", "boundary", "scale", "filter", "sigma")

Outputs = dict[str, Tensor]


class RestorationModel(PythonModel):
    """Holds the checkpoint folders and loads each on its first use."""

    def load_context(self, context: Any) -> None:
        """Find the checkpoints; the main one is loaded now, so that a broken model shows at once."""
        self.folders = {name: Path(path) for name, path in context.artifacts.items()}
        self.defaults = dict(context.model_config["parameters"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.loaded: dict[str, Any] = {}
        self.main = str(context.model_config["main"])
        judged = dict(context.model_config["sampler"])
        self.sampler = SAMPLERS[str(judged["kind"])].model_validate(judged)
        self.denoiser(self.main)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:  # noqa: ARG002
        """Restore the rows of `model_input`; see the head of this file.

        Raises:
            MlflowException: the request is wrong; one sentence says what (HTTP status 400).
        """
        settings = {**self.defaults, **(params or {})}
        rows_given = [without_gaps(row) for row in model_input.to_dict(orient="records")]
        try:
            check_settings(settings)
            if any("picture" in row for row in rows_given):
                return [self.restore_picture(row, settings) for row in rows_given]
            requests = self.read(rows_given, settings)
            rows = [self.restore(measurement, labels, settings) for measurement, labels in requests]
            check_images(rows)
        except InvFusionError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        joined = {name: torch.cat([row[name] for row in rows]).cpu().numpy() for name in rows[0]}
        return joined if len(joined) > 1 else joined["images"]

    def denoiser(self, name: str) -> Any:
        """One of the models in the package, on the device."""
        if name not in self.loaded:
            if name not in self.folders:
                raise ShapeError(
                    f"this model was registered without '{name}'; it has {', '.join(sorted(self.folders))}"
                )
            self.loaded[name] = load_denoiser(self.folders[name], device=self.device)
        return self.loaded[name]

    def read(
        self, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
    ) -> list[tuple[Measurement, Tensor | None]]:
        """Measurements and labels of all rows. Raises `InvFusionError` where one is wrong or all are too much work."""
        model = self.denoiser(self.main)
        n_samples, n_steps = int(settings["n_samples"]), int(settings["n_steps"])
        work, requests = Work(), []
        for row in rows:
            measurement = read_measurement(row, tuple(model.image_shape), n_samples)
            labels = read_labels(row, len(measurement.y) // n_samples, n_samples, model.n_classes)
            work.add(measurement, n_samples, n_steps if settings["method"] == "sample" else 1)
            requests.append((measurement, labels))
        return requests

    @torch.inference_mode()
    def restore_picture(self, row: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """One row with a picture."""
        options = picture_options(row, settings)
        name = "mmse" if settings["method"] == "mmse" and "mmse" in self.folders else self.main
        model = self.denoiser("nppc" if settings["method"] == "nppc" else name)
        return as_json(answer(content_of(row, "picture"), options, model, {"name": name}, Bounds()))

    @torch.inference_mode()
    def restore(self, measurement: Measurement, labels: Tensor | None, settings: Mapping[str, Any]) -> Outputs:
        """One row: B measurements of one operator batch, each repeated `n_samples` times."""
        measurement = measurement.to(self.device)
        labels = labels if labels is None else labels.to(self.device)
        if settings["method"] == "nppc":
            return self.principal_components(measurement, labels)
        if settings["method"] == "mmse":
            return {"images": self.mmse(measurement, labels)}
        images, n_samples = self.sample(measurement, labels, settings), int(settings["n_samples"])
        return {"images": images if n_samples == 1 else images.reshape(-1, n_samples, *images.shape[1:])}

    def sample(self, measurement: Measurement, labels: Tensor | None, settings: Mapping[str, Any]) -> Tensor:
        """Draw from the posterior with the sampler that the model was judged with."""
        denoiser = self.denoiser(self.main)
        if settings["guidance"] != 1 and labels is not None:
            denoiser = GuidedDenoiser(denoiser, settings["guidance"])
        sampler = type(self.sampler).model_validate({**self.sampler.model_dump(), "n_steps": int(settings["n_steps"])})
        return self.run(sampler, denoiser, measurement, labels, int(settings["seed"])).x

    def mmse(self, measurement: Measurement, labels: Tensor | None) -> Tensor:
        """The posterior mean in one step: from the distilled model (Eq. 7) or else the diffusion model (Eq. 8)."""
        name = "mmse" if "mmse" in self.folders else self.main
        return self.run(MMSE(), self.denoiser(name), measurement, labels, seed=0).x

    def principal_components(self, measurement: Measurement, labels: Tensor | None) -> Outputs:
        """The posterior mean with the directions of largest uncertainty (paper, section 5)."""
        output = self.run(NPPC(), self.denoiser("nppc"), measurement, labels, seed=0)
        assert output.components is not None
        assert output.stds is not None
        return {"mean": output.x, "components": output.components, "stds": output.stds}

    def run(
        self, sampler: Sampler, denoiser: Any, measurement: Measurement, labels: Tensor | None, seed: int
    ) -> SampleOutput:
        """Run a sampler with noise that depends on the seed and the sample's position in the row alone."""
        return sampler.sample(denoiser, measurement, class_labels=labels, seed=seed)


@dataclass
class Work:
    """What the rows of a request ask for together."""

    n_images: int = 0
    n_passes: int = 0
    squared_rows: int = 0

    def add(self, measurement: Measurement, n_samples: int, n_steps: int) -> None:
        """Count one row's. Raises `ShapeError` where the request asks for too much."""
        n_images = len(measurement.y)
        self.n_images += n_images
        self.n_passes += n_images * n_steps
        members = list(parts(measurement.operator))
        matrices = [(m.measurement_shape[0], math.prod(m.image_shape)) for m in members if m.kind == "matrix"]
        self.squared_rows += n_images // n_samples * sum(rows**2 for rows, _ in matrices)
        for asked, most, what in (
            (len(members), MAX_PARTS, "operators within an operator"),
            *((rows, n, f"rows of a matrix for images of {n} numbers") for rows, n in matrices),
            (self.n_images, MAX_IMAGES, "images"),
            (self.n_passes, MAX_PASSES, "network passes (images times n_steps)"),
            (self.squared_rows, MAX_SQUARED_ROWS, "squared rows of all matrices"),
        ):
            if asked > most:
                raise ShapeError(f"a request may ask for at most {most} {what}, this one asks for {asked}; split it")


def parts(operator: LinearOperator) -> Iterator[LinearOperator]:
    """What an operator is made of, at any depth; itself where it is made of none."""
    if not isinstance(operator, Combined):
        yield operator
        return
    for member in operator.operators:
        yield from parts(member)


def check_images(rows: Sequence[Outputs]) -> None:
    """Finite measurements far out of range overflow on their way."""
    if not all(bool(torch.isfinite(value).all()) for row in rows for value in row.values()):
        raise ShapeError("the restoration is not finite: y, sigma_y or the operator are far out of range ([-1, 1])")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse parameters out of range before any work."""
    if settings["method"] not in METHODS:
        raise ShapeError(f"method must be one of {', '.join(METHODS)}, got {settings['method']!r}")
    if not 1 <= settings["n_steps"] <= MAX_STEPS:
        raise ShapeError(f"n_steps must be between 1 and {MAX_STEPS}, got {settings['n_steps']}")
    if not 1 <= settings["n_samples"] <= MAX_IMAGES:
        raise ShapeError(f"n_samples must be between 1 and {MAX_IMAGES}, got {settings['n_samples']}")
    if settings["method"] != "sample" and settings["n_samples"] != 1:
        raise ShapeError(f"method '{settings['method']}' has one answer; n_samples must be 1")
    if not math.isfinite(settings["guidance"]) or settings["guidance"] < 0:
        raise ShapeError(f"guidance must be a number >= 0, got {settings['guidance']}")


def read_measurement(row: Mapping[str, Any], image_shape: tuple[int, ...], n_samples: int) -> Measurement:
    """The measurements of one request, each repeated `n_samples` times.

    Raises:
        InvFusionError: the operator is malformed or does not fit the model, or y does not fit the operator.
    """
    lacking = [name for name in ("y", "operator") if name not in row]
    if lacking:
        raise ShapeError(f"a row needs the columns y and operator, or a picture; {' and '.join(lacking)} is missing")
    operator = operator_from_spec(spec_from_json(row["operator"]))
    if operator.image_shape != image_shape:
        raise ShapeError(f"the operator is for images {operator.image_shape}, this model restores {image_shape}")
    batch = operator.batch_size
    if not 1 <= batch * n_samples <= MAX_IMAGES:
        raise ShapeError(f"a row may ask for 1 to {MAX_IMAGES} images, this one asks for {batch} x {n_samples}")
    shape = (batch, *operator.measurement_shape)
    y = numbers(row["y"], math.prod(shape), f"y of {batch} operators with measurements {operator.measurement_shape}")
    given = optional(row, "sigma_y")
    sigma_y = torch.zeros(batch) if given is None else numbers(given, batch, "sigma_y")
    if bool((sigma_y < 0).any()):
        raise ShapeError(f"sigma_y must not be negative, got {sigma_y.tolist()}")
    repeated = [i for i in range(batch) for _ in range(n_samples)]
    return Measurement(y.reshape(shape), operator, sigma_y).select(repeated)


def read_labels(row: Mapping[str, Any], batch: int, n_samples: int, n_classes: int) -> Tensor | None:
    """Class labels (batch * n_samples,) long, or None where the request has none.

    Raises:
        ShapeError: they are no classes of the model, which has classes 0 to n_classes - 1.
    """
    given = optional(row, "class_labels")
    if given is None:
        return None
    if not n_classes:
        raise ShapeError("this model knows no classes: leave class_labels out")
    labels = numbers(given, batch, "class_labels")
    if not bool(((labels == labels.round()) & (labels >= 0) & (labels < n_classes)).all()):
        raise ShapeError(f"class_labels must be whole numbers from 0 to {n_classes - 1}, got {labels.tolist()}")
    return labels.long().repeat_interleave(n_samples)


def without_gaps(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a row has; a table has None or NaN where there is nothing."""
    return {name: value for name in row if (value := optional(row, name)) is not None}


def picture_options(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Options:
    """What a row says of its picture. Raises `ShapeError`."""
    if "y" in row or "operator" in row:
        raise ShapeError("a row has either a picture or the numbers y with their operator")
    said = {name: row[name] for name in OF_PICTURES if name in row}
    said |= {name: base64.b64encode(content_of(row, name)).decode() for name in ("mask", "blur") if name in row}
    try:
        return Options(**said, method=settings["method"], samples=settings["n_samples"], seed=settings["seed"])
    except ValidationError as error:
        problem = error.errors()[0]
        raise ShapeError(f"'{'.'.join(map(str, problem['loc']))}': {problem['msg']}") from None


def content_of(row: Mapping[str, Any], name: str) -> bytes:
    """The bytes of a file in a column, or base64 of them. Raises `InvFusionError`."""
    if name not in row:
        raise ShapeError(f"every row of this request needs a '{name}'")
    value = row[name]
    return value if isinstance(value, bytes) else decoded(str(value), name)


def optional(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column that may be absent; a table has None or NaN there."""
    value = row.get(name)
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def numbers(values: Any, count: int, noun: str) -> Tensor:
    """`count` finite numbers as a float32 tensor; lists and arrays of any nesting are flattened."""
    try:
        flat = torch.from_numpy(np.array(values, dtype=np.float32).reshape(-1))
    except (TypeError, ValueError):
        raise ShapeError(f"{noun} must be a list of numbers") from None
    if len(flat) != count:
        raise ShapeError(f"{noun} must hold {count} numbers, got {len(flat)}")
    if not bool(torch.isfinite(flat).all()):
        raise ShapeError(f"{noun} holds a number that is not finite")
    return flat


mlflow.models.set_model(RestorationModel())
