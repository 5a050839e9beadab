"""One step: what a micro-batch draws, how gradients add up, and what happens when numbers are not finite."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from invfusion.data import Batch, TrainingStream
from invfusion.degradations import FAMILIES
from invfusion.diffusion.losses import DiffusionLoss, MMSELoss, NPPCLoss
from invfusion.errors import DataError, NonFiniteError
from invfusion.models import Denoiser, build_denoiser
from invfusion.noise import GaussianNoise
from invfusion.training import step as module
from invfusion.training.distributed import Processes
from invfusion.training.step import Stepper, micro_batch_loss, seeded_dropout
from invfusion.training.task import Task, draw_class_labels, draw_measurement


def stepper(task: Task, **overrides: Any) -> Stepper:
    denoiser = build_denoiser(tiny.ARCHITECTURE, **overrides).train()
    return Stepper(task, denoiser, Processes(), tiny.CPU)


def stream(folder: Path, task: Task) -> TrainingStream:
    return TrainingStream(tiny.stage(folder), task.seed, task.config.micro_batch_size)


def grads(denoiser: Denoiser) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}


def test_adams_step_is_that_of_the_published_sum(tmp_path: Path) -> None:
    """Where the epsilon matters most: gradients about as small as it."""
    trained = stepper(tiny.task(), dropout=0.0)
    numbers = torch.Size(trained.denoiser.image_shape).numel()
    published = torch.nn.Parameter(torch.zeros(5))
    ours = torch.nn.Parameter(torch.zeros(5))
    group = trained.optimizer.param_groups[0]
    gradient = torch.tensor([3e-9, -1e-8, 2e-8, 1e-6, 1.0])
    for parameter, grad, eps in ((published, gradient, 1e-8), (ours, gradient / numbers, group["eps"])):
        parameter.grad = grad.clone()
        torch.optim.Adam([parameter], lr=1.0, betas=group["betas"], eps=eps).step()
    torch.testing.assert_close(ours, published)


class TestGradients:
    def test_micro_batches_add_up_to_the_mean_over_the_batch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = tiny.task()
        trained = stepper(task, dropout=0.0)
        batches = stream(tmp_path, task)
        seen: dict[str, Tensor] = {}
        monkeypatch.setattr(trained, "_update", lambda _: seen.update(grads(trained.denoiser)))
        numbers = trained.step(16, iter([batches.batch(16), batches.batch(20)]))

        fresh = build_denoiser(tiny.ARCHITECTURE, dropout=0.0)
        losses = [micro_batch_loss(task, fresh, batches.batch(n), trained.draws(n), 3, n).per_sample for n in (16, 20)]
        mean = torch.cat(losses).mean()
        mean.backward()
        assert numbers["loss"] == pytest.approx(float(mean.detach()))
        expected = grads(fresh)
        assert seen.keys() == expected.keys()
        for name, grad in seen.items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)
        norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt()
        assert numbers["grad_norm"] == pytest.approx(float(norm), rel=1e-4)

    @pytest.mark.parametrize("variant", ["invfusion", "palette", "unconditional"])
    @pytest.mark.parametrize("loss", [DiffusionLoss(), MMSELoss(), NPPCLoss()])
    @pytest.mark.parametrize("family", ["matrix", "null"])
    def test_every_trained_weight_has_a_part_in_every_step(
        self, tmp_path: Path, variant: str, loss: Any, family: str
    ) -> None:
        """Else data-parallel training would wait forever, and Adam would forget at different paces."""
        task = tiny.task(loss=loss, degradation=FAMILIES[family]() if variant != "unconditional" else None)
        trained = stepper(task, variant=variant, n_components=2 if loss.kind == "nppc" else 0)
        trained._accumulate(stream(tmp_path, task).batch(0), 0, last=True)
        assert all(p.grad is not None for p in trained.parameters)

    def test_the_log_variance_stays_where_it_has_no_part(self, tmp_path: Path) -> None:
        task = tiny.task(loss=MMSELoss())
        trained = stepper(task)
        before = trained.denoiser.log_variance.head.weight.clone()
        trained.step(0, stream(tmp_path, task).iterate(0, 8))
        assert torch.equal(trained.denoiser.log_variance.head.weight, before)


class TestPrecision:
    @pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.05)])
    def test_low_precision_stays_near(self, tmp_path: Path, precision: str, tolerance: float) -> None:
        losses = {}
        for name in ("fp32", precision):
            task = tiny.task(precision=name)
            trained = stepper(task)
            batches = stream(tmp_path, task).iterate(0, 24)
            losses[name] = [trained.step(nimg, batches)["loss"] for nimg in (0, 8, 16)]
        assert losses[precision] == pytest.approx(losses["fp32"], rel=tolerance)
        assert losses[precision] != losses["fp32"]

    def test_a_killed_fp16_run_continues_bit_for_bit(self, tmp_path: Path) -> None:
        task = tiny.task(images=48, precision="fp16")
        left = iter([False, False, True])
        tiny.run(tmp_path / "killed", task, should_stop=lambda: next(left))
        for name in ("killed", "whole"):
            tiny.run(tmp_path / name, task)
        assert tiny.files(tmp_path / "killed") == tiny.files(tmp_path / "whole")


class TestNonFinite:
    def poison(self, monkeypatch: pytest.MonkeyPatch, rows: list[int], start: int) -> None:
        """Make the loss of some rows of one micro-batch not-a-number."""
        original = module.micro_batch_loss

        def poisoned(task: Task, network: Any, batch: Batch, operator: Any, n_classes: int, index: int) -> Any:
            output = original(task, network, batch, operator, n_classes, index)
            if index == start:
                factor = torch.ones(len(batch))
                factor[rows] = float("nan")
                output = type(output)(output.per_sample * factor, output.logs)
            return output

        monkeypatch.setattr(module, "micro_batch_loss", poisoned)

    def test_the_guilty_samples_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.poison(monkeypatch, [1, 3], start=12)
        task = tiny.task()
        keys = stream(tmp_path, task).batch(12).keys
        with pytest.raises(NonFiniteError, match=f"after 8 images.*samples {keys[1]}, {keys[3]};"):
            tiny.run(tmp_path, task)

    def test_the_last_checkpoint_is_sound_and_training_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            self.poison(patch, [0], start=60)
            with pytest.raises(NonFiniteError, match="after 56 images"):
                tiny.run(tmp_path)
        tiny.run(tmp_path)
        tiny.run(tmp_path / "whole")
        assert tiny.files(tmp_path) == tiny.files(tmp_path / "whole")

    def test_gradients_are_watched_too(self, tmp_path: Path) -> None:
        task = tiny.task()
        trained = stepper(task)
        trained.parameters[0].register_hook(lambda grad: grad * float("inf"))
        batch = stream(tmp_path, task)
        before = [p.clone() for p in trained.parameters]
        with pytest.raises(
            NonFiniteError, match=f"the gradient is not finite after 0 images.*{batch.batch(4).keys[0]}"
        ):
            trained.step(0, batch.iterate(0, 8))
        assert all(torch.equal(p, b) for p, b in zip(trained.parameters, before, strict=True))

    def test_fp16_overflows_are_skipped_but_not_forever(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_OVERFLOWS", 3)
        task = tiny.task(precision="fp16")
        trained = stepper(task)
        trained.parameters[0].register_hook(lambda grad: grad * float("inf"))
        before, scale = trained.parameters[0].clone(), trained.scaler.get_scale()
        batches = stream(tmp_path, task).iterate(0, 80)
        for step in range(3):
            trained.step(8 * step, batches)
        assert torch.equal(trained.parameters[0], before)
        assert trained.scaler.get_scale() == scale / 8
        with pytest.raises(NonFiniteError, match="gradient"):
            trained.step(24, batches)


class TestDraws:
    def test_sigma_y_lies_in_its_range(self) -> None:
        x = tiny.normal(256, 3, 8, 8)
        task = tiny.task(noise=GaussianNoise(sigma_y=(0.1, 0.4)), degradation=FAMILIES["matrix"]())
        measurement = draw_measurement(task, x, 0)
        assert measurement is not None
        levels = measurement.sigma_y
        assert 0.1 <= levels.min() < 0.12 < 0.38 < levels.max() <= 0.4
        noise = (measurement.y - measurement.operator.H(x)) / levels[:, None]
        assert noise.std() == pytest.approx(1, abs=0.02)

    def test_a_fixed_sigma_y(self) -> None:
        measurement = draw_measurement(tiny.task(noise=GaussianNoise(sigma_y=(0.1, 0.1))), tiny.normal(4, 3, 8, 8), 0)
        assert measurement is not None
        assert measurement.sigma_y.tolist() == pytest.approx([0.1] * 4)

    def test_noiseless_measurements_are_exact(self) -> None:
        x = tiny.normal(4, 3, 8, 8)
        measurement = draw_measurement(tiny.task(noise=GaussianNoise(sigma_y=(0.0, 0.0))), x, 0)
        assert measurement is not None
        assert torch.equal(measurement.y, measurement.operator.H(x))

    def test_unconditional_training_draws_none(self) -> None:
        assert draw_measurement(tiny.task(degradation=None), tiny.normal(4, 3, 8, 8), 0) is None

    def test_measurements_depend_on_the_image_count_alone(self) -> None:
        x = tiny.normal(4, 3, 8, 8)
        first, again, later = (draw_measurement(tiny.task(degradation=FAMILIES["matrix"]()), x, n) for n in (0, 0, 4))
        assert first is not None
        assert again is not None
        assert later is not None
        assert torch.equal(first.y, again.y)
        assert first.y.shape != later.y.shape or not torch.equal(first.y, later.y)

    def test_labels_are_dropped_at_the_asked_rate(self) -> None:
        labels = torch.arange(4000) % 3
        batch = Batch(torch.empty(0), [""] * 4000, labels)
        kept = draw_class_labels(tiny.task(label_dropout=0.1), batch, 3, 0)
        assert kept is not None
        dropped = kept == 3
        assert dropped.float().mean() == pytest.approx(0.1, abs=0.02)
        assert torch.equal(kept[~dropped], labels[~dropped])

    def test_missing_labels_are_no_class(self) -> None:
        batch = Batch(torch.empty(0), ["", ""], torch.tensor([-1, 2]))
        assert draw_class_labels(tiny.task(label_dropout=0.0), batch, 3, 0).tolist() == [3, 2]
        assert draw_class_labels(tiny.task(), batch, 0, 0) is None

    def test_dropout_is_a_function_of_the_seed(self) -> None:
        layer, x = torch.nn.Dropout(0.5), torch.ones(64)
        masks = []
        for seed in (1, 1, 2):
            torch.rand(1)
            with seeded_dropout(seed, tiny.CPU):
                masks.append(layer(x))
        assert torch.equal(masks[0], masks[1])
        assert not torch.equal(masks[0], masks[2])


class TestFit:
    def test_images_of_another_size(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"staged images have the shape \(3, 8, 8\)"):
            tiny.run(tmp_path, denoiser=build_denoiser(tiny.ARCHITECTURE, image_size=16))

    def test_more_labels_than_classes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="class label 2, but the model knows 2 classes"):
            tiny.run(tmp_path, denoiser=build_denoiser(tiny.ARCHITECTURE, n_classes=2))
