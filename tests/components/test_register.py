"""Registration happens once per checkpoint, the gates decide, and the registered model restores."""

import base64
import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_evaluation import FAMILIES, record, records, write_run

from components import tracking
from components.params import GatesConfig
from components.profiles import load_profile
from components.records import by_key, write_records
from components.registry import gates, promotion
from components.registry import register as step
from components.registry.restoration_model import Work, check_images, read_labels
from invfusion.degradations import FAMILIES as DEGRADATIONS
from invfusion.errors import CheckpointError, ConfigError, DataError, ServiceError, ShapeError
from invfusion.models import build_denoiser, save_denoiser
from invfusion.operators import (
    Grayscale,
    LinearOperator,
    MatrixOperator,
    Measurement,
    scaled,
    spec_to_json,
    stack,
)
from invfusion.restoration import models
from invfusion.restoration.pictures import Picture, encoded, load_image, read_picture, save_image
from invfusion.rng import generator

ROOT = Path(__file__).parents[2]
GATES = {"max_consistency_mse": 0.01, "min_psnr_gain_over_palette": 0.0, "min_psnr_gain_over_champion": -0.2}
ECHO = """
import mlflow
import pandas as pd
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        return params["text"]
mlflow.models.set_model(Echo())
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh database, copied by each test, since creating one takes seconds."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.connect(f"sqlite:///{database}")
    return database


@pytest.fixture
def params(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The default parameters, in an empty project that holds a made-up run and its own store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    write_run(tmp_path, n=1)
    params = load_profile()
    register = params.register_.model_copy(update={"gates": GatesConfig(**GATES), "model": "invfusion"})
    return params.model_copy(update={"register_": register, "train": of_invfusion(params)})


def of_invfusion(params: Any) -> Any:
    """Of the training, that the companions start from InvFusion."""
    return params.train.model_copy(update={"distilled": {"mmse": "invfusion", "nppc": "invfusion"}})


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that costs nothing in place of the real one."""
    (tmp_path / "echo.py").write_text(ECHO)
    (tmp_path / "library").mkdir()
    made = tracking.Package(
        code=tmp_path / "echo.py",
        library=tmp_path / "library",
        checkpoints={},
        main="",
        sampler={"kind": "heun"},
        columns=[("y", "array<double>", True)],
        parameters={"text": "hello"},
        example={"y": [1.0]},
        example_parameters={},
        requirements=["mlflow"],
    )
    monkeypatch.setattr(step, "package", lambda *_: made)
    monkeypatch.setattr(step, "check_checkpoints", lambda *_: None)


def change_checkpoint(text: str) -> None:
    """Pretend that the model was trained anew."""
    Path("artifacts/models/invfusion/config.json").write_text(text)


def versions(params: Any) -> int:
    client = tracking.connect(tracking.tracking_uri(params))
    return len(client.search_model_versions(f"name = '{params.register_.name}'"))


def champion(params: Any) -> tracking.Version | None:
    return tracking.Registry(params, params.register_.name).holder("champion")


@pytest.mark.usefixtures("echo")
def test_registering_twice_makes_one_version(params: Any) -> None:
    first = step.register(params)
    summary = step.SUMMARY.read_text()
    second = step.register(params)
    assert (first.is_new, second.is_new) == (True, False)
    assert versions(params) == 1
    assert first.is_champion
    assert second.is_champion
    assert step.SUMMARY.read_text() == summary
    tags = champion(params).tags
    assert tags["checkpoint"] == first.checkpoint
    assert tags["data.digest"] == "feed" * 16
    assert tags["licence"] == "Apache-2.0"
    assert len(tags["measurements"]) == 64
    assert "strided_motion_blur" in tags["degradation"]
    assert json.loads(tags["noise"]) == {"kind": "gaussian", "sigma_y": [0.0, 0.2]}, "what the weights saw"
    assert json.loads(tags["params"])["train"]["lr"] == params.train.lr
    value, low, high, n, _ = json.loads(tags["metrics"])["InvFusion/matrix/psnr"]
    assert low < value < high
    assert n == 180


