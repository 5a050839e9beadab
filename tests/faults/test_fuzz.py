"""Whatever a stranger hands in, the documented error comes back: nothing else is raised, executed or written."""

import base64
import contextlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_report import IS_FULL, Row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noise_data import png, write_dataset

from invfusion.data.images import open_image
from invfusion.data.manifest import read_manifest
from invfusion.data.shards import read_shard
from invfusion.data.sources.zip import Zip
from invfusion.degradations import FAMILIES
from invfusion.errors import DataError, InvFusionError
from invfusion.operators import operator_from_spec, spec_from_json, spec_to_json
from invfusion.rng import generator

CASES = 5000 if IS_FULL else 120
FUZZ = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

SPECS = [
    json.loads(
        spec_to_json(family().sample(batch_size=2, image_shape=(3, 8, 8), generator=generator(0, kind)).to_spec())
    )
    for kind, family in FAMILIES.items()
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["float32", "mask", "matrix", "kernel", [], {}, [3, 8, 8], [2**40], float("nan"), "AAAA"]),
)  # fmt: skip
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner))


@st.composite
def damaged_specs(draw: Any) -> Any:
    """A good spec in which one or two places hold something else, are missing, or have a sibling."""
    spec = json.loads(json.dumps(draw(st.sampled_from(SPECS))))
    for _ in range(draw(st.integers(1, 2))):
        place: Any = spec
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or draw(st.booleans()):
                break
            place = place[key]
        else:
            continue
        action = draw(st.sampled_from(["replace", "remove", "add", "bytes"]))
        if action == "remove":
            del place[key]
        elif action == "add":
            place[draw(st.text(max_size=5))] = draw(JSON)
        elif action == "bytes" and isinstance(place[key], str):
            place[key] = base64.b64encode(draw(st.binary(max_size=200))).decode()
        else:
            place[key] = draw(JSON)
    return spec


def build(text: str) -> None:
    """What a server does with a request: read, build, apply."""
    operator = operator_from_spec(spec_from_json(text))
    operator.H(torch.zeros(operator.batch_size, *operator.image_shape))


@FUZZ
@given(damaged_specs())
def test_damaged_operator_specs(spec: Any) -> None:
    with contextlib.suppress(InvFusionError):
        build(json.dumps(spec))


@FUZZ
@given(st.text() | JSON.map(json.dumps))
def test_operator_specs_that_are_anything(text: str) -> None:
    with contextlib.suppress(InvFusionError):
        build(text)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("fuzz") / "noise") / "train-000000.tar"


@FUZZ
@given(
    cut=st.floats(0, 1), places=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=600)), max_size=4)
)
def test_damaged_shards(shard: Path, tmp_path: Path, cut: float, places: list[tuple[float, bytes]]) -> None:
    content = bytearray(shard.read_bytes())
    for place, noise in places:
        at = int(place * len(content))
        content[at : at + len(noise)] = noise
    (tmp_path / "x.tar").write_bytes(content[: int(cut * len(content))] if cut < 0.7 else content)
    read_all(tmp_path / "x.tar")


@FUZZ
@given(
    members=st.lists(
        st.tuples(
            st.text(max_size=12) | st.sampled_from(["a.png", "a.cls", "../a.png", "/etc/a.png"]), st.binary(max_size=80)
        ),
        max_size=4,
    ),
    kinds=st.lists(st.sampled_from(list(b"01234567gxLKSDN")), min_size=4, max_size=4),
    mode=st.sampled_from(["w", "w:gz", "w:xz"]),
)
def test_shards_of_anything(tmp_path: Path, members: list[tuple[str, bytes]], kinds: list[int], mode: str) -> None:
    with contextlib.suppress(ValueError, UnicodeError), tarfile.open(tmp_path / "x.tar", mode) as archive:  # type: ignore[call-overload]
        for (name, content), kind in zip(members, kinds, strict=False):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), bytes([kind]), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    read_all(tmp_path / "x.tar")


def read_all(path: Path) -> None:
    """Read a shard and decode its images, as staging does."""
    before = sorted(path.parent.iterdir())
    with contextlib.suppress(InvFusionError):
        for sample in read_shard(path):
            open_image(sample.image, sample.key)
    assert sorted(path.parent.iterdir()) == before


@pytest.fixture(scope="module", autouse=True)
def report(rows: Any) -> Iterator[None]:
    yield
    rows.append(Row("operator specs made by hypothesis", 2 * CASES, "nothing: the documented error every time"))
    rows.append(Row("shards made by hypothesis", 2 * CASES, "nothing: the documented error every time"))


# What fuzzing does not reach.


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/out.png"])
def test_a_key_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(png(0))
        archive.addfile(info, io.BytesIO(png(0)))
    with pytest.raises(DataError, match="points out of its folder"):
        list(read_shard(tmp_path / "x.tar"))


def test_a_manifest_cannot_name_files_elsewhere(shard: Path, tmp_path: Path) -> None:
    text = (shard.parent / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace("train-000000.tar", "../train-000000.tar"))
    with pytest.raises(DataError, match="not a dataset manifest"):
        read_manifest(tmp_path)


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invfusion.data.shards.MAX_FILE_BYTES", 1000)
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        info = tarfile.TarInfo("bomb.png")
        info.size = 100_000
        archive.addfile(info, io.BytesIO(bytes(100_000)))
    with pytest.raises(DataError, match=r"'bomb\.png' claims 100000 bytes"):
        list(read_shard(tmp_path / "x.tar"))
    monkeypatch.setattr("invfusion.data.sources.zip.MAX_FILE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("bomb.png", bytes(100_000))
    with pytest.raises(DataError, match=r"'bomb\.png' cannot be read: more than"):
        Zip(path=tmp_path / "x.zip").open()


def test_an_image_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invfusion.data.images.MAX_PIXELS", 63)
    with pytest.raises(DataError, match=r"too large \(8x8, at most 63 pixels"):
        open_image(png(0), "it")
