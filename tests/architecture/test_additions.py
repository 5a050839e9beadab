"""Adding something takes one new file, one line and one entry; an operator and a stage may take two places more."""

from pathlib import Path

import additions
import pytest

MOST = {"operator": 5, "stage": 5}


@pytest.mark.slow
@pytest.mark.parametrize("kind", additions.ADDITIONS)
def test_an_addition_appears_everywhere(kind: str, tmp_path: Path) -> None:
    addition = additions.ADDITIONS[kind]
    assert len(additions.changed(addition)) <= MOST.get(kind, 3)
    tree = additions.copied(tmp_path)
    additions.make(addition, tree)
    additions.check(addition, tree)
