import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.account import Conditioning, Line, Machine, account, staging, stand_in, summary, table
from components.params import Params, PriorFitConfig, params_from
from components.profiles import load_profile, merged, profile_values
from components.reporting.experiments import experiment_names
from components.training import dry_run as component
from components.training.dry_run import dry_run
from invfusion.data.manifest import MANIFEST, Manifest, ShardEntry, write_manifest
from invfusion.data.staged import StagedManifest
from invfusion.gaussian.covariance import Coloured
from invfusion.metrics.tools.features import INCEPTION_FILE
from invfusion.models.activations import GIB
from invfusion.noise import GaussianNoise


def cheap(params: Params, rank: int = 8) -> Params:
    """With a prior that takes next to no time: a profile's own takes seconds to condition."""
    prior = PriorFitConfig(rank=rank)
    return params.model_copy(update={"data": params.data.model_copy(update={"gaussian_prior": prior})})


def test_the_default_profile_tries_every_family(caplog: pytest.LogCaptureFixture) -> None:
    params = cheap(load_profile())
    with caplog.at_level(logging.INFO):
        lines = dry_run(params)
    said = caplog.text
    assert {line.what for line in lines if line.stage == "train"} == set(params.train.models)
    assert {line.what for line in lines if line.stage == "distill"} == set(params.train.distilled)
    calls = {line.what: line.calls for line in lines if line.calls}
    assert calls["strided_motion_blur: DDRM"] == 25
    assert calls["matrix: InvFusion"] == 10
    assert calls["matrix: InvFusion MMSE"] == calls["box_inpainting: NPPC"] == 1
    assert "does not fit" not in said
    assert lines[0].stage == "stage"
    assert ("FID, CFID and KID" in said) is not (params.evaluate.weights_dir / INCEPTION_FILE).is_file()
    assert ("no dataset can be read in data/digits16" in said) is not Path("data/digits16/manifest.json").is_file()
    assert all(f"{model} " in said for model in params.train.models)
    assert [kind in said for kind in ("'strided_convolution'", "'mask'", "'matrix'", "'null'")] == [True] * 4


def test_a_profile_without_invfusion_tries_what_it_trains(caplog: pytest.LogCaptureFixture) -> None:
    changes = {
        "train": {"models": ["unconditional", "indi"]},
        "degradation": {"kind": "box_inpainting"},
        "register": {"model": "indi"},
    }
    values = merged(profile_values("digits16"), changes)
    values["train"]["distilled"] = {}
    values["methods"]["InDI"] = {"model": "indi"}
    with caplog.at_level(logging.INFO):
        dry_run(params_from(values, "test"))
    assert "operator 'mask'" in caplog.text


SIZES = {"unconditional": 305_474_315, "palette": 305_478_923, "invfusion": 375_280_907, "invfusion_g": 375_280_907}


def of_the_paper(rank: int = 8, **evaluate: Any) -> tuple[Params, list[Line]]:
    """The account of FFHQ64, but for the rank of its prior."""
    params = cheap(load_profile("ffhq64"), rank)
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update=evaluate)})
    return params, account(params, SIZES)


def test_the_papers_training_takes_a_day_on_its_gpus() -> None:
    _, lines = of_the_paper()
    line = next(line for line in lines if line.what == "invfusion")
    assert line.flops == pytest.approx(8.2e18, rel=0.02), "2^25 images, three passes of 81.3 GFLOP"
    assert line.flops / (8 * Machine.named("a40").flops) == pytest.approx(86_400, rel=0.1)


def test_what_does_not_fit_says_why() -> None:
    _, lines = of_the_paper()
    small = Machine("a laptop", flops=1e11, memory=8e9, disk=1e9)
    rows = table(lines, small)
    (row,) = [row for row in rows if "train / invfusion " in row]
    assert re.search(r"does not fit: \d+ GiB of memory, 7 are there; \d+ days", row)
    assert "GiB of disk, 1 are free" in rows[-1]


def test_methods_that_differentiate_keep_what_a_backward_pass_needs() -> None:
    _, lines = of_the_paper(methods=["DDRM", "DPS"])
    memory = {line.what: line.memory for line in lines}
    assert memory["matrix: DPS"] - memory["matrix: DDRM"] > 20e9, "64 images of 350 MB"


