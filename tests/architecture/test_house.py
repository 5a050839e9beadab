"""The size of the house is counted right, and its way from shard to metric is short."""

from pathlib import Path

import house
import pytest

TEXT = '''"""Of a module."""

import math  # a comment


def area(r):
    """Of a circle.

    In squares.
    """
    # A comment.
    text = """two
    lines"""
    return math.pi * r**2, text
'''


def test_comments_and_docstrings_are_no_code() -> None:
    assert house.code_lines(TEXT) == 5
    assert house.yaml_lines("# why\n\na: 1  # b\n") == 1


def test_the_way_from_shard_to_metric() -> None:
    way = house.files_on_the_way(house.ROOT)
    assert (way[0], way[-1]) == ("components.data.stage", "invfusion.metrics.psnr")
    assert len(way) == len(set(way)) <= 16


def test_a_definition_that_moved_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="def psnr"):
        house.definition(tmp_path, "def psnr")
