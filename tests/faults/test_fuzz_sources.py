"""Folders, zips and tars made by chance: every entry ends as read, skipped and counted, or refused by our error."""

import contextlib
import io
import os
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_report import IS_FULL, Row
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from noise_data import png
from PIL import Image

from invfusion.data.build import BuildConfig, build_dataset
from invfusion.data.manifest import read_manifest
from invfusion.data.sources import Source
from invfusion.data.sources.folder import Folder
from invfusion.data.sources.shards import Shards
from invfusion.data.sources.zip import Zip
from invfusion.errors import DataError

CASES = 3500 if IS_FULL else 40
FUZZ = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
OUTCOMES: dict[str, Counter[str]] = {"folders": Counter(), "zips": Counter(), "tars": Counter()}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (6, 4), "red")
CONTENTS = [
    *[b"", b"text", b"3", png(9)[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"],
    encoded(
        RED,
        "JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x0c\0\1\0\0\0\1\2\3\4\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0",
    ),
    encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    encoded(RED.convert("LA"), "PNG"),
    encoded(RED, "DDS"),
]
PARTS = [
    *["a", "b", "cat", "train", "Test", "val", "train2017", "val2017"],
    *["..", ".", "", " ", "__meta__", "__MACOSX", ".git", "Thumbs.db", "C:", "a.b"],
    *["ä", "a\u0308", "M\udcfcller", "x" * 120, "a\nb", "\x7f", "%2E", "-", "~"],
]
SUFFIXES = [".png", ".png", ".png", ".PNG", ".jpg", ".cls", ".json", ".tar", "", ".", ".eps"]
WILD = st.builds(
    lambda parts, separator, suffix: separator.join(parts) + suffix,
    st.lists(st.sampled_from(PARTS) | st.text(max_size=4), min_size=1, max_size=4),
    st.sampled_from("///\\"),
    st.sampled_from(SUFFIXES),
)
# Most sources are mostly good: else nearly all would be refused for one name, and nothing else be tried.
MILD = st.builds(lambda folder, number: f"{folder}/{number}.png", st.sampled_from(["p", "q/r"]), st.integers(0, 99))
NAMES = st.integers(0, 9).flatmap(lambda dice: WILD if dice == 0 else MILD)
IMAGES = st.integers(0, 99).map(png)
MEMBERS = st.lists(
    st.tuples(NAMES, IMAGES)
    | st.tuples(NAMES, IMAGES)
    | st.tuples(NAMES, st.sampled_from(CONTENTS) | st.binary(max_size=60)),
    min_size=1,
    max_size=7,
)
NOISE = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=30)), max_size=2)
ON_ERROR = st.sampled_from(["fail", "skip", "skip"])


def damage(content: bytes, noise: list[tuple[float, bytes]], cut: float) -> bytes:
    changed = bytearray(content)
    for place, values in noise:
        at = int(place * len(changed))
        changed[at : at + len(values)] = values
    return bytes(changed[: int(cut * len(changed))] if cut < 0.3 else changed)


def build_and_count(kind: str, source: Source, on_error: Any, n_entries: int | None) -> None:
    """Build from the source; whatever comes out is counted, and lies in its place alone."""
    outcomes = OUTCOMES[kind]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        try:
            manifest, account = build_dataset(
                source.open(), output, BuildConfig(name="x", image_size=4, on_error=on_error)
            )
        except DataError:
            outcomes["refused"] += 1
            assert os.listdir(folder) == []
            return
        assert os.listdir(folder) == ["out"]
        assert manifest == read_manifest(output)
    assert n_entries is None or account.n_read + account.n_skipped == n_entries
    assert manifest.n_skipped == account.n_skipped
    assert on_error == "skip" or not account.problems
    outcomes["skipped some" if account.n_skipped else "read"] += 1


LINKS = st.sampled_from(["nowhere", ".", "..", "../elsewhere", "/dev/null", "a", "itself", "fifo"])


