"""Frozen measurement sets: every method of an evaluation restores exactly these measurements.

Everything about a sample is drawn from generators of its own key, so it depends neither on the batch size nor on which
other samples are in the set. So a set keeps what its operators are drawn from, a digest of each, and the measurements y
themselves; operators are drawn again for each batch, as ten thousand of them fit no memory.

On disk a set is <name>.json, its facts, and <name>.npy: float32, for each image in turn sigma_y and then the entries of
y. The facts are {degradation, family, law_versions, seed, split, noise, image_shape, images_sha256, keys, groups:
[{operator: {kind, attributes}, measurement_shape, indices}], operators_sha256: [one for each image], values_sha256,
sha256}, the last a hash of all others.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.evaluation.images import Images
from invfusion.codec import decode, encode
from invfusion.degradations import DegradationFamily
from invfusion.errors import DataError
from invfusion.files import replacing, sha256_of, write_text
from invfusion.locks import locked
from invfusion.measuring import NOISELESS, Streams, draw_operator, measure_batch, observe
from invfusion.names import kind_of
from invfusion.noise import AnyNoise
from invfusion.operators import LinearOperator, Measurement
from invfusion.rng import generator

log = logging.getLogger(__name__)

LOCKS = Path("state/measuring")
# Another machine rounds otherwise: an operator whose digest differs is still the same if it measures the same.
ROUNDING = 1e-4
_REMEDY = "`dvc checkout` brings a tracked set back, and without the files it is drawn anew"


@dataclass(frozen=True)
class Request:
    """What a set is drawn from, besides the images. degradation: what the set is called; the family's kind, if empty.

    code: the identity of the code that draws, where a set of other code shall not be taken.
    """

    family: DegradationFamily
    seed: int
    noise: AnyNoise = NOISELESS
    split: str = ""
    degradation: str = ""
    code: str = ""

    @property
    def title(self) -> str:
        return self.degradation or kind_of(self.family)

    @property
    def streams(self) -> Streams:
        return Streams(f"evaluate/{self.title}", f"evaluate/{self.title}/noise")

    def facts(self, images: Images) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "degradation": self.title,
            "family": self.family.model_dump(mode="json"),
            "law_versions": self.family.law_versions(),
            "seed": self.seed,
            "split": self.split,
            "noise": self.noise.model_dump(mode="json"),
            "image_shape": list(images.shape),
            "images_sha256": images.sha256,
            "keys": list(images.keys),
        }

    def measure(self, images: Images, i: int) -> Measurement:
        """The measurement of one image."""
        x = decode(images.read([i]))
        return measure_batch(x, self.family, self.noise, images.keys[i], self.seed, self.streams)


@dataclass(frozen=True)
class Group:
    """Samples that can share a batch: one kind of operator, equal attributes and measurement shapes."""

    indices: tuple[int, ...]
    kind: str
    measurement_shape: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Some samples of a set; `draws[i]` numbers the repeated restorations of one sample, from 0."""

    indices: tuple[int, ...]
    draws: tuple[int, ...]