def test_every_table_has_its_account(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings, among them those of its own; a table that needs classes says so."""
    monkeypatch.setattr(component, "STAGED", tmp_path)
    with caplog.at_level(logging.INFO):
        dry_run(cheap(load_profile()), gpu="a40", tables=True)
    said = {line.partition(":")[0]: line for line in caplog.messages}
    assert set(experiment_names()) <= set(said)
    assert "training" in said["table_01"]
    assert all(name in said["table_01"] for name in ("unconditional", "palette", "indi", "invfusion_g"))
    assert "has no class labels" in said["table_02"]
    assert "('digits16' is not staged, which would say)" in said["table_02"]
    assert all(name in said["table_08"] for name in ("level_1 ", "levels_1_2 "))
    assert "levels_1_3" not in said["table_08"], "of an architecture with two"
    assert "palette_mmse" in said["table_07"]
    assert "restoring" in said["figure_03"]
    assert "this machine's CPU" in caplog.text
    assert ", Gaussian " in said["table_01"], "of InvFusion-G"
    assert ", Gaussian " not in said["figure_05"], "of InvFusion alone"


def test_staged_data_say_whether_there_are_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "STAGED", tmp_path)
    monkeypatch.setattr(component, "experiment_names", lambda: ["table_10"])
    params, machine = cheap(load_profile()), Machine("a40", flops=1e13, memory=1e12, disk=1e12)
    prior = stand_in(PriorFitConfig(rank=8), (3, 16, 16))
    staged = StagedManifest(
        name="digits16", image_size=16, channels=3, class_names=["cat", "dog"], n_samples={}, digests={}, shards={}
    )
    for changes, said in (
        ({}, "training"),
        ({"class_names": []}, "choose one that has, as folders named by class"),
        ({"name": "pets"}, "('digits16' is not staged, which would say)"),
    ):
        (tmp_path / MANIFEST).write_text(staged.model_copy(update=changes).model_dump_json())
        *_, line = component.of_tables(params, machine, prior)
        assert said in line
    (tmp_path / MANIFEST).write_text("damaged")
    *_, line = component.of_tables(params, machine, prior)
    assert "is not staged" in line


def test_evaluation_grows_with_images_and_draws() -> None:
    (_, few), (_, many) = of_the_paper(n_images=1000, calibration_images=0), of_the_paper(n_images=2000)
    one, other = (next(x for x in lines if x.what == "matrix: InvFusion") for lines in (few, many))
    draws = 7
    assert other.flops / one.flops == pytest.approx((2000 + 500 * draws) / (1000 + 6 * 3))


def by_name(lines: list[Line]) -> dict[str, Line]:
    return {line.what: line for line in lines}


def test_the_gaussian_posterior_takes_time() -> None:
    """Of models that have one, of what is distilled from them, and of methods that have nothing else."""
    _, lines = of_the_paper(calibration_images=0)
    line, machine = by_name(lines), Machine("a40", flops=1e13, memory=1e12, disk=1e12)
    assert line["invfusion"].gaussian_seconds == line["palette"].gaussian_seconds == 0
    assert line["invfusion_g"].flops == pytest.approx(line["invfusion"].flops)
    assert line["invfusion_g"].seconds(machine) > line["invfusion"].seconds(machine)
    assert line["mmse"].gaussian_seconds > 0
    for family in ("strided_motion_blur", "patch_inpainting", "matrix"):
        assert line[f"{family}: H_pinv y"].gaussian_seconds == line[f"{family}: InvFusion"].gaussian_seconds == 0
        wiener = line[f"{family}: Wiener"]
        assert (wiener.flops, wiener.calls) == (0, 0)
        assert wiener.seconds(machine) >= wiener.gaussian_seconds > 0
        many, one = line[f"{family}: InvFusion-G"], line[f"{family}: InvFusion-G MMSE"]
        assert many.gaussian_seconds > 2 * one.gaussian_seconds > 0, "63 calls, of which one conditions"
    assert line["box_inpainting: NPPC"].gaussian_seconds > 2 * line["box_inpainting: MMSE"].gaussian_seconds, (
        "principal components are products with the covariance"
    )


def test_conditioning_is_counted_once_for_all_calls() -> None:
    assert [Conditioning(first=2.0, again=0.5).seconds(calls) for calls in (0, 1, 3)] == [2.0, 2.0, 3.0]


def test_the_gaussian_adds_to_the_network_and_not_to_the_background() -> None:
    machine = Machine("fast", flops=1e12, memory=1e12, disk=1e12)
    line = Line("train", "a", flops=4e12, cpu_seconds=5.0, memory=0, disk=0, gaussian_seconds=3.0)
    assert line.seconds(machine) == 7.0
    assert Line("train", "a", 4e12, cpu_seconds=9.0, memory=0, disk=0, gaussian_seconds=3.0).seconds(machine) == 9.0


def test_on_a_gpu_the_gaussian_has_the_share_that_it_had_on_one() -> None:
    """What a CPU takes for it says nothing of a GPU; where no network runs there is no share of one."""
    gpu = Machine("a40", flops=1e12, memory=1e12, disk=1e12, is_gpu=True)
    training = Line("train", "a", flops=100e12, cpu_seconds=0, memory=0, disk=0, gaussian_seconds=1e6)
    assert training.seconds(gpu) == pytest.approx(106)
    assert replace(training, calls=5).seconds(gpu) == pytest.approx(117)
    assert replace(training, gaussian_seconds=0.0).seconds(gpu) == pytest.approx(100)
    assert replace(training, flops=0.0, gaussian_seconds=7.0).seconds(gpu) == 7


def test_the_account_says_what_of_a_time_is_the_gaussians() -> None:
    machine = Machine("fast", flops=1e12, memory=1e12, disk=1e15)
    with_it = Line("train", "invfusion_g", 1e12, 0, 0, 0, gaussian_seconds=59.0 * 86_400)
    without = Line("evaluate", "matrix: InvFusion", 1e12, 0, 0, 0)
    rows = table([with_it, without], machine)
    (row,) = [row for row in rows if "train / invfusion_g" in row]
    assert row.count("59.0 d") == 2, "the time, and of it the Gaussian's"
    assert "59 days, 59 of them the Gaussian's" in row
    assert rows[-1].startswith("Gaussian: ")
    assert "this machine's CPU" in rows[-1]
    assert "training 59.0 d, Gaussian 59.0 d (" in summary([with_it, without], machine)
    assert "restoring 1.0 s (" in summary([with_it, without], machine)
    assert not any("this machine's CPU" in row for row in table([without], machine))


def test_a_stand_in_has_the_rank_of_the_profiles_prior() -> None:
    settings = PriorFitConfig(rank=24)
    prior = stand_in(settings, (3, 16, 16))
    assert isinstance(prior.covariance, Coloured)
    assert (prior.image_shape, len(prior.covariance.variances)) == ((3, 16, 16), 24)
    assert prior.covariance.ranks[0] > 12, "most of it in grey"
    assert stand_in(settings, (3, 16, 16)) is prior


def test_conditioning_takes_memory() -> None:
    """Matrices of 128 rows in float64, and what grows with the rank; of masks no more than matrices of the rank."""
    some = {"methods": ["H_pinv y", "Wiener"]}
    memory = {rank: {line.what: line.memory for line in of_the_paper(rank, **some)[1]} for rank in (8, 40)}
    extra = {rank: m["matrix: Wiener"] - m["matrix: H_pinv y"] for rank, m in memory.items()}
    assert extra[8] == pytest.approx(64 * 8 * 128 * 64 * 64 * 3, rel=0.05)
    assert extra[40] > extra[8]
    masks = memory[40]["patch_inpainting: Wiener"] - memory[40]["patch_inpainting: H_pinv y"]
    assert 64 * 8 * 40 * 40 < masks < extra[40] / 10
    assert memory[8]["invfusion_g"] - memory[8]["invfusion"] == pytest.approx(2 * extra[8], rel=0.01), "128 images"


def test_a_gpu_computes_layers_again_where_it_lacks_memory() -> None:
    """128 images of FFHQ64 keep 43 GiB beside 7 of weights and moments; nine tenths of a card are taken."""
    whole = by_name(of_the_paper()[1])["invfusion"]
    assert whole.activations is not None
    line = replace(whole, activations=replace(whole.activations, compiled=False))
    large, small, tiny = (Machine("gpu", 1e13, memory=n * GIB, disk=1e12, is_gpu=True) for n in (60, 45, 8))
    assert line.held(large) / GIB == pytest.approx(50, abs=1)
    assert line.recomputed(large) == 0
    assert 0.2 < line.recomputed(small) < 0.5
    assert line.held(small) <= 0.9 * small.memory
    assert line.seconds(small) / line.seconds(large) == pytest.approx(1 + line.recomputed(small) / 3, rel=0.01)
    (row,) = [row for row in table([line], small) if "invfusion" in row]
    assert "of what layers keep is computed again" in row
    assert "does not fit" not in row
    assert line.recomputed(tiny) == 1
    assert "GiB of memory, 8 are there" in line.problems(tiny)[0]
    cpu = replace(small, is_gpu=False)
    assert line.recomputed(cpu) == 0, "which keeps all"
    assert "50 GiB of memory, 45 are there" in line.problems(cpu)[0]
    assert whole.recomputed(small) == 0, "compiled layers keep less"
    assert 34.7 < whole.held(small) / GIB < 40, "an H200 held 34.7"
    assert whole.held(cpu) == line.held(cpu)


def test_a_budget_is_kept_to_on_every_machine() -> None:
    params, lines = of_the_paper()
    runtime = params.runtime.model_copy(update={"activation_budget": 20.0})
    limited = account(params.model_copy(update={"runtime": runtime}), SIZES)
    before, after = by_name(lines)["invfusion"], by_name(limited)["invfusion"]
    gpu = Machine("gpu", 1e13, memory=200 * GIB, disk=1e12, is_gpu=True)
    for machine in (gpu, replace(gpu, is_gpu=False)):
        assert after.held(machine) - after.memory <= 20 * GIB < before.held(machine) - before.memory
        assert before.computed(machine) < after.computed(machine) < 4 / 3 * before.computed(machine)


def test_long_trainings_are_accounted_as_compiled_on_a_gpu() -> None:
    lines = of_the_paper()[1], account(cheap(load_profile()), dict.fromkeys(load_profile().models, 1))
    found = [by_name(each)["invfusion"].activations for each in lines]
    assert [each is not None and each.compiled for each in found] == [True, False]


def test_judging_is_counted_where_inceptions_weights_are(tmp_path: Path) -> None:
    some = {"methods": ["H_pinv y", "Palette", "InvFusion"], "n_images": 2000, "weights_dir": tmp_path}
    assert not any(line.stage == "judge" for line in of_the_paper(**some)[1])
    (tmp_path / INCEPTION_FILE).touch()
    params, lines = of_the_paper(**some)
    features, distances = (line for line in lines if line.stage == "judge")
    kinds, generated = len(params.evaluate.families), params.evaluate.n_unconditional
    shown = sum(params.methods[name].generates for name in some["methods"])
    assert features.flops == pytest.approx(11.4e9 * (kinds * 2000 * 4 + shown * generated + max(2000, generated)))
    assert distances.cpu_seconds > kinds * 2 * 2 * 101 * 0.1
    fewer = of_the_paper(**some | {"bootstrap_resamples": 10})[1][-1]
    assert fewer.cpu_seconds < distances.cpu_seconds / 4
    noisy = of_the_paper(**some | {"noise": GaussianNoise(sigma_y=0.1)})[1][-1]
    assert noisy.cpu_seconds < 0.8 * distances.cpu_seconds, "nothing is projected"
    machine = Machine("fast", flops=1e12, memory=1e12, disk=1e15)
    assert "; judging " in summary(lines, machine)
    assert "distances of sets" not in summary(lines, machine)


class TestStaging:
    """What comes before training: the images, where they are at hand, and their prior."""

    def staged(self, tmp_path: Path, n_train: int | None = None, **prior: Any) -> dict[str, Line]:
        params = load_profile("photos64")
        settings = PriorFitConfig(**{"form": "coloured", "rank": 384, "max_images": 10_000} | prior)
        if n_train is not None:
            counts = {"train": n_train, "test": 500}
            shards = [ShardEntry(file=f"{s}.tar", split=s, n_samples=n, sha256="0" * 64) for s, n in counts.items()]
            write_manifest(
                Manifest(name="p", image_size=64, n_samples=counts, source="", licence="", resize="", shards=shards),
                tmp_path,
            )
        data = params.data.model_copy(update={"shards": tmp_path, "gaussian_prior": settings})
        return by_name(list(staging(params.model_copy(update={"data": data}))))

    def test_images_are_counted_where_the_dataset_is(self, tmp_path: Path) -> None:
        assert "images" not in self.staged(tmp_path)
        images = self.staged(tmp_path, 4000)["images"]
        assert images.disk == 2 * 4500 * 3 * 64 * 64, "in the working tree and in DVC's cache"
        assert 4500 * 2e-5 < images.cpu_seconds < 4500 * 0.1

    def test_a_prior_is_fitted_to_the_images_that_there_are(self, tmp_path: Path) -> None:
        prior = self.staged(tmp_path)["Gaussian prior"]
        assert prior.disk == 2 * 8 * (3 * 64 * 64 + 384 * 64 * 64)
        assert self.staged(tmp_path, 4000)["Gaussian prior"].memory == pytest.approx(1.42 * 2**30, rel=0.05)
        assert prior.memory == pytest.approx(2.43 * 2**30, rel=0.05), "a process of 10,000 held 2.46 GiB more"
        assert self.staged(tmp_path, 500)["Gaussian prior"].cpu_seconds < prior.cpu_seconds / 20

    def test_forms_and_clusters_differ(self, tmp_path: Path) -> None:
        one = self.staged(tmp_path, 4000)["Gaussian prior"]
        full, clusters, same = (
            self.staged(tmp_path, 4000, **own)["Gaussian prior"]
            for own in ({"form": "full"}, {"clusters": 2}, {"form": "stationary", "rank": None})
        )
        assert full.disk > 2 * one.disk, "a basis of whole images"
        assert clusters.cpu_seconds > 2 * one.cpu_seconds, "mirrored images too"
        assert clusters.memory > 2 * one.memory
        assert same.cpu_seconds == 0, "spectra alone"

    @pytest.mark.parametrize(
        "own",
        [
            {},
            {"clusters": 3},
            {"form": "full", "clusters": 3, "own_covariances": True},
            {"form": "stationary", "rank": None},
        ],
    )
    def test_disk_is_that_of_the_file(self, tmp_path: Path, own: dict[str, Any]) -> None:
        settings = PriorFitConfig(**{"form": "coloured", "rank": 16} | own)
        prior = stand_in(settings, (3, 16, 16))
        prior.save(tmp_path / "prior.safetensors")
        params = load_profile()
        data = params.data.model_copy(update={"shards": tmp_path, "gaussian_prior": settings})
        (line,) = staging(params.model_copy(update={"data": data}))
        assert line.disk == pytest.approx(2 * (tmp_path / "prior.safetensors").stat().st_size, rel=0.15)

    def test_a_dataset_without_training_images_is_none_to_fit_to(self, tmp_path: Path) -> None:
        assert self.staged(tmp_path, None)["Gaussian prior"].memory > 0
        shards = [ShardEntry(file="a.tar", split="test", n_samples=5, sha256="0" * 64)]
        write_manifest(
            Manifest(name="p", image_size=64, n_samples={"test": 5}, source="", licence="", resize="", shards=shards),
            tmp_path,
        )
        assert self.staged(tmp_path)["images"].disk > 0

    def test_a_profile_without_a_prior_fits_none(self) -> None:
        params = load_profile("photos64")
        assert not list(
            staging(params.model_copy(update={"data": params.data.model_copy(update={"gaussian_prior": None})}))
        )


def test_principal_components_lie_on_disk_as_floats_of_the_first_images() -> None:
    pixels = 3 * 64 * 64
    for n_images, kept in ((10_000, 1000), (200, 200)):
        _, lines = of_the_paper(n_images=n_images)
        disk = {line.what: line.disk for line in lines}
        assert disk["box_inpainting: MMSE"] == n_images * pixels
        more = disk["box_inpainting: NPPC"] - disk["box_inpainting: MMSE"]
        assert more == 4 * kept * (6 * pixels + 5), "the mean, five components, and a deviation for each"


def test_a_model_read_out_for_its_prior_alone_calls_no_network() -> None:
    values = profile_values("digits16")
    values["methods"]["Wiener of a model"] = {"model": "invfusion_g", "sampler": {"kind": "wiener"}}
    values["evaluate"]["methods"] = ["Wiener of a model"]
    params = cheap(params_from(values, "test"))
    sizes = dict.fromkeys(params.train.models, 1)
    lines = by_name(account(params, sizes))
    line = lines["matrix: Wiener of a model"]
    assert (line.flops, line.calls) == (0, 0)
    assert line.gaussian_seconds > 0
