"""Judge anything that claims to sample a posterior against exact draws of it.

Every distance comes with its noise floor, the same distance between two sets of exact draws: a sampler is right as far
as this test can see where the ratio is about 1. All distances are relative to the posterior's own spread, so that wide
and narrow posteriors count alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from invfusion.degradations import DegradationFamily
from invfusion.errors import ConfigError, ShapeError
from invfusion.measuring import Streams, measure_batch
from invfusion.metrics import coverage, ranks, statistic_interval, tarp_ranks, uniformity_gap
from invfusion.names import kind_of
from invfusion.noise import GaussianNoise
from invfusion.operators import LinearOperator, Measurement
from invfusion.oracle.distances import sliced_wasserstein_squared, unit_directions
from invfusion.oracle.mixture import GaussianMixture
from invfusion.rng import generator, generators, randn

# (measurement of B images, noise (B, C, H, W), B generators) -> B posterior samples (B, C, H, W).
Draw = Callable[[Measurement, Tensor, Sequence[torch.Generator]], Tensor]

# A sampler whose sliced Wasserstein distance is within this factor of the floor passes.
LIMIT = 1.1
# How many sets of exact draws the floor is averaged over.
FLOOR_SETS = 4
N_DIRECTIONS = 128
N_TRUTHS = 64
COVERAGE_LEVEL = 0.9
RESAMPLES = 200
# A measurement that leaves less of the prior's variance open than this determines the image.
OPEN_SHARE = 1e-3
# Deviations below this, in pixel units, are rounding: such a pixel is determined.
DETERMINED = 1e-3
MAX_TRIES = 50


def draw_measurements(
    prior: GaussianMixture, family: DegradationFamily, n: int, sigma_y: float = 0.0, seed: int = 0
) -> list[Measurement]:
    """n measurements of one image each: images of the prior, operators of the family, noise of level sigma_y.

    Each is drawn from generators of its own number; those that determine the image are left out. Raises `ConfigError`
    where the family gives no others.
    """
    found: list[Measurement] = []
    kind = kind_of(family)
    streams = Streams(f"oracle/operator/{kind}", f"oracle/noise/{kind}")
    for index in range(MAX_TRIES * n):
        x = prior.sample([generator(seed, "oracle/image", index)]).float()
        measurement = measure_batch(x, family, _Fixed(sigma_y=sigma_y), index, seed, streams)
        if _variance(prior.given(measurement)) > OPEN_SHARE * _variance(prior):
            found.append(measurement)
        if len(found) == n:
            return found
    raise ConfigError(f"the family '{kind}' determines nearly every image {prior.image_shape}: nothing to sample")


class _Fixed(GaussianNoise):
    """One level for all, so that no level is drawn before the noise itself."""

    def measure(self, x: Tensor, operator: LinearOperator, generator: Generator) -> Measurement:
        noise = torch.randn((len(x), *operator.measurement_shape), generator=generator)
        return Measurement.of(x, operator, self.sigma_y[0], noise)


def _variance(law: GaussianMixture) -> float:
    return float(law.covariance()[0].trace())


@dataclass(frozen=True)
class Score:
    """A number with its 95% interval over measurements, and what exact draws score; ratio: value over floor."""

    value: float
    low: float
    high: float
    floor: float

    @property
    def ratio(self) -> float:
        return self.value / self.floor


@dataclass(frozen=True)
class Verdict:
    """What a candidate's draws look like beside exact ones.

    scores: sliced_wasserstein, mean_error and covariance_error in units of the posterior's spread; spread, the standard
    deviation over the exact one; coverage_90, how often central 90% intervals of single pixels hold the truth;
    tarp_gap, the largest distance of TARP's curve from the diagonal. tarp_ranks, pixel_ranks: uniform on [0, 1] for a
    calibrated sampler.
    """

    scores: Mapping[str, Score]
    tarp_ranks: Tensor
    pixel_ranks: Tensor

    @property
    def passes(self) -> bool:
        """Whether the draws cannot be told from exact ones."""
        return self.scores["sliced_wasserstein"].ratio <= LIMIT

    def __str__(self) -> str:
        lines = [f"{'':<20}{'value':>9}{'floor':>9}{'ratio':>8}"]
        lines += [f"{n:<20}{s.value:>9.4f}{s.floor:>9.4f}{s.ratio:>8.2f}" for n, s in self.scores.items()]
        return "\n".join([*lines, "passes" if self.passes else "does not sample this posterior"])


@dataclass(frozen=True)
class _Case:
    """One measurement with what is exactly known of its posterior. draws: sets (1 + FLOOR_SETS, n, D) of exact ones."""

    measurement: Measurement
    mean: Tensor
    covariance: Tensor
    draws: Tensor
    truths: Tensor
    references: Tensor
    directions: Tensor

    @classmethod
    def of(cls, prior: GaussianMixture, measurement: Measurement, n: int, seed: int, index: int) -> "_Case":
        law = prior.given(measurement)

        def exact(purpose: str, count: int) -> Tensor:
            draws = generators(seed, f"oracle/{purpose}/{index}", range(count))
            return law.rows([0] * count).sample(draws).flatten(1)

        references = prior.sample(generators(seed, f"oracle/references/{index}", range(N_TRUTHS)))
        return cls(
            measurement=measurement,
            mean=law.mean[0].flatten(),
            covariance=law.covariance()[0],
            draws=torch.stack([exact(f"exact-{s}", n) for s in range(1 + FLOOR_SETS)]),
            truths=exact("truths", N_TRUTHS),
            references=references.flatten(1),
            directions=unit_directions(N_DIRECTIONS, prior.size, generator(seed, "oracle/directions")),
        )

    def squares(self, x: Tensor) -> dict[str, float]:
        """The squared, relative distances of draws (n, D) from the exact law."""
        variance = self.covariance.trace()
        sliced = sliced_wasserstein_squared(x, self.draws[0], self.directions) * len(self.mean)
        return {
            "sliced_wasserstein": float(sliced / variance),
            "mean_error": float((x.mean(0) - self.mean).square().sum() / variance),
            "covariance_error": float((x.T.cov() - self.covariance).square().sum() / self.covariance.square().sum()),
            "spread": float(x.var(0).sum() / variance),
        }

    def ranks(self, x: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """TARP's ranks of the truths (T,), and those of their pixels that the measurement leaves open (T * P,)."""
        samples = x.expand(len(self.truths), *x.shape)
        open_pixels = self.covariance.diagonal().sqrt() > DETERMINED
        of_distance = tarp_ranks(samples, self.truths, self.references, draws)
        return of_distance, ranks(samples[..., open_pixels], self.truths[:, open_pixels], draws).flatten()


