"""The evaluation end to end, with tiny models and 16 images."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from components import tracking
from components.code import Sources
from components.evaluation import evaluate as component
from components.evaluation import judging, measurement_sets, restoring
from components.evaluation.evaluate import evaluate
from components.evaluation.images import Images
from components.evaluation.measurement_sets import MeasurementSet, Request, frozen
from components.evaluation.methods import columns
from components.evaluation.sampling import Task, restore_batch
from components.params import Params
from components.paths import file_name
from components.profiles import load_profile
from invfusion.codec import decode
from invfusion.data.manifest import MANIFEST
from invfusion.data.staged import StagedManifest, StagedShard
from invfusion.degradations import FAMILIES, DegradationFamily
from invfusion.errors import CheckpointError, DataError, OperatorError
from invfusion.measuring import NOISELESS, Streams, measure_batch
from invfusion.metrics import METRICS, FeatureStatistics, Metric, Restorations, frechet_distance, pixel_features
from invfusion.metrics.tools.bootstrap import interval_of
from invfusion.models import DenoiserConfig, LevelConfig, build_denoiser, save_denoiser
from invfusion.noise import AnyNoise, GaussianNoise, PoissonNoise
from invfusion.operators import LinearOperator, MatrixOperator
from invfusion.rng import generator
from invfusion.samplers import DDNM, DDRM, Heun, SampleOutput, Sampler

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
# Numbers of an evaluation that restored and judged in one go.
GOLDEN = Path(__file__).with_name("golden_evaluation.json")
SIZE, N = 8, 16
ARCHITECTURE = DenoiserConfig(
    image_size=SIZE,
    patch_size=2,
    levels=(LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1)),
    head_dim=8,
    mapping_width=16,
    mapping_hidden=16,
    mapping_depth=1,
)


KEYS = [f"image-{i:03d}" for i in range(N)]
PIXELS = torch.randint(256, (N, 3, SIZE, SIZE), generator=generator(0, "pixels")).to(torch.uint8)
OTHERS = torch.randint(256, (N, 3, SIZE, SIZE), generator=generator(0, "others")).to(torch.uint8)
LABELS = torch.full((N,), -1)


def stage_images() -> None:
    """Random images as a staged test split."""
    for split, pixels in (("test", PIXELS), ("train", OTHERS)):
        folder = component.STAGED / split
        folder.mkdir(parents=True)
        np.save(folder / f"{split}-000000.npy", pixels.numpy())
        keys, labels = [f"{split}-{key}" if split == "train" else key for key in KEYS], LABELS.tolist()
        sidecar = StagedShard(source="", source_sha256="", pixels_sha256="", keys=keys, labels=labels)
        (folder / f"{split}-000000.json").write_text(sidecar.model_dump_json())
    manifest = StagedManifest(
        name="random",
        image_size=SIZE,
        channels=3,
        class_names=[],
        n_samples={"test": N, "train": N},
        digests={"test": "", "train": ""},
        shards={"test": ["test-000000"], "train": ["train-000000"]},
    )
    (component.STAGED / MANIFEST).write_text(manifest.model_dump_json())


# Those of the paper; what the Gaussian prior adds is tried with the pipeline in miniature.
METHODS = [
    "H_pinv y",
    "DDRM",
    "Palette",
    "InvFusion",
    "Palette MMSE",
    "InvFusion MMSE",
    "MMSE",
    "NPPC",
    "Unconditional",
]
MODELS = {"models": ["unconditional", "palette", "invfusion"], "distilled": {"mmse": "invfusion", "nppc": "invfusion"}}


def make_params(**changes: object) -> Params:
    """The project's own parameters, made small; `changes` to the section `evaluate`."""
    small = {
        "methods": METHODS,
        "n_images": N,
        "n_unconditional": 10,
        "batch_size": 8,
        "families": [
            FAMILIES["strided_motion_blur"](strides=(2, 4)),
            FAMILIES["matrix"](min_rows=2, max_rows=16),
            FAMILIES["box_inpainting"](),
        ],
        "sampler": Heun(n_steps=3),
        "bootstrap_resamples": 20,
        "calibration_images": 10,
        "calibration_draws": 4,
    }
    base = load_profile()
    return base.model_copy(
        update={
            "data": base.data.model_copy(update={"image_size": SIZE}),
            "train": base.train.model_copy(update=MODELS),
            "evaluate": base.evaluate.model_copy(update=small | changes),
            "report": base.report.model_copy(update={"gallery_images": 3}),
            "runtime": base.runtime.model_copy(update={"device": "cpu"}),
        }
    )