@pytest.mark.usefixtures("echo")
def test_the_evaluation_is_logged_with_the_model(params: Any) -> None:
    result = step.register(params)
    client = tracking.connect(tracking.tracking_uri(params))
    run = client.get_run(client.get_model_version(result.name, result.version).run_id)
    expected = by_key(records())["InvFusion", "matrix", "psnr"]
    assert run.data.metrics["psnr/matrix"] == pytest.approx(expected.value)
    assert len(run.data.metrics) < 30
    assert "evaluate.n_images" not in run.data.params


@pytest.mark.usefixtures("echo")
def test_a_version_has_a_page_for_people(params: Any) -> None:
    result = step.register(params)
    client = tracking.connect(tracking.tracking_uri(params))
    version = client.get_model_version(result.name, result.version)
    assert "| PSNR in dB | doing nothing | this version |" in version.description
    assert f'load_model("models:/{result.name}/{result.version}")' in version.description
    assert f"get-artifact?path=restorations.png&run_uuid={version.run_id}" in version.description
    assert {file.path for file in client.list_artifacts(version.run_id)} >= {"restorations.png", "params.json"}
    for word in ("strided motion blur", "Gaussian, σ", "| licence | Apache-2.0 |", "network calls", "commit"):
        assert word in version.description, word
    change_checkpoint("other")
    second = step.register(params)
    page = client.get_model_version(result.name, second.version).description
    assert f"| this version | champion (version {result.version}) |" in page


@pytest.mark.usefixtures("echo")
def test_a_worse_model_does_not_replace_the_champion(params: Any) -> None:
    before = step.register(params)
    change_checkpoint("worse")
    write_records(records(InvFusion={"matrix": -1.0}), step.EVALUATION)
    after = step.register(params)
    assert champion(params).number == before.version
    assert not after.is_champion
    failed = [gate for gate in after.gates if not gate.passed]
    assert [gate.name for gate in failed] == ["gain over the champion on matrix"]
    assert "-1.00 dB" in failed[0].reason
    assert "FAILED  gain over the champion on matrix: -1.00 dB, required -0.2 dB" in str(after)
    assert json.loads(step.SUMMARY.read_text())["passed"] is False


@pytest.mark.usefixtures("echo")
def test_a_better_model_becomes_champion_and_can_be_rolled_back(params: Any) -> None:
    before = step.register(params)
    change_checkpoint("better")
    write_records(records(InvFusion=dict.fromkeys(FAMILIES, 1.0)), step.EVALUATION)
    after = step.register(params)
    assert after.is_champion
    assert promotion.rollback(params, promotion.Decision("the new one blurs sevens")) == before.version
    # Registering again does not undo what a person decided.
    assert not step.register(params).is_champion
    assert champion(params).number == before.version


