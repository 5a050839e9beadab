"""One addition of each kind (additions.yaml), all made in a copy of the tree: what changes, and that each appears
everywhere.

`python tests/architecture/additions.py` makes them and prints the files that each changes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components.profiles import profile_text

ROOT = Path(__file__).resolve().parents[2]
ADDITIONS: dict[str, Any] = YAML(typ="safe").load(Path(__file__).with_suffix(".yaml"))
# What no addition reads.
LEFT_OUT = ("docs/", ".dvcremote/", "benchmarks/")


def changed(addition: Any) -> list[str]:
    """The files that are new or edited."""
    return list(dict.fromkeys([*filter(None, [addition.get("file")]), *(edit["path"] for edit in addition["edits"])]))


def copied(to: Path) -> Path:
    """The tree as it is, without documents and data."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(LEFT_OUT):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    # The user's own edits of it are no part of what is tried.
    (to / "params.yaml").write_text(profile_text("digits16"))
    return to


def make(addition: Any, tree: Path) -> None:
    """Put the addition into a tree."""
    if "file" in addition:
        assert not (tree / addition["file"]).exists()
        (tree / addition["file"]).write_text(addition["content"])
    for edit in addition["edits"]:
        path = tree / edit["path"]
        path.write_text(edited(path.read_text(), edit))


def edited(text: str, edit: Any) -> str:
    """A text with one line or word more."""
    end = "\n" if "below" in edit else ""
    place = edit.get("below", edit.get("behind")) + end
    before, found, after = text.partition(place)
    assert found, f"{edit['path']} has no {place!r}"
    return before + found + edit["text"].removesuffix(end) + end + after


def check(tree: Path) -> None:
    """Fail unless each appears where it should, and keeps the contract of its kind."""
    tested = [addition for addition in ADDITIONS.values() if "test" in addition]
    files = [f"tests/contract/{addition['test']}" for addition in tested]
    chosen = " or ".join(f"({Path(a['test']).stem} and {a['member']})" for a in tested)
    options = ["-x", "-p", "no:cacheprovider", *files, "-k", chosen]
    parts = [addition["check"] for addition in ADDITIONS.values()]
    code = "\n".join([*parts, f"import sys, pytest; sys.exit(pytest.main({options!r}))"])
    environment = {**os.environ, "PYTHONPATH": str(tree), "INVFUSION_JOB": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{Path(file).name} ." in done.stdout for file in files), done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        for addition in ADDITIONS.values():
            make(addition, tree)
        check(tree)
    for kind, addition in ADDITIONS.items():
        sys.stdout.write(f"{kind:<14}{len(changed(addition))}  {', '.join(changed(addition))}\n")


if __name__ == "__main__":
    main()