def save_models() -> None:
    variants = {v: {"variant": v} for v in ("unconditional", "palette", "invfusion")}
    distilled = {"mmse": {"variant": "invfusion"}, "nppc": {"variant": "invfusion", "n_components": 2}}
    for name, settings in (variants | distilled).items():
        denoiser = build_denoiser(ARCHITECTURE, seed=1, **settings)
        save_denoiser(denoiser, component.MODELS / name, {})


@contextmanager
def no_tracking(*_: object) -> Iterator[tracking.Run]:
    yield tracking.Run()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with trained models, in which an evaluation ran; and no tracking."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tracking, "start_run", no_tracking)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        stage_images()
        save_models()
        evaluate(make_params())
        shutil.copy("reports/costs.json", "first-costs.json")
        yield folder
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def records(workplace: Path) -> list[dict]:
    return json.loads((workplace / "reports/evaluation.json").read_text())


def by_cell(records: list[dict]) -> dict[tuple[str, str, str], dict]:
    return {(r["method"], r["degradation"], r["metric"]): r for r in records}


def test_records_have_the_promised_keys(records: list[dict]) -> None:
    keys = {"method", "degradation", "metric", "value", "low", "high", "n", "nfe", "measurements_sha256"}
    assert all(set(r) - {"unavailable", "n_exact", "n_diverged"} == keys for r in records)
    assert len(by_cell(records)) == len(records)
    for r in records:
        if r["value"] is None:
            assert r["unavailable"]
        else:
            assert r["low"] <= r["value"] <= r["high"], r


def test_every_method_meets_every_degradation(records: list[dict]) -> None:
    cells = {(r["method"], r["degradation"]) for r in records}
    everywhere = {"H_pinv y", "DDRM", "Palette", "InvFusion", "Palette MMSE", "InvFusion MMSE", "MMSE"}
    kinds = {"strided_motion_blur", "matrix", "box_inpainting"}
    generation = {(m, "unconditional") for m in ("Unconditional", "Palette", "InvFusion")}
    assert cells == {(m, d) for m in everywhere for d in kinds} | {("NPPC", "box_inpainting")} | generation


def test_nfe_and_n(records: list[dict]) -> None:
    nfe = {r["method"]: r["nfe"] for r in records}
    assert nfe == {
        "H_pinv y": 0,
        "DDRM": 25,
        "Palette": 5,
        "InvFusion": 5,
        "Unconditional": 5,
        "Palette MMSE": 1,
        "InvFusion MMSE": 1,
        "MMSE": 1,
        "NPPC": 1,
    }
    assert {r["n"] for r in records if r["degradation"] == "unconditional"} == {10}
    repeated = ("tarp_gap", "coverage_90", "std_ratio", "energy_score", "crps")
    once = [r for r in records if r["degradation"] != "unconditional" and r["metric"] not in repeated]
    assert {r["n"] for r in once} == {N}


def test_one_column_one_measurement_set(workplace: Path, records: list[dict]) -> None:
    for degradation in {r["degradation"] for r in records}:
        facts = json.loads((workplace / f"artifacts/evaluation/measurements/{degradation}.json").read_text())
        hashes = {r["measurements_sha256"] for r in records if r["degradation"] == degradation}
        assert hashes == {facts["sha256"]}


def test_zero_shot_and_pseudo_inverse_are_consistent(records: list[dict]) -> None:
    cells = by_cell(records)
    for degradation in ("matrix", "box_inpainting"):
        assert cells["DDRM", degradation, "consistency_mse"]["value"] < 1e-6
        assert cells["H_pinv y", degradation, "consistency_mse"]["value"] < 1e-8


def test_missing_weights_are_said_with_their_path(records: list[dict]) -> None:
    cells = by_cell(records)
    for metric in ("fid", "cfid", "kid"):
        assert "weights/inception-2015-12-05.pt" in cells["InvFusion", "matrix", metric]["unavailable"]
    assert "too small" in cells["InvFusion", "matrix", "lpips"]["unavailable"]
    assert ("InvFusion MMSE", "matrix", "fid") not in cells
    assert ("InvFusion", "unconditional", "cfid") not in cells


def test_numbers_are_those_of_before(records: list[dict]) -> None:
    """Where they were written, to the digit; other arithmetic rounds otherwise."""
    found = by_cell(records)
    for method, degradation, metric, *numbers, n in json.loads(GOLDEN.read_text()):
        r = found[method, degradation, metric]
        assert [r["value"], r["low"], r["high"]] == pytest.approx(numbers, rel=1e-3, abs=1e-5), r
        assert r["n"] == n


