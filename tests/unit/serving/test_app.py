"""The HTTP interface, without a socket."""

import argparse
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from invfusion.errors import ServiceError
from invfusion.restoration.photos import load_photos
from invfusion.serving import app as application
from invfusion.serving.app import PAGE, Limits, create_app
from invfusion.serving.server import serve

PIXELS = np.random.default_rng(0).integers(90, 160, (24, 20, 3)).astype(np.uint8)
LIMITS = Limits(max_pixels=2000, max_samples=4, max_bytes=100_000)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(load_photos(), {"name": "photos"}, LIMITS)) as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def text(pixels: np.ndarray) -> str:
    return base64.b64encode(png(pixels)).decode()


def opened(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def mask() -> np.ndarray:
    mask = np.zeros(PIXELS.shape[:2], np.uint8)
    mask[5:9, 3:15] = 255
    return mask


def test_health_readiness_and_limits(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "alive"
    assert client.get("/ready").json()["model"] == {"name": "photos"}
    assert client.get("/limits").json()["max_pixels"] == 2000


def test_json_in_and_out(client: TestClient) -> None:
    request = {"picture": "data:image/png;base64," + text(PIXELS), "mask": text(mask()), "samples": 3, "seed": 1}
    answer = client.post("/restore", json=request).json()
    known = mask() == 0
    for picture in (answer["picture"], *answer["samples"]):
        assert np.array_equal(opened(picture)[known], PIXELS[known])
    assert len(answer["samples"]) == 3
    assert opened(answer["std"]).max() == 255
    assert opened(answer["std"])[known].max() == 0
    assert answer["std_white"] > 0
    assert answer["record"]["residual"] == [0, 0, 0]
    again = client.post("/restore", json=request).json()
    assert again["samples"] == answer["samples"]


def test_bytes_in_and_out(client: TestClient) -> None:
    options = {"scale": 2, "method": "mmse"}
    answer = client.post("/restore.png", params=options, content=png(PIXELS))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert float(answer.headers["x-residual"]) < 0.01
    assert np.asarray(Image.open(io.BytesIO(answer.content))).shape == (48, 40, 3)


def float_tiff(value: float) -> str:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, dtype=np.float32)).save(content, "TIFF")
    return base64.b64encode(content.getvalue()).decode()


@pytest.mark.parametrize(
    "options", [{"blur_sigma": 1.0}, {"sigma": 0.1}, {"blur": text(np.eye(3, dtype=np.uint8) * 255)}]
)
def test_other_tasks(client: TestClient, options: dict[str, object]) -> None:
    answer = client.post("/restore", json={"picture": text(PIXELS), "method": "mmse", **options})
    assert answer.status_code == 200
    assert opened(answer.json()["picture"]).shape == PIXELS.shape


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"picture": "no base64!"}, 422, "must be base64"),
        ({"picture": ""}, 422, "is empty"),
        ({"picture": base64.b64encode(b"text").decode()}, 422, "not an image"),
        ({"mask": text(mask()[:5])}, 422, "the mask is"),
        ({"mask": text(mask() * 0)}, 422, "mask is empty"),
        ({"mask": text(mask()), "scale": 2}, 422, "state one of"),
        ({"method": "magic"}, 422, "unknown method"),
        ({"method": "aseq_dip"}, 422, "takes too long"),
        ({"method": "dps"}, 422, "takes too long"),
        ({"blur": text(np.full((61, 61), 200, np.uint8))}, 413, "pixels, as restored"),
        ({"samples": 5}, 413, "more than the 4"),
        ({"scale": 4}, 413, "more than the 2000"),
        ({"sigma": -1}, 422, "sigma_y"),
        ({"sigma": float("nan")}, 422, "sigma_y"),
        ({"sigma": float("inf")}, 422, "sigma_y"),
        ({"blur": text(np.zeros((3, 3), dtype=np.uint8))}, 422, "kernel"),
        ({"picture": float_tiff(float("nan"))}, 422, "the picture"),
    ],
)
def test_bad_requests_are_one_sentence(
    client: TestClient, change: dict[str, object], status: int, message: str
) -> None:
    body = json.dumps({"picture": text(PIXELS), **change})  # which writes NaN where there is one
    answer = client.post("/restore", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_fields_out_of_range_and_unknown_ones(client: TestClient) -> None:
    for change in ({"scale": 99}, {"colour": "red"}, {"boundary": "round"}, {"seed": 1.5}, {"samples": 0}):
        answer = client.post("/restore", json={"picture": text(PIXELS), **change})
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(next(iter(change)))
    assert client.post("/restore.png?sigma=much", content=png(PIXELS)).json()["error"].startswith("sigma: ")
    broken = client.post("/restore", content="{", headers={"content-type": "application/json"})
    assert (broken.status_code, "detail" in broken.json()) == (422, False)


def test_large_bodies_are_refused_before_they_are_read(client: TestClient) -> None:
    answer = client.post("/restore.png", content=b"x" * 200_000)
    assert answer.status_code == 413
    assert "100000" in answer.json()["error"]
    assert client.post("/restore.png", content=iter([b"x"])).status_code == 411


def test_slow_and_crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def wait(*_: object) -> None:
        go.wait(10)

    monkeypatch.setattr("invfusion.restoration.tasks.restore_picture", wait)
    monkeypatch.setattr(application, "MAX_WAITING", 0)
    limits = Limits(max_seconds=0.3)
    with TestClient(create_app(load_photos(), {}, limits)) as client:
        first = client.post("/restore.png", content=png(PIXELS))
        assert (first.status_code, "not done after 0.3 seconds" in first.text) == (504, True)
        crowded = client.post("/restore.png", content=png(PIXELS))
        assert (crowded.status_code, "waiting already" in crowded.text) == (503, True)
        go.set()
        for _ in range(100):
            if client.get("/ready").json()["waiting"] == 0:
                break
            time.sleep(0.05)
        assert client.get("/ready").json()["waiting"] == 0


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    page = client.get("/").text
    assert page == PAGE.read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert 'src="' not in page


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = argparse.Namespace(
            host="127.0.0.1", port=port, model="photos", device="cpu", max_megapixels=1, max_seconds=1, open=False
        )
        with pytest.raises(ServiceError, match=f"127.0.0.1:{port} .*choose another --port"):
            serve(options)


def test_what_nobody_waits_for_any_more_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def slow(self: application.Service, content: bytes, options: object) -> None:
        begun.append(content)
        time.sleep(0.5)

    monkeypatch.setattr(application.Service, "restore", slow)
    with TestClient(create_app(load_photos(), {}, Limits(max_seconds=0.1))) as client:
        answers = [client.post("/restore.png", content=png(PIXELS)).status_code for _ in range(3)]
        time.sleep(0.6)
        assert client.get("/ready").json()["waiting"] == 0
    assert answers == [504, 504, 504]
    assert len(begun) == 1
