"""A network inside the posterior of a Gaussian prior."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from invfusion.degradations import FAMILIES
from invfusion.diffusion.losses import Condition, DiffusionLoss, NPPCLoss
from invfusion.errors import CheckpointError, ConfigError, OperatorError
from invfusion.gaussian import GaussianPrior, solvers
from invfusion.gaussian.covariance import LowRank
from invfusion.models import (
    CapturedDenoiser,
    Denoiser,
    DenoiserConfig,
    LevelConfig,
    build_denoiser,
    captured,
    graphs,
    load_denoiser,
    preconditioning,
    save_denoiser,
)
from invfusion.models.denoiser import with_components
from invfusion.operators import MaskOperator, Measurement, StridedConvolution, base
from invfusion.oracle import GaussianMixture, Oracle, draw_measurements
from invfusion.rng import generator, generators, randn
from invfusion.samplers import DDRM, DPS, MMSE, NPPC, GaussianDraws, Heun, Wiener

SHAPE, B = (3, 8, 8), 3
ARCHITECTURE = DenoiserConfig(
    image_size=8,
    patch_size=2,
    levels=(LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1)),
    head_dim=8,
    mapping_width=16,
    mapping_depth=1,
    mapping_hidden=16,
    dropout=0.0,
    preconditioning="gaussian",
)
CONDITIONAL = [kind for kind in FAMILIES if kind != "null"]
# Those that leave much of every image open.
OPEN = ["strided_motion_blur", "patch_inpainting", "matrix", "box_outpainting", "box_inpainting"]


def images(n: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    size = torch.Size(shape).numel()
    factors = 0.2 * torch.randn(10, size, generator=generator(0, "factors"))
    z = torch.randn(n, 10, generator=generator(0, "z"))
    return (z @ factors + 0.05 * torch.randn(n, size, generator=generator(0, "rest"))).view(n, *shape)


PRIOR = GaussianPrior.fit(images(100), rank=20)


def fresh(**overrides: object) -> Denoiser:
    return build_denoiser(ARCHITECTURE, prior=PRIOR, **overrides).eval()


def shaken(**overrides: object) -> Denoiser:
    """Weights moved off their zeros, as training would."""
    denoiser = fresh(**overrides)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(0, "shake"))
    return denoiser


def measured(kind: str, sigma_y: float = 0.0, draw: int = 0) -> tuple[Tensor, Measurement]:
    settings = {"strided_motion_blur": {"strides": (2,)}, "matrix": {"max_rows": 20}}.get(kind, {})
    x, operator = images(B), FAMILIES[kind](**settings).sample(B, SHAPE, generator(draw, kind))
    return x, Measurement.of(x, operator, sigma_y, randn(operator.measurement_shape, generators(0, "n", range(B))))


def noisy(x: Tensor, sigma: Tensor) -> Tensor:
    return x + sigma.view(-1, 1, 1, 1) * randn(SHAPE, generators(0, "e", range(len(x))))


SIGMA = torch.tensor([0.01, 0.5, 20.0])


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("kind", FAMILIES)
def test_before_training_it_is_the_exact_posterior_denoiser(kind: str, sigma_y: float) -> None:
    x, measurement = measured(kind, sigma_y)
    seen = noisy(x, SIGMA)
    with torch.no_grad():
        denoised = fresh()(seen, SIGMA, measurement)
    torch.testing.assert_close(denoised, PRIOR.posterior(measurement).denoise(seen, SIGMA), rtol=0, atol=1e-6)


def test_a_measurement_that_leaves_nothing_open_is_learned_from_without_harm() -> None:
    x, model = images(B), shaken().train()
    measurement = Measurement.of(x, MaskOperator(SHAPE, torch.ones(B, 1, *SHAPE[1:])))
    loss = DiffusionLoss().at(model, x, Condition(measurement), SIGMA, torch.ones_like(x)).per_sample
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_beside_a_noisy_image_another_may_have_nothing_open() -> None:
    x, model = images(2), shaken()
    everything = FAMILIES["matrix"](min_rows=192, max_rows=192).sample(2, SHAPE, generator(0, "H"))
    noise = randn(everything.measurement_shape, generators(0, "n", range(2)))
    measurement = Measurement.of(x, everything, torch.tensor([0.0, 0.1]), noise)
    with torch.no_grad():
        denoised = model(noisy(x, SIGMA[:2]), SIGMA[:2], measurement)
    assert bool(denoised.isfinite().all())
    torch.testing.assert_close(denoised[0], x[0], rtol=0, atol=0.01)


class _Asked(TorchDispatchMode):
    """Which operations read a value of a tensor: on an accelerator these wait, and no CUDA graph can hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.by: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "equal.default", "check_errors")):
            self.by.append(str(func))
        return func(*args, **(kwargs or {}))