def test_sets_are_compared_to_other_real_images_which_held_out_ones_do_not_match(
    workplace: Path, records: list[dict]
) -> None:
    real = {r["metric"]: r for r in json.loads((workplace / "artifacts/evaluation/real.json").read_text())}
    assert set(real) == {"fd_pixel8x8", "cfd_pixel8x8", "kd_pixel8x8"}
    truth, others = (FeatureStatistics.of(pixel_features(images)) for images in (PIXELS, OTHERS))
    assert real["fd_pixel8x8"]["value"] == pytest.approx(frechet_distance(truth, others))
    assert real["fd_pixel8x8"]["value"] > 1
    for r in [r for r in records if r["metric"] in ("fd_pixel8x8", "cfd_pixel8x8")]:
        assert 0 <= r["low"] <= r["value"] <= r["high"], r


def test_proper_scores_of_draws_and_of_point_estimates(records: list[dict]) -> None:
    """A sampler is scored on repeated draws, a point estimate as a forecast without spread, both on the same images."""
    for metric in ("energy_score", "crps"):
        scored = {(r["method"], r["degradation"]) for r in records if r["metric"] == metric}
        restored = {(r["method"], r["degradation"]) for r in records if r["metric"] == "psnr"}
        assert scored == restored
        assert {r["n"] for r in records if r["metric"] == metric} == {10}
    assert not {r["method"] for r in records if r["metric"] == "tarp_gap"} & {"MMSE", "H_pinv y", "NPPC"}


def test_scores_of_images_can_be_compared_in_pairs(workplace: Path, records: list[dict]) -> None:
    cells = by_cell(records)
    for (method, degradation, metric), r in cells.items():
        folder = workplace / "artifacts/evaluation/scores" / degradation
        scores = load_file(folder / f"{file_name(method)}.safetensors")
        if r["value"] is None:
            assert metric not in scores
            continue
        values = scores[metric]
        assert values.dtype == torch.float64
        if METRICS[metric].statistic is not None:
            assert interval_of(values) == pytest.approx((r["low"], r["high"]), rel=1e-5, abs=1e-9)
        else:
            assert values.shape == (N,)
            assert int(values.isfinite().sum()) == r["n"]
            assert float(values.nanmean()) == pytest.approx(r["value"], rel=1e-5)


def test_distances_between_sets_are_resampled_alike_for_all_methods(workplace: Path) -> None:
    """So that those of two methods rise and fall together, and their difference varies less than either."""
    folder = workplace / "artifacts/evaluation/scores/matrix"
    ours, theirs = (load_file(folder / f"{name}.safetensors")["fd_pixel8x8"] for name in ("palette", "invfusion"))
    assert float((ours - theirs).std()) < 0.9 * min(float(ours.std()), float(theirs.std()))


def test_nested_metrics_hold_the_available_numbers(workplace: Path, records: list[dict]) -> None:
    tree = json.loads((workplace / "reports/metrics.json").read_text())
    flat = {(m, d, k): v for d, methods in tree.items() for m, metrics in methods.items() for k, v in metrics.items()}
    assert flat == {key: r["value"] for key, r in by_cell(records).items() if r["value"] is not None}


def test_frozen_measurements_can_be_read_back(workplace: Path) -> None:
    folder = workplace / "artifacts/evaluation/measurements"
    facts = json.loads((folder / "strided_motion_blur.json").read_text())
    values = torch.from_numpy(np.load(folder / "strided_motion_blur.npy"))
    streams = Streams("evaluate/strided_motion_blur", "evaluate/strided_motion_blur/noise")
    place = {i: group["measurement_shape"] for group in facts["groups"] for i in group["indices"]}
    start = 0
    for i, key in enumerate(facts["keys"]):
        x = decode(PIXELS[[KEYS.index(key)]])
        drawn = measure_batch(x, FAMILIES["strided_motion_blur"](strides=(2, 4)), NOISELESS, key, 0, streams)
        n = torch.Size(place[i]).numel()
        assert values[start] == 0, "sigma_y"
        assert torch.equal(values[start + 1 : start + 1 + n].view(1, *place[i]), drawn.y)
        start += 1 + n
    assert start == len(values)
    assert len(facts["groups"]) == 2, "two strides"
    assert len(facts["operators_sha256"]) == N


def test_restorations_to_show(workplace: Path) -> None:
    folder = workplace / "artifacts/evaluation/restorations"
    index = json.loads((folder / "index.json").read_text())
    assert list(index) == ["strided_motion_blur", "matrix", "box_inpainting", "unconditional"]
    for degradation, entry in index.items():
        assert len(entry["keys"]) == 3
        for method in entry["methods"]:
            images = load_file(folder / degradation / f"{file_name(method)}.safetensors")["images"]
            assert (images.shape, images.dtype) == ((3, 3, SIZE, SIZE), torch.uint8)
    expected = PIXELS[[KEYS.index(key) for key in index["matrix"]["keys"]]]
    assert torch.equal(load_file(folder / "matrix/truth.safetensors")["images"], expected)
    drawn = load_file(folder / "matrix/invfusion.safetensors")
    assert drawn["draws"].shape == (3, 3, 3, SIZE, SIZE)
    assert drawn["std"].shape == (3, 3, SIZE, SIZE)
    assert float(drawn["std"].mean()) > 0.05
    nppc = load_file(folder / "box_inpainting/nppc.safetensors")
    assert (nppc["components"].shape, nppc["stds"].shape) == ((3, 2, 3, SIZE, SIZE), (3, 2))


