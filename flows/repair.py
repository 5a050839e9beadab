"""What a kill can leave of DVC's own files: DVC does not write them in one step, and refuses to read half of one."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from dvc.lock import LockError, make_lock
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from flows.stages import STAGES

log = logging.getLogger(__name__)

STATE = Path(".dvc/tmp")
WAIT_S = 0.2
# Who uses which path, while DVC runs.
IN_USE = STATE / "rwlock"
# What each graph's stages were made from.
LOCKFILES = sorted({Path(stage.graph).with_suffix(".lock") for stage in STAGES.values()})


def repair() -> None:
    """Put aside what was half written, unless DVC is at work; results are not among it."""
    if not STATE.exists():
        return
    with _guarded_by(STATE / "rwlock.lock") as is_idle:
        if is_idle and _is_broken_json(IN_USE):
            log.warning("%s was cut short when DVC was killed: it is made anew", IN_USE)
            IN_USE.unlink()
    with _guarded_by(STATE / "lock") as is_idle:
        for path in filter(_is_broken_lockfile, LOCKFILES if is_idle else ()):
            aside = path.with_suffix(".lock.damaged")
            log.warning(
                "%s was cut short when DVC was killed: it is now %s, and DVC asks every stage again", path, aside
            )
            path.replace(aside)


@contextlib.contextmanager
def dvc_at_rest() -> Iterator[None]:
    """Within the block DVC writes none of its files here; it does so between the commands of stages, for moments."""
    STATE.mkdir(parents=True, exist_ok=True)
    while True:
        with _guarded_by(STATE / "lock") as is_idle:
            if is_idle:
                yield
                return
        time.sleep(WAIT_S)


@contextlib.contextmanager
def _guarded_by(path: Path) -> Iterator[bool]:
    """Hold one of DVC's locks for the block; False where another process keeps it."""
    lock = make_lock(str(path))
    try:
        lock.lock()
    except LockError:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlock()


def _is_broken_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _is_broken_lockfile(path: Path) -> bool:
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(path.read_text()) or {"schema": "2.0"})
    except FileNotFoundError:
        return False
    except (YAMLError, Invalid, ValueError):
        return True
    return False
