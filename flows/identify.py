"""Write down what each stage's results depend on beside data: `python -m flows.identify`, as DVC's first stage runs it.

artifacts/identity/ holds one file for each stage, with the digest of each module behind its component, and one for each
model, with the settings of its training too. They change where a result may, and DVC's other stages depend on them.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components import cli
from components.code import code_of, sources
from components.device import check_device
from components.params import Params
from components.training.identity import identity
from flows.stages import STAGES, Stage

log = logging.getLogger(__name__)

FOLDER = Path("artifacts/identity")
# Of the changes, so many are named.
SHOWN = 5


def identities(params: Params) -> dict[str, dict[str, Any]]:
    """{name of a file: what it holds}."""
    found: dict[str, dict[str, Any]] = {}
    for stage in STAGES.values():
        if stage.each:
            found |= {f"{stage.name}/{model}": identity_of(params, stage, model) for model in params.models}
        else:
            found[stage.name] = identity_of(params, stage)
    return found


def identity_of(params: Params, stage: Stage, model: str = "") -> dict[str, Any]:
    """What the file of a stage, or of a model of it, holds."""
    if stage.each:
        return identity(params, model)
    module = stage.component.partition(":")[0]
    return {"code": sources().digests(module, *code_of(*stage.uses(params)))}


def text_of(content: Mapping[str, Any]) -> str:
    """A file's text."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def identify(params: Params) -> None:
    """Bring the files up to date, and say what has changed."""
    wanted = {FOLDER / f"{name}.json": content for name, content in identities(params).items()}
    for path in set(FOLDER.rglob("*.json")) - set(wanted):
        path.unlink()
    for path, content in wanted.items():
        text = text_of(content)
        if path.exists():
            if path.read_text() == text:
                continue
            changes = changed(json.loads(path.read_text()), content)
            more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
            name = path.relative_to(FOLDER).with_suffix("")
            log.info("%s: changed: %s%s", name, ", ".join(changes[:SHOWN]), more)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def changed(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys, with dots, at which nested values differ."""
    found = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changed(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}")
    return found


def main() -> None:
    with cli.started(cli.parser(__doc__)) as options:
        # Plain `dvc repro` runs this before anything else.
        check_device(options.params)
        identify(options.params)


if __name__ == "__main__":
    main()
