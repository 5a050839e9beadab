"""Adding something takes one new file, one line and one entry; an operator and a stage may take two places more."""

from pathlib import Path

import additions
import pytest

MOST = {"operator": 5, "stage": 5}


@pytest.mark.parametrize("kind", additions.ADDITIONS)
def test_an_addition_is_small(kind: str) -> None:
    assert len(additions.changed(additions.ADDITIONS[kind])) <= MOST.get(kind, 3)


@pytest.mark.slow
def test_additions_of_all_kinds_appear_everywhere(tmp_path: Path) -> None:
    tree = additions.copied(tmp_path)
    for addition in additions.ADDITIONS.values():
        additions.make(addition, tree)
    additions.check(tree)