@dataclass(frozen=True)
class _Found:
    """One candidate's numbers, case by case."""

    squares: list[dict[str, float]]
    tarp: list[Tensor]
    pixels: list[Tensor]

    def rms(self, name: str, weights: Tensor) -> float:
        return float((weights @ torch.tensor([s[name] for s in self.squares]).double() / weights.sum()).sqrt())

    def tarp_gap(self, weights: Tensor) -> float:
        return uniformity_gap(torch.cat(self.tarp), weights.repeat_interleave(len(self.tarp[0])))

    def coverage(self, weights: Tensor) -> float:
        level = torch.tensor([COVERAGE_LEVEL])
        covered = torch.tensor([float(coverage(p, level)) for p in self.pixels]).double()
        return float(weights @ covered / weights.sum())

    def all(self, weights: Tensor) -> dict[str, float]:
        """Every score, with the cases weighted."""
        scores = {name: self.rms(name, weights) for name in self.squares[0]}
        return scores | {"tarp_gap": self.tarp_gap(weights), "coverage_90": self.coverage(weights)}


class Oracle:
    """Knows the posteriors of some measurements exactly, and judges samplers on them.

    measurements: of one image of the prior each, see `draw_measurements`; n_samples: draws per measurement, the more of
    them the smaller the deviation that is seen (512 see a spread that is 10% off). The exact draws are made once.
    """

    def __init__(
        self, prior: GaussianMixture, measurements: Sequence[Measurement], n_samples: int = 512, seed: int = 0
    ) -> None:
        if not measurements or any(m.operator.batch_size != 1 for m in measurements):
            raise ShapeError("the oracle needs measurements of one image each, as draw_measurements makes them")
        self.prior, self.measurements = prior, tuple(measurements)
        self.n_samples, self.seed = n_samples, seed
        self._cases = [_Case.of(prior, m, n_samples, seed, i) for i, m in enumerate(measurements)]

    def judge(self, draw: Draw) -> Verdict:
        """Run a candidate on every measurement, `n_samples` times each, and compare its draws with exact ones.

        Raises `ShapeError` where the candidate does not return one image per row.
        """
        found = self._measure([self._run(draw, case, i) for i, case in enumerate(self._cases)])
        values, floors = found.all(self._even), self._floor
        scores = {}
        for name, value in values.items():
            statistic = self._statistic(found, name)
            draws = generator(self.seed, "oracle/bootstrap", name)
            low, high = statistic_interval(statistic, value, len(self._cases), RESAMPLES, draws)
            scores[name] = Score(value, low, high, floors[name])
        return Verdict(scores, torch.cat(found.tarp), torch.cat(found.pixels))

    def _statistic(self, found: _Found, name: str) -> Callable[[Tensor], float]:
        if name == "tarp_gap":
            return found.tarp_gap
        return found.coverage if name == "coverage_90" else lambda weights: found.rms(name, weights)

    def _run(self, draw: Draw, case: _Case, index: int) -> Tensor:
        n, shape = self.n_samples, self.prior.image_shape
        noise = randn(shape, generators(self.seed, f"oracle/start/{index}", range(n)))
        way = generators(self.seed, f"oracle/way/{index}", range(n))
        x = draw(case.measurement.select([0] * n), noise, way)
        if tuple(x.shape) != (n, *shape):
            raise ShapeError(f"the candidate was asked for {n} images {shape} and returned {tuple(x.shape)}")
        return x.detach().cpu().double().flatten(1)

    def _measure(self, drawn: Sequence[Tensor]) -> _Found:
        pairs = list(zip(self._cases, drawn, strict=True))
        # The same tie-breaking and truths for every candidate.
        placed = [case.ranks(x, generator(self.seed, "oracle/ranks", i)) for i, (case, x) in enumerate(pairs)]
        return _Found([case.squares(x) for case, x in pairs], [t for t, _ in placed], [p for _, p in placed])

    @property
    def _even(self) -> Tensor:
        return torch.ones(len(self._cases), dtype=torch.float64)

    @cached_property
    def _floor(self) -> dict[str, float]:
        """The scores of exact draws, averaged over sets (squares for distances)."""
        sets = [self._measure([case.draws[1 + s] for case in self._cases]).all(self._even) for s in range(FLOOR_SETS)]
        return {name: float(torch.tensor([s[name] for s in sets]).square().mean().sqrt()) for name in sets[0]}


def exact_sampler(prior: GaussianMixture, spread: float = 1.0, shift: float = 0.0) -> Draw:
    """Exact draws as a candidate; with another spread, or a mean shifted by `shift` pixel deviations, a wrong one.

    The wrong ones are decoys: a test that lets them pass could not tell a good sampler from a bad one.
    """

    def draw(measurement: Measurement, noise: Tensor, way: Sequence[torch.Generator]) -> Tensor:
        law = prior.given(measurement)
        deviation = law.rows([0]).covariance().diagonal(dim1=-2, dim2=-1).sqrt().view(1, *noise.shape[1:])
        return law.mean + spread * (law.sample(way) - law.mean) + shift * deviation

    return draw


# The decoys that every judgement must catch.
DECOYS: dict[str, dict[str, float]] = {
    "decoy_narrow": {"spread": 0.9},
    "decoy_wide": {"spread": 1.1},
    "decoy_shifted": {"shift": 0.2},
}