@pytest.mark.usefixtures("echo")
def test_a_project_may_lie_in_a_folder_of_any_name(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here, name = Path.cwd(), "a b für #1 100% +c&d;e"
    shutil.copytree(here, here / name, ignore=lambda *_: [name])
    monkeypatch.chdir(here / name)
    assert step.register(params).is_new
    assert not step.register(params).is_new
    shutil.rmtree("mlartifacts")
    assert step.register(params).is_new


@pytest.mark.parametrize("name", ["a%20b", "why?"])
def test_a_project_folder_that_mlflow_reads_otherwise_is_refused(
    params: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(ConfigError, match=r"MLflow cannot keep its files in .*Rename the folder"):
        tracking.connect(tracking.tracking_uri(params))


@pytest.mark.usefixtures("echo")
def test_lost_files_are_registered_anew(params: Any) -> None:
    step.register(params)
    shutil.rmtree("mlartifacts")
    assert step.register(params).is_new


def test_gates_name_what_fails(params: Any) -> None:
    found = records(InvFusion={"matrix": -3.0})
    first = next(i for i, r in enumerate(found) if (r.method, r.metric) == ("InvFusion", "consistency_mse"))
    found[first] = replace(found[first], value=0.02)
    failed = {gate.name: gate.reason for gate in gates.judge(found, params, None) if not gate.passed}
    assert failed == {
        "consistency on strided_motion_blur": "MSE 0.02, allowed 0.01",
        "gain over Palette on matrix": "-0.50 dB, required +0 dB",
    }


def test_gates_fail_without_evidence(params: Any) -> None:
    failed = [gate.name for gate in gates.judge([], params, None) if not gate.passed]
    assert failed == ["no missing metrics", "consistency", "gain over Palette"]


def test_a_champion_of_other_measurements_cannot_be_beaten() -> None:
    other = tracking.Version("1", {"metrics": json.dumps({"InvFusion/matrix/psnr": [1.0, 0.9, 1.1, 180, "another"]})})
    (gate,) = gates.champion_gates("InvFusion", records(), -0.2, other)
    assert not gate.passed
    assert "version 1 was measured on other measurements" in gate.reason


def test_one_degradation_of_other_measurements_is_enough() -> None:
    found = records()
    changed = [replace(r, measurements_sha256="another") if r.degradation == "matrix" else r for r in found]
    champion = tracking.Version("1", {"metrics": gates.packed(found, {"InvFusion"})})
    failed = [gate.name for gate in gates.champion_gates("InvFusion", changed, -0.2, champion) if not gate.passed]
    assert failed == ["gain over the champion on matrix"]


def test_a_number_that_the_champion_had_must_be_there(params: Any) -> None:
    found = records()
    champion = tracking.Version("1", {"metrics": gates.packed(found, {"InvFusion"})})
    less = [r for r in found if (r.method, r.metric) != ("InvFusion", "fd_pixel8x8")]
    failed = [gate for gate in gates.judge(less, params, champion) if not gate.passed]
    assert [gate.name for gate in failed] == ["no missing metrics"]
    assert "InvFusion/matrix/fd_pixel8x8" in failed[0].reason


def test_judged_are_the_methods_of_the_registered_model_and_its_companions() -> None:
    params = load_profile()
    assert gates.companions(params) == ["mmse", "nppc"]
    assert gates.judged(params) == {"InvFusion-G", "InvFusion-G MMSE", "MMSE", "NPPC", "Palette"}
    register = params.register_.model_copy(update={"model": "invfusion"})
    assert gates.judged(params.model_copy(update={"register_": register})) == {"InvFusion", "InvFusion MMSE", "Palette"}


def test_a_registered_model_asks_for_what_the_library_declares() -> None:
    assert {"torch", "numpy", "scipy", "einops", "pydantic", "safetensors"} <= set(step.of_library())
    assert not {"prefect", "pytest"} & set(step.of_library())


def test_calibration_counts_where_it_was_measured() -> None:
    found = [replace(r, value=0.4) if r.metric == "nppc_std_ratio" else r for r in records()]
    found += [record("InvFusion", "matrix", "tarp_gap", value) for value in (0.05, 0.5)]
    outcome = [(gate.name, gate.passed) for gate in gates.calibration_gates("InvFusion", found, 2.0, 0.2)]
    on_matrix = "calibration on matrix"
    assert outcome == [("calibration of NPPC on box_inpainting", False), (on_matrix, True), (on_matrix, False)]
    (gate,) = gates.calibration_gates("InvFusion", [], 2.0, 0.2)
    assert gate.passed
    assert "not available" in gate.reason


def test_missing_files_are_named(params: Any) -> None:
    Path("reports/evaluation.json").unlink()
    with pytest.raises(DataError, match=r"evaluation\.json"):
        step.register(params)
    shutil.rmtree("artifacts/models/invfusion")
    with pytest.raises(CheckpointError, match="train@invfusion"):
        step.register(params)


def write_models(params: Any, **changes: Any) -> None:
    """Untrained models of the default architecture, as the pipeline leaves them."""
    for name, n_components in (("invfusion", 0), ("mmse", 0), ("nppc", 2)):
        shutil.rmtree(Path("artifacts/models", name))
        options = {"variant": "invfusion", "n_components": n_components} | changes.get(name, {})
        denoiser = build_denoiser(params.model.preset, **options)
        save_denoiser(denoiser, Path("artifacts/models", name), {"name": name} | changes.get("manifest", {}))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text"])
def test_a_damaged_model_folder_is_named(params: Any, file: str, damage: str) -> None:
    write_models(params)
    for name in ("invfusion", "nppc"):
        path = Path("artifacts/models", name, file)
        content = path.read_bytes()
        path.unlink() if damage == "missing" else path.write_bytes(b"" if damage == "empty" else b"text")
        with pytest.raises(CheckpointError, match=f"artifacts/models/{name}"):
            step.register(params)
        path.write_bytes(content)
    assert versions(params) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"invfusion": {"variant": "unconditional"}}, "model 'invfusion': its network is 'unconditional'"),
        ({"invfusion": {"variant": "palette"}}, "model 'invfusion': its network is 'palette'"),
        ({"invfusion": {"n_components": 2}}, "model 'invfusion': it has 2 components"),
        ({"nppc": {"n_components": 0}}, "model 'nppc': it has 0 components"),
        ({"mmse": {"image_size": 32}}, r"model 'mmse': it makes images \(3, 32, 32\)"),
        ({"manifest": {"name": "mmse"}}, "model 'invfusion': it was trained as 'mmse'"),
    ],
)
def test_another_model_is_not_registered_as_this_one(params: Any, changes: Any, message: str) -> None:
    write_models(params, **changes)
    with pytest.raises(CheckpointError, match=message):
        step.register(params)


