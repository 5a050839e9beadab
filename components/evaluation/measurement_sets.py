"""Frozen measurement sets: every method of an evaluation restores exactly these measurements.

Everything about a sample is drawn from generators of its own key, so it depends neither on the batch size nor on which
other samples are in the set.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from invfusion.codec import decode, encode
from invfusion.data.files import write_text
from invfusion.degradations import DegradationFamily
from invfusion.errors import DataError
from invfusion.measuring import NOISELESS, Streams, measure_batch
from invfusion.names import kind_of
from invfusion.noise import AnyNoise
from invfusion.operators import OPERATORS, LinearOperator, Measurement
from invfusion.rng import generator


@dataclass(frozen=True)
class Group:
    """Samples that can share a batch: one kind of operator, equal attributes and measurement shapes."""

    indices: tuple[int, ...]
    measurement: Measurement


@dataclass(frozen=True)
class Batch:
    """Some samples of a set; `draws[i]` numbers the repeated restorations of one sample, from 0."""

    indices: tuple[int, ...]
    draws: tuple[int, ...]
    measurement: Measurement


@dataclass(frozen=True)
class MeasurementSet:
    """n measurements. truth: uint8 (n, C, H, W), or None where images are generated from nothing; labels: (n,) long."""

    degradation: str
    keys: tuple[str, ...]
    truth: Tensor | None
    labels: Tensor
    groups: tuple[Group, ...]
    facts: dict[str, Any]

    @property
    def sha256(self) -> str:
        """The identity of the set: a hash of its facts, keys and tensors."""
        digest: str = self.facts["sha256"]
        return digest

    @property
    def is_noisy(self) -> bool:
        """Whether any image was measured with noise."""
        return any(bool((group.measurement.sigma_y > 0).any()) for group in self.groups)

    @cached_property
    def n_measured(self) -> Tensor:
        """How many entries the measurement of each image has, (n,) long."""
        counts = torch.zeros(len(self.keys), dtype=torch.long)
        for group in self.groups:
            counts[list(group.indices)] = group.measurement.y[0].numel()
        return counts

    def batches(self, size: int, extra: Sequence[int], n_extra: int) -> Iterator[Batch]:
        """Batches of at most `size`: each sample once, then those in `extra` another `n_extra` times.

        A batch has one draw of its samples, so that a further draw adds batches and leaves the others as they are.
        """
        for draw in range(1 + n_extra):
            for group in self.groups:
                rows = [row for row, i in enumerate(group.indices) if draw == 0 or i in extra]
                n_batches = -(-len(rows) // size)
                for start in range(n_batches):
                    # Equal parts, rather than full ones and a small rest.
                    part = rows[start::n_batches]
                    indices = tuple(group.indices[row] for row in part)
                    yield Batch(indices, (draw,) * len(part), group.measurement.select(part))

    def as_images(self, n: int) -> Tensor:
        """H_pinv(y) of the first n samples, uint8 (n, C, H, W)."""
        shown: dict[int, Tensor] = {}
        for group in self.groups:
            rows = [row for row, i in enumerate(group.indices) if i < n]
            if rows:
                images = encode(group.measurement.select(rows).H_pinv_y)
                shown |= {group.indices[row]: image for row, image in zip(rows, images, strict=True)}
        return torch.stack([shown[i] for i in sorted(shown)])

    def save(self, folder: Path, name: str = "") -> None:
        """Write <name>.safetensors and <name>.json; the name is the degradation's where none is given."""
        folder.mkdir(parents=True, exist_ok=True)
        name = name or self.degradation
        save_file(_tensors(self.groups), folder / f"{name}.safetensors")
        # Last, so that a set without it is one that was not finished.
        write_text(folder / f"{name}.json", json.dumps(self.facts, indent=1) + "\n")


def measure_set(
    family: DegradationFamily,
    keys: Sequence[str],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    noise: AnyNoise = NOISELESS,
    split: str = "",
    name: str | None = None,
) -> MeasurementSet:
    """Measure images (n, C, H, W) uint8, each with an operator and noise drawn from the generators of its key.

    The set is called `name`, or after the family's kind.
    """
    degradation = name or kind_of(family)
    streams = Streams(f"evaluate/{degradation}", f"evaluate/{degradation}/noise")
    parts = [measure_batch(decode(images[i : i + 1]), family, noise, k, seed, streams) for i, k in enumerate(keys)]
    groups = _grouped(parts)
    facts = _request(degradation, family, keys, images, seed, noise, split)
    facts["groups"] = [{**_signature(g.measurement.operator), "indices": list(g.indices)} for g in groups]
    facts["sha256"] = _content_hash(facts, _tensors(groups))
    return MeasurementSet(degradation, tuple(keys), images, labels, groups, facts)


