"""How large the house is: lines of code and of YAML, and the files to read from a measurement's shard to its metric.

`python tests/architecture/house.py` measures the tree as it is, `house.py REVISION` an earlier one.
"""

import io
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from components.code import Sources

ROOT = Path(__file__).resolve().parents[2]
# From the two stages to what they need on the way, each by its definition: names outlive files.
WAYS = {
    "def stage": ["def read_shard"],
    "def evaluate": [
        "class MeasurementSet",
        "class PatchInpainting(Config)?",
        "class MaskOperator",
        "class Heun(Config)?",
        "class Denoiser",
        "def psnr",
    ],
}
# Tokens between statements, and those that say nothing.
BREAKS = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
SILENT = {tokenize.COMMENT, tokenize.NL}
YAML = {"dvc.yaml", "params.yaml", "profiles", "experiments", "oracle"}


def code_lines(text: str) -> int:
    """The lines that hold Python other than comments and docstrings."""
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in SILENT]
    lines: set[int] = set()
    for i, token in enumerate(tokens):
        starts = i == 0 or tokens[i - 1].type in BREAKS
        is_docstring = token.type == tokenize.STRING and starts and tokens[i + 1].type == tokenize.NEWLINE
        if token.type not in BREAKS and not is_docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def yaml_lines(text: str) -> int:
    """The lines that are neither empty nor comments."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())


def sizes(tree: Path) -> dict[str, tuple[int, int]]:
    """{package, or "YAML": (files, lines)}."""
    found = {}
    for package in ("flows", "components", "invfusion", "benchmarks", "tests"):
        texts = [path.read_text() for path in sorted((tree / package).rglob("*.py"))]
        found[package] = len(texts), sum(map(code_lines, texts))
    yaml = [
        path for name in YAML for path in ([tree / name] if name.endswith(".yaml") else (tree / name).rglob("*.yaml"))
    ]
    found["YAML"] = len(yaml), sum(yaml_lines(path.read_text()) for path in yaml)
    return found


def definition(tree: Path, statement: str) -> str:
    """The module with such a statement."""
    for package in ("components", "invfusion"):
        for path in sorted((tree / package).rglob("*.py")):
            if re.search(rf"^{statement}\b", path.read_text(), re.MULTILINE):
                return ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")
    raise LookupError(f"no module has '{statement}'")


def import_path(sources: Sources, starts: Sequence[str], end: str) -> Sequence[str]:
    """The shortest way by imports from any of some modules to another."""
    reached_from, waiting = dict.fromkeys(starts, ""), deque(starts)
    while waiting and end not in reached_from:
        module = waiting.popleft()
        for found in sorted(sources.imports(module) - reached_from.keys()):
            reached_from[found] = module
            waiting.append(found)
    way = [end]
    while reached_from[way[-1]]:
        way.append(reached_from[way[-1]])
    return way[::-1]


def files_on_the_way(tree: Path) -> list[str]:
    """The modules between shard and metric in the order of reading: each is a stage, or imported by one before it."""
    sources, found = Sources(tree), list[str]()
    for start, ends in WAYS.items():
        opened = [definition(tree, start)]
        for end in ends:
            way = import_path(sources, opened, definition(tree, end))
            opened += [module for module in way if module not in opened]
        found += opened
    return found


def report(tree: Path) -> str:
    lines = [f"{name:<12}{files:>5} files{n:>8} lines" for name, (files, n) in sizes(tree).items()]
    way = files_on_the_way(tree)
    return "\n".join([*lines, "", f"from shard to metric: {len(way)} files", *(f"  {module}" for module in way), ""])


def main() -> None:
    if len(sys.argv) == 1:
        sys.stdout.write(report(ROOT))
        return
    archive = subprocess.run(["git", "archive", sys.argv[1]], cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        sys.stdout.write(report(Path(folder)))


if __name__ == "__main__":
    main()