@pytest.mark.usefixtures("echo")
def test_an_unreachable_registry_is_named(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9"):
        step.register(params)


# The real model.


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store that holds a registered model: untrained weights of the default architecture."""
    import mlflow

    folder = tmp_path_factory.mktemp("registered") / "a b ü 100% #1"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_run(folder, n=1)
        params = load_profile()
        register = params.register_.model_copy(update={"model": "invfusion"})
        params = params.model_copy(update={"register_": register, "train": of_invfusion(params)})
        for name, n_components in (("invfusion", 0), ("mmse", 0), ("nppc", 2)):
            shutil.rmtree(folder / "artifacts/models" / name)
            denoiser = build_denoiser(params.model.preset, "invfusion", n_components=n_components)
            save_denoiser(denoiser, folder / "artifacts/models" / name, {"data_digest": "feed"})
        step.register(params)
        mlflow.set_tracking_uri(tracking.tracking_uri(params))
        return tracking.tracking_uri(params)


@pytest.fixture(scope="module")
def registered(registry: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(registry)
    return mlflow.pyfunc.load_model("models:/invfusion@champion")


def request_for(kind: str, batch: int = 2) -> dict[str, Any]:
    operator = DEGRADATIONS[kind]().sample(batch_size=batch, image_shape=(3, 16, 16), generator=generator(0, "test"))
    x = torch.linspace(-1, 1, batch * 3 * 16 * 16).reshape(batch, 3, 16, 16)
    return {"y": operator.H(x).flatten().tolist(), "operator": spec_to_json(operator.to_spec())}


@pytest.mark.slow
def test_the_registered_model_restores(registered: Any) -> None:
    few = {"n_steps": 2}
    request = request_for("strided_motion_blur")
    images = registered.predict(request, params=few)
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, registered.predict(request, params=few))
    assert np.abs(images - registered.predict(request, params={**few, "seed": 1})).max() > 1e-3
    assert registered.predict(request, params={**few, "n_samples": 3}).shape == (2, 3, 3, 16, 16)
    assert registered.predict(request_for("matrix"), params={"method": "mmse"}).shape == (2, 3, 16, 16)
    found = registered.predict(request_for("box_inpainting"), params={"method": "nppc"})
    assert {name: value.shape for name, value in found.items()} == {
        "mean": (2, 3, 16, 16),
        "components": (2, 2, 3, 16, 16),
        "stds": (2, 2),
    }
    refused = {
        "method must be one of": (request, {"method": "magic"}),
        "n_steps must be between": (request, {"n_steps": 10**6}),
        "must hold": ({**request, "y": request["y"][:-1]}, few),
        "not finite": ({**request, "y": [float("nan")] * len(request["y"])}, few),
        "not valid JSON": ({**request, "operator": "{"}, few),
        "must not be negative": ({**request, "sigma_y": [0.1, -0.1]}, few),
        "knows no classes": ({**request, "class_labels": [0, 0]}, few),
        "sigma_y holds a number that is not finite": ({**request, "sigma_y": [float("inf"), 0]}, few),
        "mask": ({**request, "operator": with_nan(request["operator"])}, few),
    }
    for message, (wrong, settings) in refused.items():
        with pytest.raises(Exception, match=message):
            registered.predict(wrong, params=settings)


def with_nan(operator: str) -> str:
    spec = json.loads(operator)
    return json.dumps({**spec, "kind": "mask", "attributes": {}, "tensors": {"mask": [[[[float("nan")] * 16] * 16]]}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_no_answer(value: float) -> None:
    good = {"images": torch.zeros(1, 3, 4, 4)}
    check_images([good, good])
    with pytest.raises(ShapeError, match="the restoration is not finite: y, sigma_y or the operator"):
        check_images([good, {"images": torch.full((1, 3, 4, 4), value)}])


def matrix_request(batch: int, rows: int) -> Measurement:
    operator = MatrixOperator((3, 27, 27), torch.eye(rows, 3 * 27 * 27).expand(batch, -1, -1))
    return Measurement(torch.zeros(batch, rows), operator, torch.zeros(batch))


def hidden(operator: LinearOperator) -> Measurement:
    """A measurement by an operator that stands within others."""
    outer = stack(scaled(operator, 2.0), Grayscale((3, 8, 8)))
    return Measurement(torch.zeros(1, *outer.measurement_shape), outer, torch.zeros(1))


def test_the_work_of_a_request_is_bounded() -> None:
    Work().add(matrix_request(256, 128), 1, 100)
    Work().add(matrix_request(1, 2048), 1, 1000)
    for batch, rows, n_samples, n_steps, message in [
        (1, 6000, 1, 1, "rows of a matrix for images of 2187 numbers"),
        (1, 2187, 1, 1, "squared rows of all matrices"),
        (256, 192, 1, 1, "squared rows of all matrices"),
        (256, 2, 256, 1000, "network passes"),
    ]:
        with pytest.raises(ShapeError, match=f"at most .* {message}.*split it"):
            Work().add(matrix_request(batch, rows), n_samples, n_steps)
    with pytest.raises(ShapeError, match="rows of a matrix for images of 192 numbers, this one asks for 193"):
        Work().add(hidden(MatrixOperator((3, 8, 8), torch.ones(1, 193, 192))), 1, 1)
    with pytest.raises(ShapeError, match="at most 16 operators within an operator, this one asks for 17"):
        Work().add(hidden(stack(*[Grayscale((3, 8, 8))] * 16)), 1, 1)
    together = Work()
    together.add(matrix_request(200, 2), 1, 1)
    with pytest.raises(ShapeError, match="at most 256 images, this one asks for 400"):
        together.add(matrix_request(200, 2), 1, 1)


@pytest.mark.parametrize("wrong", [[0, 10], [-1, 0], [0.5, 1]])
def test_labels_that_are_no_classes_are_refused(wrong: list[float]) -> None:
    assert read_labels({"class_labels": [0, 9]}, 2, 2, n_classes=10).tolist() == [0, 0, 9, 9]  # type: ignore[union-attr]
    with pytest.raises(ShapeError, match="whole numbers from 0 to 9"):
        read_labels({"class_labels": wrong}, 2, 1, n_classes=10)


@pytest.mark.slow
def test_the_registered_model_is_served(registered: Any) -> None:
    from mlflow.pyfunc.scoring_server import init
    from starlette.testclient import TestClient

    request = request_for("strided_motion_blur")
    client = TestClient(init(registered))
    reply = client.post("/invocations", json={"dataframe_records": [request], "params": {"method": "mmse"}})
    assert np.array(reply.json()["predictions"]).shape == (2, 3, 16, 16)
    reply = client.post(
        "/invocations", json={"dataframe_records": [request_for("box_inpainting")], "params": {"method": "nppc"}}
    )
    assert np.array(reply.json()["predictions"]["stds"]).shape == (2, 2)
    wide = spec_to_json(MatrixOperator((3, 16, 16), torch.ones(1, 6000, 768)).to_spec())
    refused: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "must hold": ({**request, "y": [1.0]}, {}),
        "y of 2 operators with measurements": ({**request, "y": [float("nan")] * len(request["y"])}, {}),
        "sigma_y holds a number that is not finite": ({**request, "sigma_y": [float("nan"), 0.1]}, {}),
        "at most 768 rows of a matrix": ({"y": [0.0] * 6000, "operator": wide}, {}),
        "n_samples must be between 1 and 256": (request, {"n_samples": 257}),
        "a row may ask for 1 to 256 images": (request, {"n_samples": 256}),
        "n_steps must be between 1 and 1000": (request, {"n_steps": 10**6}),
        "network passes": (request, {"n_steps": 1000, "n_samples": 128}),
    }
    for message, (wrong, settings) in refused.items():
        body = json.dumps({"dataframe_records": [wrong], "params": settings})
        reply = client.post("/invocations", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400, message
        assert message in reply.json()["message"]


@pytest.mark.slow
def test_pictures_go_in_and_come_out(registered: Any) -> None:
    """At their own size, as bytes in Python and as base64 through HTTP."""
    from mlflow.pyfunc.scoring_server import init
    from starlette.testclient import TestClient

    image = torch.linspace(-1, 1, 3 * 20 * 26).reshape(1, 3, 20, 26)
    mask = torch.full_like(image, -1)
    mask[..., 5:9, 8:20] = 1
    row = {"picture": encoded(Picture(image)), "mask": encoded(Picture(mask))}
    (answer,) = registered.predict(row, params={"method": "mmse"})
    restored = read_picture(base64.b64decode(answer["picture"]), "the answer").image
    known = mask == -1
    assert restored.shape == image.shape
    assert (restored - image)[known].abs().max() < 1e-2
    assert answer["record"]["operator"]["kind"] == "inpainting"
    client = TestClient(init(registered))
    sent = {name: base64.b64encode(content).decode() for name, content in row.items()}
    reply = client.post("/invocations", json={"dataframe_records": [sent], "params": {"method": "mmse"}})
    assert reply.json()["predictions"][0]["picture"] == answer["picture"]
    refused: dict[str, dict[str, Any]] = {
        "either a picture or the numbers": {**row, "y": [1.0], "operator": "{}"},
        "state one of mask": {**row, "scale": 2},
        "'scale'": {"picture": row["picture"], "scale": 99},
        "the picture": {"picture": b"no picture"},
    }
    for message, wrong in refused.items():
        with pytest.raises(Exception, match=message):
            registered.predict(wrong)
    with pytest.raises(Exception, match="y and operator, or a picture"):
        registered.predict({"sigma_y": [0.1]})


@pytest.mark.slow
def test_the_command_takes_a_registered_model(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its address, for a picture larger than the model's own images."""
    from invfusion.cli.main import main

    # As declared, whatever the installation at hand has registered.
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"][models.LOADERS]
    loaders = [EntryPoint(name, value, models.LOADERS) for name, value in declared.items()]
    monkeypatch.setattr(models, "entry_points", lambda **_: loaders)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    monkeypatch.chdir(tmp_path)
    save_image(torch.linspace(-1, 1, 3 * 20 * 26).reshape(1, 3, 20, 26), "in.png")
    named = ["--model", "models:/invfusion@champion", "--method", "mmse", "--sigma", "0.1"]
    assert main(["restore", "in.png", "-o", "out.png", *named]) == 0
    assert load_image("out.png").shape == (1, 3, 20, 26)
    assert main(["restore", "in.png", "-o", "other.png", "--model", "models:/invfusion@nobody"]) == 1


PREDICT_ELSEWHERE = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/invfusion@champion")
print(model.predict(json.loads(sys.argv[2]), params={"method": "mmse"}).shape)
import invfusion
print(invfusion.__file__)
"""


@pytest.mark.slow
def test_the_model_brings_its_own_code(registry: str, tmp_path: Path) -> None:
    """It loads in another process, in a working directory far from the project."""
    request = json.dumps(request_for("patch_inpainting"))
    command = [sys.executable, "-c", PREDICT_ELSEWHERE, registry, request]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.splitlines()[0] == "(2, 3, 16, 16)", done.stderr
    assert "code/invfusion" in done.stdout.splitlines()[1]