@FUZZ
@given(members=MEMBERS, links=st.lists(st.tuples(NAMES, LINKS), max_size=1), labels=st.booleans(), on_error=ON_ERROR)
def test_folders(members: list[tuple[str, bytes]], links: list[tuple[str, str]], labels: bool, on_error: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "source"
        root.mkdir()
        (Path(place) / "elsewhere").mkdir()
        for i in range(2):
            (Path(place) / "elsewhere" / f"{i}.png").write_bytes(png(20 + i))
        for name, content in members:
            with contextlib.suppress(OSError, ValueError):  # names that this file system does not take
                path = inside(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for name, target in links:
            with contextlib.suppress(OSError, ValueError):
                path = inside(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.mkfifo(path) if target == "fifo" else path.symlink_to(path.name if target == "itself" else target)
        before = sorted(Path(place).rglob("*"))
        build_and_count("folders", Folder(path=root, labels=labels), on_error, count(root))
        assert sorted(Path(place).rglob("*")) == before


def inside(root: Path, name: str) -> Path:
    path = Path(os.path.normpath(f"{root}/{name}"))
    if not path.is_relative_to(root) or path == root:
        raise ValueError(name)
    return path


def count(root: Path) -> int:
    """Entries by another way than the source's own: what is no folder, and once what a link outside leads to."""
    n_entries, n_outside = 0, 0
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        n_outside += sum((Path(folder) / name).resolve().name == "elsewhere" for name in links)
        n_entries += len(files) + len(links)
    return n_entries + bool(n_outside)  # two files for the first such link


@FUZZ
@given(
    members=MEMBERS, kinds=st.lists(st.sampled_from([0, 0, 8, 8, 8, 8, 12, 14] * 6 + [9, 99]), min_size=7, max_size=7),
    flags=st.lists(st.sampled_from([0] * 60 + [1, 0x800, 0x20]), min_size=7, max_size=7), noise=NOISE,
    modes=st.lists(st.sampled_from([0, 0o100644] * 20 + [0o120777, 0o40755, 0o10644]), min_size=7, max_size=7),
    cut=st.floats(0, 3), labels=st.booleans(), on_error=ON_ERROR,
)  # fmt: skip
def test_zips(
    members: list[tuple[str, bytes]], kinds: list[int], flags: list[int], modes: list[int],
    noise: list[tuple[float, bytes]], cut: float, labels: bool, on_error: str,
) -> None:  # fmt: skip
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as archive:
        for (name, content), kind, mode in zip(members, kinds, modes, strict=False):
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
            info.compress_type, info.external_attr = kind if kind in (0, 8, 12, 14) else 0, mode << 16
            archive.writestr(info, content)
        for info, kind, flag in zip(archive.infolist(), kinds, flags, strict=False):
            info.flag_bits |= flag  # in the central directory, as a damaged or foreign one
            info.compress_type = kind
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.zip"
        path.write_bytes(damage(buffer.getvalue(), noise if cut < 0.6 else [], cut))
        n_entries = None
        with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if info.file_size or info.filename[-1:] not in "/\\"]
            n_entries = len(names)
        build_and_count("zips", Zip(path=path, labels=labels), on_error, n_entries)


@FUZZ
@given(
    tars=st.lists(
        st.tuples(NAMES, MEMBERS, st.sampled_from(["w", "w", "w:gz"]), NOISE, st.floats(0, 3)),
        min_size=1, max_size=2,
    ),
    kinds=st.lists(st.sampled_from(list(b"0" * 40 + b"125gLx6S")), min_size=7, max_size=7), on_error=ON_ERROR,
)  # fmt: skip
def test_tars(tars: list[Any], kinds: list[int], on_error: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "source"
        root.mkdir()
        n_entries: int | None = 0
        for number, (name, members, mode, noise, cut) in enumerate(tars):
            with contextlib.suppress(OSError, ValueError):
                path = inside(root, name).with_suffix(".tar")
                path.parent.mkdir(parents=True, exist_ok=True)
                n_files = write_tar(path, members, kinds if number == 0 else [], mode)
                is_damaged = cut < 0.6 and (noise or cut < 0.3)
                path.write_bytes(damage(path.read_bytes(), noise, cut) if is_damaged else path.read_bytes())
                n_entries = None if is_damaged or n_files is None or n_entries is None else n_entries + n_files
        found = sum(len(files) for _, _, files in os.walk(root))
        build_and_count("tars", Shards(path=root), on_error, n_entries if found == len(tars) else None)


def write_tar(path: Path, members: list[tuple[str, bytes]], kinds: list[int], mode: str) -> int | None:
    """How many files it holds; None where that cannot be said, or where the tar is hidden."""
    n_files = 0
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for number, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = bytes(kinds[number : number + 1]) or tarfile.REGTYPE, "a.png"
            info.size = 0 if info.type in (b"1", b"2", b"5", b"6") else len(content)  # else what follows is no header
            archive.addfile(info, io.BytesIO(content))
            n_files += 1
    plain = all(kind in b"0126" for kind in kinds[: len(members)]) and all(name[-1:] != "/" for name, _ in members)
    parts = str(path).replace("\\", "/").split("/")
    is_hidden = any(part.startswith(".") or part in ("Thumbs.db", "__MACOSX") for part in parts)
    return n_files if plain and n_files and not is_hidden else None


@pytest.fixture(scope="module", autouse=True)
def report(rows: Any) -> Iterator[None]:
    yield
    for kind, outcomes in OUTCOMES.items():
        if not outcomes:
            continue
        parts = ", ".join(f"{outcomes[name]:,} {name}" for name in ("read", "skipped some", "refused"))
        rows.append(Row(f"{kind} as sources, made by chance", outcomes.total(), f"nothing: {parts}, and all counted"))
