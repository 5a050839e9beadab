"""Gaussian priors of images, and their files."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from invfusion.errors import CheckpointError, ConfigError, ShapeError
from invfusion.gaussian.clusters import Clusters
from invfusion.gaussian.covariance import Coloured, Covariance, LowRank, Stationary
from invfusion.gaussian.posterior import GaussianPosterior
from invfusion.gaussian.solvers import asks_for_values
from invfusion.operators.base import LinearOperator, Measurement

# No direction has less variance: one grey level of 255, squared.
FLOOR = (2 / 255) ** 2
# How the names of the clusters' tensors begin.
CLUSTERS = "clusters."
Form = Literal["full", "coloured", "stationary"]


class Law(Protocol):
    """Of B images (C, H, W), given what was measured of them."""

    @property
    def mean(self) -> Tensor:
        """(B, C, H, W) float32."""
        ...

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One draw for each image, row i from generator i: (B, C, H, W) float32."""
        ...


class Prior(nn.Module, ABC):
    """A law of images that can be conditioned on measurements without a network call."""

    @abstractmethod
    def law_of(self, shape: Sequence[int], measurement: Measurement | None) -> Law:
        """The law of images (B, C, H, W), given their measurements where there are any. Raises `ShapeError`."""


class GaussianPrior(Prior):
    """N(mean, covariance) over images (C, H, W) in [-1, 1], to be conditioned on measurements.

    The covariance has low rank plus a floor, or is stationary, for images too large for a rank. Its tensors are float64
    and move with `.to(device)`, but are no part of a state_dict: they are kept by `save`, or by a model's checkpoint.
    data: a digest of the images that it was fitted to, or "". clusters: the kinds that the images come in, which
    `refined` uses; all else is the Gaussian's alone.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, covariance: Covariance, data: str = "", clusters: Clusters | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean.double(), persistent=False)
        self.covariance = covariance
        self.data = data
        self.clusters = clusters

    @classmethod
    def fit(
        cls,
        images: Tensor,
        *,
        rank: int | None = None,
        form: Form = "full",
        floor: float = FLOOR,
        data: str = "",
        clusters: int = 1,
        own_covariances: bool = False,
    ) -> Self:
        """The best Gaussian for images (N, C, H, W) in [-1, 1].

        rank: how many principal components are kept; None keeps all that the images determine. form: "full"; "coloured"
        takes certain combinations of the channels for uncorrelated, and most operators are then several times cheaper;
        "stationary" has a mean per channel and a power spectrum for each such combination, and no rank. floor: the
        least variance of any direction, positive. data: names the images. clusters: how many kinds the images are
        taken to come in beside; 1 for none. own_covariances: of "full" ones, whether each kind has a covariance of its
        own, which asks for many images of each, and not one that all share.
        Raises `ConfigError` where there are too few images for the rank or the clusters, or not all are finite.
        """
        if images.ndim != 4 or len(images) < 2:
            raise ConfigError(f"a prior is fitted to images (N, C, H, W), at least two, got {tuple(images.shape)}")
        if not bool(images.isfinite().all()):
            raise ConfigError("images that a prior is fitted to must be finite; some have NaN or infinite pixels")
        if floor <= 0:
            raise ConfigError(f"the floor of a prior's variances must be positive, got {floor}")
        if own_covariances and form != "full":
            raise ConfigError(f"clusters with covariances of their own have the form 'full', not '{form}'")
        if form == "stationary" and clusters > 1:
            raise ConfigError("a stationary prior is the same everywhere and has no clusters; set clusters to 1")
        # Without clusters the one copy in float64, which for large images is most of the memory that a fit takes.
        deviations = images.to(torch.float64, copy=True)
        if form == "stationary":
            mean = deviations.mean((0, 2, 3), keepdim=True)[0].expand(images.shape[1:]).clone()
            return cls(mean, Stationary.fit(deviations.sub_(mean), floor), data)
        mean = deviations.mean(0)
        deviations -= mean
        if rank is None:
            rank = min(len(images) - 1, mean.numel())
        kind = Coloured if form == "coloured" else LowRank
        covariance = kind.fit(deviations, rank, floor)
        del deviations
        found = None
        if clusters > 1 and own_covariances:
            found = Clusters.fit_each(images.double(), clusters, rank, floor)
        elif clusters > 1:
            found = Clusters.fit(images.double(), clusters, kind, rank, floor)
        return cls(mean, covariance, data, found)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.mean.shape
        return c, h, w

    def posterior(self, measurement: Measurement) -> GaussianPosterior:
        """The law of the images (B, C, H, W) given their measurements.

        Raises `ShapeError` where the operator is for images of another shape.
        """
        self._check_measures(measurement)
        return GaussianPosterior(self.mean, self.covariance, measurement)

    def law_of(self, shape: Sequence[int], measurement: Measurement | None) -> GaussianPosterior:
        """`posterior`, or without a measurement the prior itself for B images."""
        return self.unconditional(shape[0]) if measurement is None else self.posterior(measurement)

    def unconditional(self, batch_size: int) -> GaussianPosterior:
        """The prior itself for a batch of images of which nothing is known."""
        return GaussianPosterior(self.mean, self.covariance, None, batch_size)

    def refined(self, shape: Sequence[int], measurement: Measurement | None) -> GaussianPosterior:
        """`law_of` with the clusters, where there are any: no Gaussian then."""
        if self.clusters is None:
            return self.law_of(shape, measurement)
        if measurement is not None:
            self._check_measures(measurement)
        return self.clusters.posterior(measurement, shape[0])

    def asks_for_values(self, operator: LinearOperator) -> bool:
        """Whether conditioning on such measurements waits for an accelerator, and so cannot be recorded there."""
        within = [] if self.clusters is None else list(self.clusters.covariances)
        covariances = [c for c in (self.covariance, *within) if isinstance(c, Covariance)]
        return any(asks_for_values(covariance, operator) for covariance in covariances)

    def _check_measures(self, measurement: Measurement) -> None:
        if measurement.operator.image_shape != self.image_shape:
            raise ShapeError(
                f"the prior is of images {self.image_shape}, but the operator '{measurement.operator.kind}' acts on "
                f"images {measurement.operator.image_shape}"
            )

    def check_fits(self, image_shape: tuple[int, int, int], data: str = "") -> None:
        """Raise `ConfigError` where the prior is of images of another shape, or was fitted to other data."""
        if image_shape != self.image_shape:
            raise ConfigError(
                f"the Gaussian prior was fitted to images {self.image_shape}, but the model takes {image_shape}; fit a "
                "prior to the model's own images"
            )
        if data and self.data and data != self.data:
            raise ConfigError(
                f"the Gaussian prior was fitted to other images (data {self.data[:12]}) than those of the model (data "
                f"{data[:12]}); fit it again, to the same training images"
            )

    # Files.

    def tensors(self) -> dict[str, Tensor]:
        """What defines the prior, float64."""
        own = {"mean": self.mean, **dict(self.covariance.named_buffers())}
        beside = {} if self.clusters is None else self.clusters.tensors()
        return own | {CLUSTERS + name: tensor for name, tensor in beside.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], data: str = "") -> Self:
        """Take back what `tensors` gave. Raises `CheckpointError` where these are not a prior's."""
        beside = {name.removeprefix(CLUSTERS): t for name, t in tensors.items() if name.startswith(CLUSTERS)}
        own = {name: t for name, t in tensors.items() if not name.startswith(CLUSTERS)}
        mean, covariance = own.pop("mean", None), _covariance(own)
        clusters = _clusters(beside) if beside else None
        if mean is None or mean.ndim != 3 or covariance is None or (beside and clusters is None):
            raise CheckpointError(f"a Gaussian prior is not made of the tensors {sorted(tensors)}")
        return cls(mean, covariance, data, clusters)

    def save(self, path: Path | str) -> None:
        """Write a safetensors file."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors().items()}
        save_file(tensors, path, metadata={"data": self.data})
        Path(path).chmod(0o644)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote. Raises `CheckpointError`: the file is missing, damaged or not a prior's."""
        try:
            with safe_open(path, framework="pt") as file:
                # Fresh memory: tensors mapped from a file may be unaligned.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                data = (file.metadata() or {}).get("data", "")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read as a Gaussian prior ({error}); fit it again") from error
        return cls.from_tensors(tensors, data)


def _covariance(tensors: Mapping[str, Tensor]) -> Covariance | None:
    """That which these tensors define; None where they define none."""
    kinds = {frozenset(kind.tensor_names): kind for kind in (LowRank, Coloured, Stationary)}
    kind = kinds.get(frozenset(tensors))
    return None if kind is None else kind(**tensors)


def _clusters(tensors: dict[str, Tensor]) -> Clusters | None:
    centres, weights = tensors.pop("centres", None), tensors.pop("weights", None)
    of_each: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        where, _, what = name.rpartition(".")
        of_each.setdefault(where, {})[what] = tensor
    found = [_covariance(of_each.get(f"covariances.{k}", {})) for k in range(len(of_each))]
    covariances = [covariance for covariance in found if covariance is not None]
    if centres is None or weights is None or len(covariances) not in (1, len(weights)) or None in found:
        return None
    return Clusters(centres, weights, covariances)