@dataclass(frozen=True)
class MeasurementSet:
    """n measurements. images: what was measured; has_truth: False where images are generated from nothing.

    values: what <name>.npy holds; it stays on disk.
    """

    request: Request
    images: Images
    values: NDArray[np.float32]
    facts: dict[str, Any]
    has_truth: bool = True

    @property
    def degradation(self) -> str:
        return self.request.title

    @property
    def keys(self) -> tuple[str, ...]:
        return self.images.keys

    @property
    def sha256(self) -> str:
        """The identity of the set: a hash of its facts, which name the operators' digests and the measurements'."""
        digest: str = self.facts["sha256"]
        return digest

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return tuple(
            Group(tuple(group["indices"]), group["operator"]["kind"], tuple(group["measurement_shape"]))
            for group in self.facts["groups"]
        )

    @cached_property
    def n_measured(self) -> Tensor:
        """How many entries the measurement of each image has, (n,) long."""
        counts = torch.zeros(len(self.keys), dtype=torch.long)
        for group in self.groups:
            counts[list(group.indices)] = torch.Size(group.measurement_shape).numel()
        return counts

    @cached_property
    def starts(self) -> list[int]:
        """Where each image's values begin, and where all end."""
        ends: list[int] = (self.n_measured + 1).cumsum(0).tolist()
        return [0, *ends]

    @cached_property
    def is_noisy(self) -> bool:
        """Whether any image was measured with noise."""
        return bool((self.values[self.starts[:-1]] > 0).any())

    def measurement(self, indices: Sequence[int]) -> Measurement:
        """The measurement of samples of one group, with their operators drawn again.

        Raises:
            DataError: an operator is not the one that the sample was measured with.
        """
        return Measurement.cat([self._one(i) for i in indices])

    def batches(self, size: int, extra: Sequence[int], n_extra: int) -> Iterator[Batch]:
        """Batches of at most `size`: each sample once, then those in `extra` another `n_extra` times.

        A batch has one draw of its samples, so that a further draw adds batches and leaves the others as they are.
        """
        for draw in range(1 + n_extra):
            for group in self.groups:
                chosen = [i for i in group.indices if draw == 0 or i in extra]
                n_batches = -(-len(chosen) // size)
                for start in range(n_batches):
                    # Equal parts, rather than full ones and a small rest.
                    indices = tuple(chosen[start::n_batches])
                    yield Batch(indices, (draw,) * len(indices))

    def as_images(self, n: int) -> Tensor:
        """H_pinv(y) of the first n samples, uint8 (n, C, H, W)."""
        shown: dict[int, Tensor] = {}
        for group in self.groups:
            chosen = [i for i in group.indices if i < n]
            if chosen:
                shown |= dict(zip(chosen, encode(self.measurement(chosen).H_pinv_y), strict=True))
        return torch.stack([shown[i] for i in sorted(shown)])

    def _one(self, i: int) -> Measurement:
        request, key = self.request, self.keys[i]
        operator = draw_operator(request.family, 1, self.images.shape, key, request.seed, request.streams)
        values = torch.from_numpy(self.values[self.starts[i] : self.starts[i + 1]].copy())
        if _digest(operator) != self.facts["operators_sha256"][i] and not self._measures(operator, i, values[1:]):
            raise DataError(
                f"the operator that is drawn for '{key}' is not the one that it was measured with: the set "
                f"'{self.degradation}' was made by another version of the law; {_REMEDY}"
            )
        return Measurement(values[1:].view(1, *operator.measurement_shape), operator, values[:1])

    def _measures(self, operator: LinearOperator, i: int, y: Tensor) -> bool:
        """Whether an operator gives the measurement that is kept of a sample, up to rounding."""
        request = self.request
        x = decode(self.images.read([i]))
        again = observe(x, operator, request.noise, self.keys[i], request.seed, request.streams).y.flatten()
        return len(again) == len(y) and bool(torch.allclose(again, y, rtol=ROUNDING, atol=ROUNDING))


def frozen(folder: Path, request: Request, images: Images, name: str = "") -> MeasurementSet:
    """The set that was drawn for these images before and lies in the folder; else it is drawn now and put there.

    So a set that was handed on, or kept by DVC, is what every method sees, on any machine. One process draws, others
    wait for it. Without a name it is called after its degradation and a hash of all that it is drawn from.

    Raises:
        DataError: the file is not what was written.
    """
    wanted = request.facts(images)
    if not name:
        name = f"{request.title}-{_sha256(json.dumps(wanted, sort_keys=True).encode())[:12]}"
        _mention_older(folder, request.title)
    with locked(LOCKS / f"{name}.lock"):
        facts = _read_facts(folder / f"{name}.json")
        if facts is None or facts.pop("code", "") != request.code or not facts.items() >= wanted.items():
            facts = _draw(folder, name, request, images, wanted)
    return MeasurementSet(request, images, _open(folder / f"{name}.npy", facts), facts)


def nothing_measured(
    folder: Path, n: int, image_shape: Sequence[int], null: DegradationFamily, seed: int, n_classes: int
) -> MeasurementSet:
    """n empty measurements, from which images are generated, of random classes where the models know classes."""
    keys = tuple(f"generated-{i:06d}" for i in range(n))
    classes = [int(torch.randint(max(n_classes, 1), (), generator=generator(seed, "evaluate/class", k))) for k in keys]
    shape = tuple(image_shape)
    blank = Images(keys, torch.tensor(classes), shape, lambda i: torch.zeros(len(i), *shape, dtype=torch.uint8))
    made = frozen(folder, Request(null, seed, degradation="unconditional"), blank, name="unconditional")
    return replace(made, has_truth=False)


# Files.


def _draw(folder: Path, name: str, request: Request, images: Images, wanted: dict[str, Any]) -> dict[str, Any]:
    """Measure all images, one at a time, and write the set."""
    groups: dict[str, dict[str, Any]] = {}
    digests = []
    values = folder / f"{name}.npy"
    with replacing(values) as partial, partial.open("wb") as file:
        n = 0
        _write_header(file, n)
        for i in range(len(images)):
            measured = request.measure(images, i)
            n += _append(file, measured)
            digests.append(_digest(measured.operator))
            signature = _signature(measured.operator)
            alike = json.dumps(list(signature.values()), sort_keys=True)
            groups.setdefault(alike, {**signature, "indices": []})["indices"].append(i)
        file.seek(0)
        _write_header(file, n)
    facts = wanted | {
        "groups": [group for _, group in sorted(groups.items())],
        "operators_sha256": digests,
        "values_sha256": sha256_of(values),
    }
    facts["sha256"] = _facts_sha256(facts)
    # Last, so that a set without it is one that was not finished.
    write_text(folder / f"{name}.json", json.dumps(facts | ({"code": request.code} if request.code else {})) + "\n")
    return facts


def _append(file: IO[bytes], measured: Measurement) -> int:
    row = torch.cat([measured.sigma_y.view(1), measured.y.flatten()]).float()
    file.write(row.numpy().astype("<f4").tobytes())
    return len(row)


def _write_header(file: IO[bytes], n: int) -> None:
    """The head of a .npy file of n numbers; it is as long for any n."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n,)})


def _read_facts(path: Path) -> dict[str, Any] | None:
    """The facts of a set; None where there is none."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        is_whole = _facts_sha256(facts) == facts["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: the frozen measurements cannot be read ({error}); {_REMEDY}") from None
    if not is_whole:
        raise DataError(f"{path}: the frozen measurements are not those that were written; {_REMEDY}")
    return facts


def _open(path: Path, facts: dict[str, Any]) -> NDArray[np.float32]:
    """The values of a set, left on disk. Raises `DataError` where they are not those that its facts name."""
    try:
        is_whole = sha256_of(path) == facts["values_sha256"]
        values: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the frozen measurements cannot be read ({error}); {_REMEDY}") from None
    if not is_whole:
        raise DataError(f"{path}: the frozen measurements are not those that were written; {_REMEDY}")
    return values


def _mention_older(folder: Path, title: str) -> None:
    """Sets that hold every matrix, as they were kept once, are left where they are; nothing reads them any more."""
    if older := sorted(path.name for path in folder.glob(f"{title}-*.safetensors")):
        log.warning(
            "%s holds %s of an earlier layout: not read, and numbers on them are not comparable by hash with those to "
            "come; the measurements are drawn again from the same seed and keys", folder, ", ".join(older),
        )  # fmt: skip


def _signature(operator: LinearOperator) -> dict[str, Any]:
    return {
        "operator": {"kind": operator.kind, "attributes": operator.attributes()},
        "measurement_shape": list(operator.measurement_shape),
    }


def _digest(operator: LinearOperator) -> str:
    """Of an operator's kind, attributes and tensors."""
    digest = hashlib.sha256(json.dumps(_signature(operator), sort_keys=True).encode())
    for name, tensor in sorted(operator.tensors().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _facts_sha256(facts: dict[str, Any]) -> str:
    kept = {key: value for key, value in facts.items() if key not in ("sha256", "code")}
    return _sha256(json.dumps(kept, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
