"""Kinds of faults that bug reports told of, each with the tests that hold it off: how many, and that they pass."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fault_report import ROOT

DATA, UNIT, COMPONENTS = "tests/unit/data/", "tests/unit/", "tests/components/"
REGISTER = f"{COMPONENTS}test_register.py"

# Each kind, and the first words of the tests that try its cases.
KINDS: dict[str, tuple[str, ...]] = {
    "names beside a dataset that a user may own; an output that is a link": (
        f"{DATA}test_build.py::test_neighbours",
        f"{DATA}test_build.py::test_a_link_as_output",
        f"{DATA}test_build.py::test_links_in_a_circle",
        f"{DATA}test_build.py::test_a_tar_that_the_manifest_does_not_list",
        f"{DATA}test_build.py::test_a_place_that_was_taken",
    ),
    "layouts that are not the documented one": (
        f"{DATA}test_layout.py::",
        f"{DATA}test_sources.py::test_splits_of_tars",
        f"{DATA}test_sources.py::test_what_lies_outside",
    ),
    "entries of a source that are neither read nor counted": (
        f"{DATA}test_sources.py::test_every_member_of_a_zip",
        f"{DATA}test_sources.py::test_compressed_tars",
        f"{DATA}test_sources.py::test_a_damaged_zip",
        f"{DATA}test_shards.py::test_every_file_of_a_tar",
    ),
    "files at which skipping stopped": (
        f"{DATA}test_build.py::test_with_skip",
        f"{DATA}test_build.py::test_skipped_files",
        f"{DATA}test_images.py::test_whatever_a_decoder_raises",
        f"{DATA}test_images.py::test_damaged_metadata",
    ),
    "pixels of a range that nobody states": (
        f"{DATA}test_images.py::test_pixels_of",
        f"{DATA}test_images.py::test_sixteen_bit",
        f"{DATA}test_images.py::test_every_mode",
        f"{DATA}test_images.py::test_a_colour_profile",
        f"{DATA}test_images.py::test_white_is_zero",
    ),
    "decoders that start programs, and images that take minutes": (
        f"{DATA}test_images.py::test_no_decoder",
        f"{DATA}test_images.py::test_only_listed",
        f"{DATA}test_images.py::test_a_strip",
        f"{DATA}test_images.py::test_the_middle",
    ),
    "manifests that name a shard twice, and names that leave their folder": (
        f"{DATA}test_shards.py::test_a_manifest_that_contradicts",
        f"{DATA}test_build.py::test_what_is_known_to_be_unreadable",
        f"{DATA}test_layout.py::test_names_that_leave",
    ),
    "matrices of exact numbers whose rows depend on each other": (
        f"{UNIT}operators/test_matrix_operator.py::test_rank_deficient",
        f"{UNIT}operators/test_matrix_operator.py::test_dependent",
        f"{UNIT}operators/test_matrix_operator.py::test_more_rows",
        f"{UNIT}operators/test_matrix_operator.py::test_zero_rows",
        f"{UNIT}operators/test_matrix_operator.py::test_padding",
    ),
    "operators that are given numbers of another kind": (
        "tests/contract/test_operators.py::test_numbers_of_the_wrong_kind",
        "tests/contract/test_operators.py::test_select_takes",
        f"{UNIT}operators/test_matrix_operator.py::test_definitions_of_the_wrong",
        f"{UNIT}operators/test_spec.py::test_tensors_of_other",
    ),
    "measurements that do not fit, and samplers that ignore them": (
        f"{UNIT}operators/test_iterative.py::test_a_measurement_that_does_not",
        "tests/contract/test_samplers.py::test_what_does_not_fit",
        f"{UNIT}samplers/test_capabilities.py::test_pairings",
    ),
    "names in params.yaml that are wrong, and files in other encodings": (f"{COMPONENTS}test_params.py::",),
    "projects in folders whose names read as addresses": (
        f"{REGISTER}::test_a_project",
        f"{REGISTER}::test_the_model_brings",
    ),
    "model folders that are damaged or hold another model": (
        f"{REGISTER}::test_a_damaged_model",
        f"{REGISTER}::test_another_model",
    ),
    "requests to a served model that are no numbers, or too much work": (
        f"{REGISTER}::test_the_registered_model",
        f"{REGISTER}::test_the_work",
        f"{REGISTER}::test_images_that",
        f"{UNIT}serving/test_app.py::test_bad_requests",
        f"{UNIT}serving/test_app.py::test_large_bodies",
    ),
    "locks of several users, and devices of any name": (
        f"{UNIT}test_locks_and_files.py::",
        "tests/flows/test_leases.py::test_a_device",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """{file::test: whether it passed} of all files that the kinds name."""
    report = tmp_path_factory.mktemp("kinds") / "report.xml"
    named = [start.partition("::") for starts in KINDS.values() for start in starts]
    chosen = " or ".join(name or Path(file).stem for file, _, name in named)
    options = ["-q", "-k", chosen, "-o", "junit_family=xunit1", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, *sorted({file for file, _, _ in named})]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return {
        f"{case.attrib['file']}::{case.attrib['name']}": not {"failure", "error"} & {child.tag for child in case}
        for case in ElementTree.parse(report).iter("testcase")
    }


def test_each_kind_names_tests_that_exist() -> None:
    for start in (start for starts in KINDS.values() for start in starts):
        file, _, name = start.partition("::")
        assert f"def {name}" in (ROOT / Path(file)).read_text(), start


@pytest.mark.full_size
@pytest.mark.parametrize("kind", KINDS)
def test_no_case_of_a_kind_passes_in_silence(outcomes: dict[str, bool], kind: str, note: Any) -> None:
    found = {name: passed for name, passed in outcomes.items() if name.startswith(KINDS[kind])}
    assert found
    assert all(found.values()), [name for name, passed in found.items() if not passed]
    note(kind, len(found), "nothing: read, counted, or refused by name")