SETTINGS = {"low rank": {}, "coloured": {"form": "coloured"}, "clusters": {"clusters": 3}}


def prior_of(form: str) -> GaussianPrior:
    if form == "clusters":
        pytest.importorskip("sklearn")
    return GaussianPrior.fit(images(100), rank=20, **SETTINGS[form])


@pytest.mark.parametrize("form", SETTINGS)
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("kind", FAMILIES)
def test_later_calls_on_a_batch_ask_for_no_value(
    kind: str, sigma_y: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_denoiser(ARCHITECTURE, prior=prior_of(form)).eval()
    x, measurement = measured(kind, sigma_y)
    asked = _Asked()
    # As on an accelerator.
    for module in (solvers, base):
        monkeypatch.setattr(module, "answers_at_once", lambda _: False)
    # The rank's own solver too, for these few measurements.
    monkeypatch.setattr(solvers, "SMALL", 8)
    with torch.no_grad():
        model(noisy(x, SIGMA), SIGMA, measurement)
        with asked:
            model(noisy(x, SIGMA), 2 * SIGMA, measurement)
    assert not asked.by


@pytest.mark.parametrize("form", SETTINGS)
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("kind", FAMILIES)
def test_conditioning_that_is_recorded_asks_for_no_value(
    kind: str, sigma_y: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = prior_of(form)
    model = build_denoiser(ARCHITECTURE, prior=prior).train()
    x, measurement = measured(kind, sigma_y)
    for module in (solvers, base):
        monkeypatch.setattr(module, "answers_at_once", lambda _: False)
    monkeypatch.setattr(base, "holds_values", lambda _: False)
    asked = _Asked()
    with asked:
        model(noisy(x, SIGMA), SIGMA, measurement)
    asks = prior.asks_for_values(measurement.operator)
    assert bool(asked.by) <= asks
    assert not (asks and kind in ("strided_motion_blur", "patch_inpainting", "box_inpainting", "scribble", "null"))


class TestReplays:
    """CUDA graphs, with a stand-in that computes again where a GPU would replay."""

    @pytest.fixture
    def recordings(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        made: list[object] = []

        def recorded(
            function: Callable[[], graphs.Outputs], device: torch.device, pool: object = None
        ) -> tuple[Callable[[], None], graphs.Outputs]:
            assert device.type == "cpu"
            results = function()
            made.append(results)

            def replay() -> None:
                torch._foreach_copy_(list(results), list(function()))

            return replay, results

        monkeypatch.setattr(graphs, "recorded", recorded)
        monkeypatch.setattr(captured, "recorded", recorded)
        monkeypatch.setattr(preconditioning, "can_record", lambda _: True)
        return made

    def test_training_conditions_each_batch_by_a_replay(self, recordings: list[object]) -> None:
        """Of a scribble's mask, what the operator holds is not what defines it."""
        model, plain, outputs = shaken().train(), shaken(), []
        for kind in ("strided_motion_blur", "patch_inpainting", "scribble") * 2:
            for sigma_y in (0.0, 0.1):
                x, measurement = measured(kind, sigma_y, draw=len(outputs))
                call = noisy(x, SIGMA), SIGMA, measurement
                outputs.append((model(*call), plain(*call).detach()))
        for replayed, expected in outputs:
            torch.testing.assert_close(replayed, expected, rtol=0, atol=0)
        assert len(recordings) == 6

    def test_what_else_an_operator_is_defined_by_is_told_apart(self, recordings: list[object]) -> None:
        model, plain = shaken().train(), shaken()
        x, measurement = measured("strided_motion_blur")
        kernel = measurement.operator.tensors()["kernel"]
        for cutoff in (0.01, 0.5):
            call = noisy(x, SIGMA), SIGMA, Measurement.of(x, StridedConvolution(SHAPE, kernel, 2, cutoff))
            torch.testing.assert_close(model(*call), plain(*call), rtol=0, atol=0)
        assert len(recordings) == 2

    def test_what_cannot_be_recorded_is_computed_as_it_was(self, recordings: list[object]) -> None:
        x, measurement = measured("matrix")
        shaken().train()(noisy(x, SIGMA), SIGMA, measurement)
        blur = measured("strided_motion_blur")[1]
        learned = Measurement(blur.y.clone().requires_grad_(), blur.operator)
        shaken().train()(noisy(x, SIGMA), SIGMA, learned).sum().backward()
        assert learned.y.grad is not None
        with_components(shaken(), 2).train()(noisy(x, SIGMA), SIGMA, blur)
        with torch.inference_mode():
            shaken().train()(noisy(x, SIGMA), SIGMA, blur)
        assert not recordings

    def test_what_fails_to_be_recorded_is_trained_on_all_the_same(
        self, recordings: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(*_: object) -> None:
            raise OperatorError("it asks for numbers")

        monkeypatch.setattr(graphs, "recorded", fails)
        model, plain = shaken().train(), shaken()
        x, measurement = measured("patch_inpainting")
        call = noisy(x, SIGMA), SIGMA, measurement
        for _ in range(2):
            torch.testing.assert_close(model(*call), plain(*call), rtol=0, atol=0)
        assert caplog.text.count("slower than it could be on the operator 'mask'") == 1
        assert not recordings

    def test_a_copy_and_another_prior_are_recorded_anew(self, recordings: list[object]) -> None:
        x, measurement = measured("strided_motion_blur")
        model = shaken().train()
        for denoiser in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            denoiser(noisy(x, SIGMA), SIGMA, measurement)
        assert len(recordings) == 3
        model.preconditioning.prior = GaussianPrior.fit(images(100), rank=20)
        model(noisy(x, SIGMA), SIGMA, measurement)
        assert len(recordings) == 4

    def test_the_recordings_that_were_used_longest_ago_go(
        self, recordings: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(graphs, "MOST_RECORDINGS", 1)
        model = shaken().train()
        for kind in ("strided_motion_blur", "patch_inpainting", "strided_motion_blur"):
            x, measurement = measured(kind)
            model(noisy(x, SIGMA), SIGMA, measurement)
        assert len(recordings) == 3

    def test_a_captured_denoiser_keeps_what_its_recording_reads(self, recordings: list[object]) -> None:
        denoiser = shaken()
        network = CapturedDenoiser(denoiser)
        x, measurement = measured("patch_inpainting")
        expected = denoiser(noisy(x, SIGMA), SIGMA, measurement)
        network(x, SIGMA, measurement)
        conditioned = denoiser.preconditioning.conditioned
        assert conditioned is not None
        posterior = weakref.ref(conditioned[1])
        del conditioned
        denoiser(x, SIGMA, measured("strided_motion_blur")[1])
        gc.collect()
        assert posterior() is not None
        torch.testing.assert_close(network(noisy(x, SIGMA), SIGMA, measurement), expected, rtol=0, atol=0)


class TestTheOracleBeforeTraining:
    """With the prior that truly made the images."""

    law = GaussianMixture.of_factors(
        (1, 4, 4),
        torch.ones(1),
        0.3 * torch.randn(1, 16, generator=generator(0, "mean")),
        0.4 * torch.randn(1, 16, 3, generator=generator(0, "law")),
        torch.full((16,), 0.02),
    )

    def model(self) -> Denoiser:
        variances, basis = torch.linalg.eigh(self.law.covariance()[0])
        covariance = LowRank(basis.view(1, 4, 4, 16), variances - variances[0] / 2, variances[0] / 2)
        tiny = {"channels": 1, "image_size": 4, "levels": (LevelConfig(width=24, depth=1),)}
        return build_denoiser(ARCHITECTURE, prior=GaussianPrior(self.law.mean[0], covariance), **tiny).eval()

    @torch.no_grad()
    def test_its_one_step_estimate_is_bayes_own(self) -> None:
        settings = {"strided_motion_blur": {"strides": [2]}, "box_inpainting": {}, "matrix": {"max_rows": 6}}
        for kind, setting in settings.items():
            for sigma_y in (0.0, 0.1):
                family = FAMILIES[kind](**setting)
                for measurement in draw_measurements(self.law, family, 4, sigma_y):
                    truth = self.law.given(measurement)
                    estimate = MMSE(sigma=1000.0).sample(self.model(), measurement).x
                    excess = (estimate.double() - truth.mean).square().sum() / truth.variances.sum()
                    assert float(excess) < 1e-3

    @torch.no_grad()
    def test_heun_reaches_the_noise_floor(self) -> None:
        model = self.model()
        measurements = draw_measurements(self.law, FAMILIES["matrix"](max_rows=6), 3, 0.1)
        verdict = Oracle(self.law, measurements, n_samples=256).judge(
            lambda m, noise, way: Heun(n_steps=40).sample(model, m, noise, generators=way).x
        )
        assert verdict.passes, str(verdict)


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_noiseless_measurements_are_kept_to_rounding(kind: str) -> None:
    x, measurement = measured(kind)
    with torch.no_grad():
        denoised = shaken()(noisy(x, SIGMA), SIGMA, measurement)
        plain = fresh()(noisy(x, SIGMA), SIGMA, measurement)
    assert kind not in OPEN or float((denoised - plain).abs().max()) > 1e-3
    torch.testing.assert_close(measurement.operator.H(denoised), measurement.y, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", OPEN)
def test_noisy_measurements_are_weighted(kind: str) -> None:
    """The more precise, the less the network may move what was seen; never to a halt."""
    moved = []
    for sigma_y in (0.01, 0.3):
        x, measurement = measured(kind, sigma_y)
        with torch.no_grad():
            pair = [model(noisy(x, SIGMA), SIGMA, measurement) for model in (shaken(), fresh())]
        difference = pair[0] - pair[1]
        seen = measurement.operator.H_pinv(measurement.operator.H(difference))
        moved.append(float(seen.square().sum() / difference.square().sum()))
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize("kind", ["strided_motion_blur", "box_outpainting", "matrix"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_the_log_variance_starts_at_that_of_the_error(kind: str, sigma_y: float) -> None:
    """The weight is one over the mean posterior variance: the weighted loss of the prior's own images is one."""
    x = PRIOR.unconditional(400).sample(generators(0, "own", range(400)))
    family = FAMILIES[kind](**({"max_rows": 16} if kind == "matrix" else {}))
    operator = family.sample(400, SHAPE, generator(0, "H"))
    noise = randn(operator.measurement_shape, generators(0, "noise", range(400)))
    measurement = Measurement.of(x, operator, sigma_y, noise)
    loss = DiffusionLoss(share_at_sigma_max=0.3)(fresh(), x, Condition(measurement), generator(0, "loss"))
    assert float(loss.logs["weighted_mse"].mean()) == pytest.approx(1, abs=0.05)


def test_what_other_models_may_know() -> None:
    x, measurement = measured("matrix")
    seen = noisy(x, SIGMA)
    alone = PRIOR.unconditional(B).denoise(seen, SIGMA)
    for variant in ("unconditional", "palette"):
        with torch.no_grad():
            torch.testing.assert_close(fresh(variant=variant)(seen, SIGMA, measurement), alone)
    with torch.no_grad():
        told, untold = shaken(variant="palette"), shaken(variant="unconditional")
        assert not torch.allclose(told(seen, SIGMA, measurement), told(seen, SIGMA))
        assert torch.equal(untold(seen, SIGMA, measurement), untold(seen, SIGMA))


def test_the_network_is_told_sigma_y() -> None:
    x, measurement = measured("box_inpainting", 0.05)
    louder = Measurement(measurement.y, measurement.operator, measurement.sigma_y * 4)
    denoiser, seen = shaken(), noisy(x, SIGMA)
    with torch.no_grad():
        around = denoiser.preconditioning(seen, SIGMA, measurement)
        quiet, loud = (denoiser._raw(around, m, None, None) for m in (measurement, louder))
    assert not torch.allclose(quiet, loud)


def test_edm_models_can_be_told_sigma_y_and_are_not_by_default() -> None:
    plain = build_denoiser(ARCHITECTURE, preconditioning="edm")
    told = build_denoiser(ARCHITECTURE, preconditioning="edm", sees_sigma_y=True)
    extra = set(told.state_dict()) - set(plain.state_dict())
    assert extra == {"net.conditioning.sigma_y_features.weight", "net.conditioning.sigma_y_proj.weight"}
    assert not bool(told.net.conditioning.sigma_y_proj.weight.any())


def test_a_sampler_conditions_the_prior_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, measurement = measured("matrix", 0.1)
    calls = []
    posterior = GaussianPrior.posterior
    monkeypatch.setattr(GaussianPrior, "posterior", lambda self, m: calls.append(m) or posterior(self, m))
    Heun(n_steps=3).sample(fresh(), measurement)
    assert calls == [measurement]


def test_nppc_starts_from_the_posterior_s_own_directions() -> None:
    _, measurement = measured("box_outpainting")
    with torch.no_grad():
        output = NPPC().sample(with_components(fresh(), 2).eval(), measurement)
    directions, deviations = PRIOR.posterior(measurement).principal_components(2)
    # The head of the directions starts slightly off zero: a few per cent of each.
    torch.testing.assert_close(output.stds, deviations, rtol=5e-2, atol=0)
    torch.testing.assert_close(output.x, PRIOR.posterior(measurement).mean, rtol=0, atol=1e-3)
    aligned = (output.components * directions).sum((2, 3, 4))
    assert float(aligned.min()) > 0.95
    loss = NPPCLoss()(with_components(shaken(), 2), images(B), Condition(measurement), generator(0, "nppc"))
    loss.per_sample.sum().backward()


@pytest.mark.parametrize("sampler", [Wiener(), GaussianDraws()])
def test_baselines_take_a_prior_or_its_model(sampler: Wiener | GaussianDraws) -> None:
    _, measurement = measured("matrix", 0.1)
    of_prior, of_model = (sampler.sample(source, measurement) for source in (PRIOR, fresh()))
    assert of_prior.nfe == 0
    assert torch.equal(of_prior.x, of_model.x)


def test_the_checkpoint_carries_the_prior(tmp_path: Path) -> None:
    denoiser = shaken()
    save_denoiser(denoiser, tmp_path / "model", {})
    loaded = load_denoiser(tmp_path / "model")
    x, measurement = measured("strided_motion_blur", 0.1)
    with torch.no_grad():
        assert torch.equal(loaded(x, SIGMA, measurement), denoiser(x, SIGMA, measurement))
    (tmp_path / "model" / "prior.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"prior.safetensors is missing"):
        load_denoiser(tmp_path / "model")
    GaussianPrior.fit(images(20, (3, 4, 4)), rank=4).save(tmp_path / "model" / "prior.safetensors")
    with pytest.raises(CheckpointError, match=r"fitted to images \(3, 4, 4\)"):
        load_denoiser(tmp_path / "model")


def test_the_prior_is_no_part_of_the_weights() -> None:
    denoiser = fresh()
    assert not any("prior" in name for name in denoiser.state_dict())
    assert copy.deepcopy(denoiser).prior is not denoiser.prior


def test_config_and_prior_must_fit() -> None:
    with pytest.raises(ConfigError, match="needs its prior"):
        build_denoiser(ARCHITECTURE)
    with pytest.raises(ConfigError, match="takes no Gaussian prior"):
        build_denoiser(ARCHITECTURE, preconditioning="edm", prior=PRIOR)
    with pytest.raises(ConfigError, match="but the model takes"):
        build_denoiser(ARCHITECTURE, image_size=16, prior=PRIOR)


@pytest.mark.parametrize("form", SETTINGS)
def test_what_was_made_in_inference_mode_is_not_differentiated(form: str) -> None:
    """One sampler that asks what is known of nothing measured, and after it one that needs gradients."""
    denoiser = build_denoiser(ARCHITECTURE, prior=prior_of(form), variant="unconditional").eval()
    x, measurement = measured("box_inpainting")
    with torch.inference_mode():
        DDRM(n_steps=2).sample(denoiser, measurement, x)
        restored = DPS(n_steps=2).sample(denoiser, measurement, x).x
    assert restored.isfinite().all()