def test_repeated_draws_are_judged_against_the_truth(workplace: Path) -> None:
    records = json.loads((workplace / "reports/evaluation.json").read_text())
    found = {(r["method"], r["degradation"], r["metric"]): r for r in records}
    for method in ("DDRM", "Palette", "InvFusion"):
        for metric in ("tarp_gap", "coverage_90", "std_ratio"):
            r = found[method, "matrix", metric]
            assert r["n"] == 10
            assert r["low"] <= r["value"] <= r["high"]
    assert 0 < found["InvFusion", "matrix", "tarp_gap"]["value"] < 1
    assert not [key for key in found if key[2] == "tarp_gap" and key[1] == "unconditional"]
    curves = json.loads((workplace / "artifacts/evaluation/calibration.json").read_text())
    drawn = [c for c in curves if c["degradation"] == "box_inpainting"]
    assert [c["method"] for c in drawn] == ["DDRM", "Palette", "InvFusion", "NPPC"]
    assert (len(drawn[0]["tarp"]), drawn[0]["tarp"][-1]) == (41, 1.0)
    assert len(drawn[-1]["predicted"]) == 2


def test_running_again_reads_what_was_kept(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (workplace / "reports/evaluation.json").read_bytes()
    monkeypatch.setattr(restoring.Restorer, "_compute", lambda *_: pytest.fail("computed again"))
    evaluate(make_params())
    assert (workplace / "reports/evaluation.json").read_bytes() == before


def test_a_killed_evaluation_continues(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (workplace / "reports/evaluation.json").read_bytes()
    kept = sorted((workplace / "state/evaluate").glob("*.safetensors"))
    lost = [path for path in kept if "seconds" in load_file(path)][::5]
    for path in lost:
        path.unlink()
    lost[0].with_name(f"{lost[0].name}.partial").write_bytes(b"half a file")
    computed = []
    compute = restoring.Restorer._compute
    monkeypatch.setattr(restoring.Restorer, "_compute", lambda *a: computed.append(1) or compute(*a))
    evaluate(make_params())
    assert len(computed) == len(lost) > 3
    assert (workplace / "reports/evaluation.json").read_bytes() == before


class Counter:
    """What is computed: batches of restorations by sampler, values by metric, numbers by metric."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.restored: list[str] = []
        self.judged: list[str] = []
        self.summarised: list[str] = []
        compute, numbers = restoring.Restorer._compute, judging.Judge._summarised

        def restore(restorer, method, *rest: object):
            self.restored.append(method.name)
            return compute(restorer, method, *rest)

        def summarise(judge, case, metric, values):
            self.summarised.append(metric.name)
            return numbers(judge, case, metric, values)

        patch.setattr(restoring.Restorer, "_compute", restore)
        patch.setattr(judging.Judge, "_summarised", summarise)
        for name in ("_of_images", "_of_draws"):
            patch.setattr(judging.Judge, name, self._counting(getattr(judging.Judge, name)))

    def _counting(self, compute):
        def judge(judge, case, metric: Metric):
            self.judged.append(metric.name)
            return compute(judge, case, metric)

        return judge


def brightness(restored: Restorations) -> torch.Tensor:
    return restored.images.double().flatten(1).mean(1)


BRIGHTNESS = Metric(name="brightness", label="brightness", better=127.5, needs=frozenset({"truth"}), values=brightness)


class TestAdditions:
    """Nothing else is computed again."""

    def test_a_metric(self, workplace: Path, records: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(METRICS, "brightness", BRIGHTNESS)
        counter = Counter(monkeypatch)
        evaluate(make_params())
        restored = [r for r in records if r["metric"] == "psnr"]
        assert counter.restored == []
        assert counter.judged == counter.summarised
        assert set(counter.judged) == {"brightness"}
        after = by_cell(json.loads((workplace / "reports/evaluation.json").read_text()))
        assert {key for key in after if key not in by_cell(records)} == {
            (r["method"], r["degradation"], "brightness") for r in restored
        }
        assert all(after[key] == r for key, r in by_cell(records).items())

    def test_a_method(self, workplace: Path, records: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
        params, counter = make_params(), Counter(monkeypatch)
        short = params.methods["DDNM"].model_copy(update={"sampler": DDNM(n_steps=2)})
        methods = {**params.methods, "Again": params.methods["InvFusion MMSE"], "DDNM": short}
        names = [*params.evaluate.methods, "Again", "DDNM"]
        chosen = params.evaluate.model_copy(update={"methods": names})
        evaluate(params.model_copy(update={"methods": methods, "evaluate": chosen}))
        assert set(counter.restored) == {"DDNM"}, "the same under another name is taken as it is"
        after = by_cell(json.loads((workplace / "reports/evaluation.json").read_text()))
        assert all(after[key] == r for key, r in by_cell(records).items())

    def test_more_images_in_the_galleries(self, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        params, counter = make_params(), Counter(monkeypatch)
        evaluate(params.model_copy(update={"report": params.report.model_copy(update={"gallery_images": 5})}))
        assert (counter.restored, counter.judged) == ([], [])
        shown = load_file(workplace / "artifacts/evaluation/restorations/matrix/mmse.safetensors")
        assert len(shown["images"]) == 5


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The sources in a folder where they can be changed."""
    for package in ("invfusion", "components"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


class TestCodeOfRestorations:
    """What a restoration by Heun and its scores depend on."""

    RESTORATION = ("components.evaluation.sampling", "invfusion.samplers.heun", "invfusion.operators.matrix")

    @pytest.mark.parametrize(
        "other",
        ["invfusion/samplers/ddrm.py", "invfusion/metrics/psnr.py", "invfusion/metrics/__init__.py",
         "invfusion/samplers/__init__.py", "invfusion/operators/blur.py", "components/evaluation/judging.py",
         "invfusion/degradations/matrix.py"],
    )  # fmt: skip
    def test_other_samplers_and_metrics_are_no_part_of_it(self, copied: Path, other: str) -> None:
        before = Sources(copied).digest(*self.RESTORATION)
        with (copied / other).open("a") as file:
            file.write("\n\nADDED = 1\n")
        assert Sources(copied).digest(*self.RESTORATION) == before

    @pytest.mark.parametrize(
        "own",
        ["invfusion/samplers/heun.py", "invfusion/samplers/base.py", "invfusion/operators/matrix.py",
         "invfusion/models/denoiser.py", "invfusion/rng.py", "components/evaluation/sampling.py"],
    )  # fmt: skip
    def test_what_it_is_made_by_is(self, copied: Path, own: str) -> None:
        before = Sources(copied).digest(*self.RESTORATION)
        with (copied / own).open("a") as file:
            file.write("\n\nADDED = 1\n")
        assert Sources(copied).digest(*self.RESTORATION) != before

    def test_a_metric_depends_on_no_other(self, copied: Path) -> None:
        before = {m.name: Sources(copied).digest(m.values.__module__) for m in METRICS.values()}
        with (copied / "invfusion/metrics/crps.py").open("a") as file:
            file.write("\n\nADDED = 1\n")
        after = {m.name: Sources(copied).digest(m.values.__module__) for m in METRICS.values()}
        assert {name for name in before if before[name] != after[name]} == {"crps"}


# A family of groups of several sizes, and one method of each kind of sampler: few network calls.
FEW: dict[str, Any] = {
    "methods": ["H_pinv y", "InvFusion", "Palette MMSE", "NPPC"],
    "families": [FAMILIES["strided_motion_blur"](strides=(2, 4)), FAMILIES["box_inpainting"]()],
    "n_unconditional": 0,
}


def few_equal(workplace: Path, records: list[dict], n_least: int) -> None:
    """The newest evaluation's numbers are those of the first one."""
    first = by_cell(records)
    found = by_cell(json.loads((workplace / "reports/evaluation.json").read_text()))
    assert len(found) > n_least
    for key, r in found.items():
        assert r["measurements_sha256"] == first[key]["measurements_sha256"]
        if r["value"] is not None:
            assert r["value"] == pytest.approx(first[key]["value"], rel=1e-3, abs=1e-5), key


def test_results_do_not_depend_on_the_batch_size(workplace: Path, records: list[dict]) -> None:
    evaluate(make_params(batch_size=5, **FEW))
    few_equal(workplace, records, 40)


def test_noisy_measurements(workplace: Path, records: list[dict]) -> None:
    families = [FAMILIES["box_inpainting"]()]
    evaluate(make_params(noise=GaussianNoise(sigma_y=0.1), families=families, n_unconditional=0))
    noisy = by_cell(json.loads((workplace / "reports/evaluation.json").read_text()))
    assert {degradation for _, degradation, _ in noisy} == {"box_inpainting"}
    assert "noisy measurements" in noisy["InvFusion", "box_inpainting", "cfd_pixel8x8"]["unavailable"]
    clean = by_cell(records)["DDRM", "box_inpainting", "psnr"]
    assert noisy["DDRM", "box_inpainting", "psnr"]["measurements_sha256"] != clean["measurements_sha256"]


def test_a_missing_model_is_named(workplace: Path) -> None:
    (component.MODELS / "mmse").rename(component.MODELS / "elsewhere")
    try:
        with pytest.raises(CheckpointError, match="mmse holds no trained model"):
            evaluate(make_params())
    finally:
        (component.MODELS / "elsewhere").rename(component.MODELS / "mmse")


def test_methods_without_a_model_at_hand_are_left_out() -> None:
    found = {column.kind: [m.name for m in column.methods] for column in columns(make_params(), ["invfusion"])}
    assert found["matrix"] == ["H_pinv y", "InvFusion", "InvFusion MMSE"]
    assert found["unconditional"] == ["InvFusion"]


@contextmanager
def largest_tensors() -> Iterator[list[int]]:
    """The number of entries of each tensor that any operation gives within the block."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes.extend(part.numel() for part in (result,) if isinstance(part, torch.Tensor))
            return result

    sizes: list[int] = []
    with Watch():
        yield sizes


def images_of(pixels: torch.Tensor = PIXELS, rows: range = range(N)) -> Images:
    chosen = list(rows)
    keys, labels = tuple(KEYS[i] for i in chosen), LABELS[chosen]
    return Images(keys, labels, tuple(pixels.shape[1:]), lambda wanted: pixels[chosen][list(wanted)])


BLUR = FAMILIES["strided_motion_blur"](strides=(2, 4))


def measured_in(folder: Path, images: Images | None = None, noise: AnyNoise = NOISELESS) -> MeasurementSet:
    return frozen(folder, Request(BLUR, seed=0, noise=noise), images or images_of())


def test_a_further_draw_adds_batches_and_leaves_the_others(tmp_path: Path) -> None:
    measured = measured_in(tmp_path)

    def jobs(n_repeated: int, n_extra: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return [(b.indices, b.draws) for b in measured.batches(3, range(n_repeated), n_extra)]

    first, more = jobs(0, 0), jobs(4, 2)
    assert sorted(i for indices, _ in first for i in indices) == list(range(N))
    assert more[: len(first)] == first
    assert jobs(4, 3)[: len(more)] == more
    assert jobs(6, 2)[: len(first)] == first
    drawn = sorted((i, d) for indices, draws in more[len(first) :] for i, d in zip(indices, draws, strict=True))
    assert drawn == [(i, d) for i in range(4) for d in (1, 2)]


def test_a_measurement_depends_on_its_key_alone(tmp_path: Path) -> None:
    noise = GaussianNoise(sigma_y=0.1)
    whole = measured_in(tmp_path, noise=noise)
    part = measured_in(tmp_path, images_of(rows=range(5, 7)), noise)
    for i in (5, 6):
        ours, theirs = whole.measurement([i]), part.measurement([i - 5])
        assert torch.equal(ours.y, theirs.y)
        assert torch.equal(ours.operator.kernel, theirs.operator.kernel)


def test_the_next_method_shares_the_operators_that_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they are small, and nothing else: what a method makes of y may be of inference mode."""
    recent, measured, device = restoring.RecentMeasurements(), measured_in(tmp_path), torch.device("cpu")
    rows = measured.groups[0].indices
    first = recent.of(measured, rows, device)
    with torch.inference_mode():
        _ = first.H_pinv_y
    again = recent.of(measured, rows, device)
    assert again.operator is first.operator
    assert "H_pinv_y" not in vars(again)
    assert torch.equal(again.y, measured.measurement(rows).y)
    assert recent.of(measured, rows[:1], device).operator is not first.operator
    other = measured_in(tmp_path, noise=GaussianNoise(sigma_y=0.1))
    assert not torch.equal(recent.of(other, rows, device).y, first.y)
    assert len(recent.kept) == 1
    monkeypatch.setattr(restoring, "RECENT_BYTES", 0)
    recent.of(measured, rows, device)
    assert recent.kept == {}


def test_every_method_starts_an_image_from_the_same_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever shares its batch."""
    for kind in (Heun, DDRM):
        monkeypatch.setattr(kind, "sample", lambda _, __, ___, noise, **____: SampleOutput(noise, nfe=0))
    measured = measured_in(tmp_path)
    indices = measured.groups[0].indices

    def start(sampler: Sampler, chosen: Sequence[int], draw: int) -> torch.Tensor:
        keys = [measured.keys[i] for i in chosen]
        task = Task(measured.measurement(chosen), keys, [draw] * len(chosen), torch.zeros(len(chosen)))
        return restore_batch(sampler, None, task, seed=0, guidance=1.0).x

    assert torch.equal(start(Heun(), indices, 0), start(DDRM(), indices, 0))
    assert torch.equal(start(Heun(), indices[1:2], 0), start(DDRM(), indices[:2], 0)[1:])
    assert not torch.equal(start(Heun(), indices, 0), start(Heun(), indices, 1))


def test_costs_are_told_for_every_cell(workplace: Path, records: list[dict]) -> None:
    costs = json.loads((workplace / "first-costs.json").read_text())
    assert {(c["method"], c["degradation"]) for c in costs} == {(r["method"], r["degradation"]) for r in records}
    for cost in costs:
        assert cost["seconds_per_image"] >= 0
        assert cost["peak_memory_mib"] is None or cost["peak_memory_mib"] > 0
        assert (cost["n_diverged"], cost["device"]) == (0, "cpu")


def test_several_processes_share_the_batches(workplace: Path, records: list[dict]) -> None:
    settings = make_params(batch_size=4, bootstrap_resamples=10, **FEW)
    runtime = settings.runtime.model_copy(update={"processes": 2})
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        evaluate(settings.model_copy(update={"runtime": runtime}))
    few_equal(workplace, records, 40)


def test_diverged_images_are_counted_and_left_out(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(self: DDRM, *arguments: object) -> SampleOutput:
        output = real(self, *arguments)
        output.x[0] = torch.nan
        return output

    real = DDRM._sample
    monkeypatch.setattr(DDRM, "_sample", diverge)
    families = [FAMILIES["matrix"](min_rows=3, max_rows=9)]
    once = {"families": families, "n_unconditional": 0, "calibration_images": 0}
    evaluate(make_params(methods=["DDRM", "H_pinv y"], **once))
    cells = by_cell(json.loads((workplace / "reports/evaluation.json").read_text()))
    found = cells["DDRM", "matrix", "psnr"]
    assert (found["n"], found["n_diverged"]) == (N - 2, 2), "two batches"
    assert found["value"] is not None
    assert cells["DDRM", "matrix", "cfd_pixel8x8"]["value"] is not None
    assert "n_diverged" not in cells["H_pinv y", "matrix", "psnr"]
    shown = load_file(workplace / "artifacts/evaluation/restorations/matrix/ddrm.safetensors")
    assert int(shown["diverged"].sum()) >= 1


def test_tuned_values_hold_on_their_family_alone() -> None:
    base = make_params()
    dps = base.methods["DPS"].model_copy(update={"tuned": {"psnr": {"matrix": {"zeta": 1.5}}}})
    params = base.model_copy(update={"methods": {**base.methods, "DPS": dps}})
    evaluated = params.evaluate.model_copy(update={"methods": ["DPS"]})
    plan = columns(params.model_copy(update={"evaluate": evaluated}), ["unconditional"])
    zetas = {column.kind: column.methods[0].sampler.zeta for column in plan}
    assert zetas == {"strided_motion_blur": 0.5, "matrix": 1.5, "box_inpainting": 0.5}


def test_an_operator_without_a_pseudo_inverse_is_refused_before_any_work(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lossy(MatrixOperator):
        H_pinv = None

    family = FAMILIES["matrix"]
    monkeypatch.setattr(family, "sample", lambda *_, **__: Lossy((3, SIZE, SIZE), torch.ones(1, 4, 3 * SIZE**2)))
    monkeypatch.setattr(restoring.Restorer, "_compute", lambda *_: pytest.fail("computed"))
    kept = sorted((workplace / "state/evaluate").rglob("*.safetensors"))
    with pytest.raises(OperatorError, match=r"'ddrm' requires 'pinv'.*operator 'matrix'"):
        evaluate(make_params())
    assert sorted((workplace / "state/evaluate").rglob("*.safetensors")) == kept


def test_the_published_codes_operators_are_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel for a batch, spectra as measurements, and an inverse that is not exact."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "start_run", no_tracking)
    stage_images()
    save_models()
    families = [
        FAMILIES["strided_motion_blur"](law="official", strides=(2,)),
        FAMILIES["patch_inpainting"](law="official"),
    ]
    params = make_params(
        families=families, methods=["H_pinv y", "DDNM", "Palette", "InvFusion"], sampler=Heun(n_steps=2),
        n_unconditional=0, calibration_images=0,
    )  # fmt: skip
    component.evaluate(params)
    records = json.loads(Path("reports/evaluation.json").read_text())
    written = json.loads(Path("artifacts/evaluation/measurements/strided_motion_blur.json").read_text())
    assert '"law": "official"' in json.dumps(written)
    assert "published_blur" in json.dumps(written), "the operator that was drawn"
    values = {(r["degradation"], r["method"], r["metric"]): r["value"] for r in records}
    for kind in ("strided_motion_blur", "patch_inpainting"):
        for method in ("H_pinv y", "DDNM", "Palette", "InvFusion"):
            assert values[kind, method, "psnr"] > 0
            assert values[kind, method, "consistency_mse"] >= 0
    assert (
        values["patch_inpainting", "DDNM", "consistency_mse"] < values["patch_inpainting", "Palette", "consistency_mse"]
    )


class TestFrozenSets:
    def test_it_is_read_back_not_measured_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        noise = GaussianNoise(sigma_y=0.1)
        made = measured_in(tmp_path, noise=noise)
        monkeypatch.setattr(measurement_sets, "measure_batch", lambda *_: pytest.fail("measured again"))
        found = measured_in(tmp_path, noise=noise)
        assert found.sha256 == made.sha256
        assert found.is_noisy
        for ours, theirs in zip(found.batches(5, (), 0), made.batches(5, (), 0), strict=True):
            assert ours == theirs
            mine, other = found.measurement(ours.indices), made.measurement(theirs.indices)
            assert torch.equal(mine.y, other.y)
            assert torch.equal(mine.sigma_y, torch.full((len(ours.indices),), 0.1))
            x = decode(PIXELS[list(ours.indices)])
            assert torch.equal(mine.operator.H(x), other.operator.H(x))
            assert float((mine.y - mine.operator.H(x)).std()) == pytest.approx(0.1, rel=0.2)

    def test_other_noise_or_images_are_another_set(self, tmp_path: Path) -> None:
        made = [
            measured_in(tmp_path),
            measured_in(tmp_path, noise=PoissonNoise(peak=9)),
            measured_in(tmp_path, images_of(PIXELS.flip(-1))),
        ]
        assert len({measured.sha256 for measured in made}) == 3
        assert len(list(tmp_path.glob("*.json"))) == 3

    def test_another_version_of_the_law_is_another_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = measured_in(tmp_path)
        monkeypatch.setattr(type(BLUR), "law_version", 7)
        assert measured_in(tmp_path).sha256 != made.sha256

    def test_a_law_that_changed_without_saying_so_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def otherwise(family: DegradationFamily, **settings: Any) -> LinearOperator:
            operator = sample(family, **settings)
            return operator.with_tensors({"kernel": operator.kernel.flip(-1)})

        measured_in(tmp_path)
        sample = type(BLUR).sample
        monkeypatch.setattr(type(BLUR), "sample", otherwise)
        with pytest.raises(DataError, match="'image-003' is not the one that it was measured with"):
            measured_in(tmp_path).measurement([3])

    def test_what_another_machine_rounds_otherwise_is_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rounded(family: DegradationFamily, **settings: Any) -> LinearOperator:
            operator = sample(family, **settings)
            return operator.with_tensors({"kernel": operator.kernel * (1 + 1e-6)})

        made = measured_in(tmp_path)
        sample = type(BLUR).sample
        monkeypatch.setattr(type(BLUR), "sample", rounded)
        assert torch.equal(measured_in(tmp_path).measurement([3]).y, made.measurement([3]).y)

    def test_a_changed_file_is_refused(self, tmp_path: Path) -> None:
        made = measured_in(tmp_path)
        (path,) = tmp_path.glob("*.npy")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match="not those that were written"):
            measured_in(tmp_path)
        path.unlink()
        with pytest.raises(DataError, match="cannot be read"):
            measured_in(tmp_path)
        (facts,) = tmp_path.glob("*.json")
        facts.write_text(facts.read_text().replace('"seed": 0', '"seed": 1'))
        with pytest.raises(DataError, match="not those that were written"):
            measured_in(tmp_path)
        for file in tmp_path.iterdir():
            file.unlink()
        assert measured_in(tmp_path).sha256 == made.sha256

    def test_sets_of_the_earlier_layout_are_named_and_left(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old = tmp_path / "strided_motion_blur-0123456789ab.safetensors"
        old.write_bytes(b"matrices")
        measured_in(tmp_path)
        assert old.name in caplog.text
        assert old.read_bytes() == b"matrices"

    def test_what_is_in_memory_does_not_grow_with_the_images(self, tmp_path: Path) -> None:
        """A set of 64 matrices of 128 rows would take 25 MB; of all of it, one is there at a time."""
        family = FAMILIES["matrix"](min_rows=128, max_rows=128)
        shape = (3, 16, 16)
        keys = tuple(f"image-{i}" for i in range(64))
        blank = Images(keys, torch.zeros(64), shape, lambda i: torch.zeros(len(i), *shape, dtype=torch.uint8))
        with largest_tensors() as sizes:
            frozen(tmp_path, Request(family, seed=0), blank).measurement([1, 2, 3])
        assert max(sizes) <= 3 * 128 * 768