def frozen(
    folder: Path,
    family: DegradationFamily,
    keys: Sequence[str],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    noise: AnyNoise = NOISELESS,
    split: str = "",
) -> MeasurementSet:
    """The set that was drawn for these images before and lies in the folder; else it is drawn now and put there.

    So a set that was handed on, or kept by DVC, is what every method sees, on any machine and under any version.

    Raises:
        DataError: the file is not what was written.
    """
    kind = kind_of(family)
    request = _request(kind, family, keys, images, seed, noise, split)
    name = f"{kind}-{_sha256(json.dumps(request, sort_keys=True).encode())[:12]}"
    if (folder / f"{name}.json").is_file():
        return load(folder, name, images, labels)
    made = measure_set(family, keys, images, labels, seed=seed, noise=noise, split=split)
    made.save(folder, name)
    return made


def load(folder: Path, name: str, images: Tensor, labels: Tensor) -> MeasurementSet:
    """A set that `save` wrote, of these images.

    Raises:
        DataError: its files are damaged, or were changed since.
    """
    path = folder / f"{name}.json"
    try:
        facts = json.loads(path.read_text())
        tensors = load_file(folder / f"{name}.safetensors")
        expected = facts.pop("sha256")
        is_whole = _content_hash(facts, tensors) == expected
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{path.with_suffix('')}: the frozen measurements cannot be read ({error}); {_REMEDY}"
        ) from None
    if not is_whole:
        raise DataError(f"{path.with_suffix('')}: the frozen measurements are not those that were written; {_REMEDY}")
    groups = tuple(_read_group(g, group, facts["image_shape"], tensors) for g, group in enumerate(facts["groups"]))
    return MeasurementSet(
        facts["degradation"], tuple(facts["keys"]), images, labels, groups, {**facts, "sha256": expected}
    )


_REMEDY = "`dvc checkout` brings a tracked set back, and without the files it is drawn anew"


def _read_group(g: int, group: dict[str, Any], image_shape: list[int], tensors: dict[str, Tensor]) -> Group:
    prefix = f"{g}/operator/"
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    operator = OPERATORS[group["kind"]].from_tensors(image_shape, own, group["attributes"])
    return Group(tuple(group["indices"]), Measurement(tensors[f"{g}/y"], operator, tensors[f"{g}/sigma_y"]))


def _request(
    degradation: str,
    family: DegradationFamily,
    keys: Sequence[str],
    images: Tensor,
    seed: int,
    noise: AnyNoise,
    split: str,
) -> dict[str, Any]:
    """Everything that a set is drawn from."""
    return {
        "degradation": degradation,
        "family": family.model_dump(mode="json"),
        "seed": seed,
        "split": split,
        "noise": noise.model_dump(mode="json"),
        "image_shape": list(images.shape[1:]),
        "images_sha256": _sha256(images.contiguous().numpy().tobytes()),
        "keys": list(keys),
    }


def nothing_measured(
    n: int, image_shape: Sequence[int], null: DegradationFamily, seed: int, n_classes: int
) -> MeasurementSet:
    """n empty measurements, from which images are generated, of random classes where the models know classes."""
    keys = [f"generated-{i:06d}" for i in range(n)]
    classes = [int(torch.randint(max(n_classes, 1), (), generator=generator(seed, "evaluate/class", k))) for k in keys]
    images = torch.zeros(n, *image_shape, dtype=torch.uint8)
    made = measure_set(null, keys, images, torch.tensor(classes), seed=seed, name="unconditional")
    return replace(made, truth=None)


def _grouped(parts: Sequence[Measurement]) -> tuple[Group, ...]:
    members: dict[str, list[int]] = {}
    for i, part in enumerate(parts):
        shape = list(part.operator.measurement_shape)
        members.setdefault(json.dumps([_signature(part.operator), shape], sort_keys=True), []).append(i)
    return tuple(Group(tuple(rows), Measurement.cat([parts[i] for i in rows])) for _, rows in sorted(members.items()))


def _signature(operator: LinearOperator) -> dict[str, Any]:
    return {"kind": operator.kind, "attributes": operator.attributes()}


def _tensors(groups: Sequence[Group]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for g, group in enumerate(groups):
        m = group.measurement
        named = {"y": m.y, "sigma_y": m.sigma_y} | {f"operator/{k}": t for k, t in m.operator.tensors().items()}
        tensors |= {f"{g}/{name}": tensor.contiguous() for name, tensor in named.items()}
    return tensors


def _content_hash(facts: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
