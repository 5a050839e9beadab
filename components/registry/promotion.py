"""Who is champion, and how it came to be: promotion, rollback, and a history that only grows.

The history is a registered model of its own, `<name>-history`, whose versions MLflow numbers one after another. Each
entry says from which version to which; it holds only if the champion then was the one from which it starts. So of two
promotions that begin at once, the one that is numbered first holds and the other one is refused, wherever they run.
"""

import getpass
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from components import cli
from components.params import Params
from components.registry.gates import Gate, judge, stored
from components.tracking import Change, Registry, Version
from invfusion.errors import ConfigError

log = logging.getLogger(__name__)

CHAMPION = "champion"
PROMOTED, ROLLED_BACK, BY_HAND = "promoted", "rolled back", "moved by hand"


@dataclass(frozen=True)
class Decision:
    """What a person decided: why, and looking at which champion.

    who: "" for the user of this process. expect: the champion's version, "" for none; None for the one that there was
    at the time `asked`, or for any where that is None too.
    """

    why: str
    who: str = ""
    expect: str | None = None
    asked: datetime | None = None

    def author(self) -> str:
        return self.who or f"{getpass.getuser()}@{socket.gethostname()}"


def promote(params: Params, number: str, decision: Decision, anyway: bool = False) -> list[Gate]:
    """Make a version the champion where every gate passes, or `anyway`; returns the gates.

    Raises:
        ConfigError: a gate fails, there is no such version, or the champion is another than the person saw.
        ServiceError: MLflow does not answer.
    """
    registry = Registry(params, params.register_.name)
    champion = present(registry)
    check_expected(registry, champion, decision)
    version = registry.version(number)
    if champion is not None and champion.number == number:
        raise ConfigError(f"models:/{registry.name}/{number} is the champion already")
    gates = judge(stored(version), params, champion)
    failed = [f"{gate.name}: {gate.reason}" for gate in gates if not gate.passed]
    if failed and not anyway:
        raise ConfigError(f"models:/{registry.name}/{number} stays a challenger\n  " + "\n  ".join(failed))
    why = decision.why + (f" (against: {'; '.join(failed)})" if failed else "")
    move(registry, champion, number, PROMOTED, replace(decision, why=why))
    return gates


def rollback(params: Params, decision: Decision) -> str:
    """Give `champion` back to the version that held it before the present one; returns that version's number.

    Raises:
        ConfigError: there is none, or the champion is another than the person saw.
    """
    registry = Registry(params, params.register_.name)
    champion = present(registry)
    check_expected(registry, champion, decision)
    line = succession(valid(registry.history()))
    if len(line) < 2 or not line[-2]:
        raise ConfigError(f"models:/{registry.name} has no earlier champion to go back to")
    registry.version(line[-2])
    move(registry, champion, line[-2], ROLLED_BACK, decision)
    return line[-2]


def check_expected(registry: Registry, champion: Version | None, decision: Decision) -> None:
    """Raise `ConfigError` where the champion is not the one that the person decided about."""
    number = champion.number if champion else ""
    changes = valid(registry.history())
    expected = decision.expect
    if expected is None and decision.asked is not None:
        seen = [change.after for change in changes if datetime.fromisoformat(change.when) < decision.asked]
        expected = seen[-1] if seen else ""
    if expected is None or expected == number:
        return
    newest = f": {log_line(changes[-1])}" if changes else ""
    raise ConfigError(
        f"models:/{registry.name}: the champion is version {number or 'none'}, and was {expected or 'none'} when this "
        f"was decided{newest}. Look at it, and decide again with --expect {number or 'none'}"
    )


def present(registry: Registry) -> Version | None:
    """The champion; what somebody did to the alias by hand is written into the history first."""
    holder, known = registry.holder(CHAMPION), valid(registry.history())
    number = holder.number if holder else ""
    if known and not known[-1].is_done:
        conclude(registry)
        holder = registry.holder(CHAMPION)
    elif number != (known[-1].after if known else ""):
        move(registry, Version(known[-1].after, {}) if known else None, number, BY_HAND, Decision("found so"))
    return holder


def move(registry: Registry, before: Version | None, after: str, action: str, decision: Decision) -> None:
    """Write the change into the history, and carry it out if it holds there.

    Raises:
        ConfigError: another change came first.
    """
    when = datetime.now(UTC).isoformat(timespec="microseconds")
    start = before.number if before else ""
    entry = registry.append(Change(0, action, start, after, decision.author(), when, decision.why))
    if entry.number not in {change.number for change in valid(registry.history())}:
        registry.close(entry, "refused: another change came first")
        raise ConfigError(
            f"another promotion of models:/{registry.name} came first, so this one (from version {start or 'none'} to "
            f"{after or 'none'}) did not happen; look at the new champion and decide again"
        )
    conclude(registry)
    log.info("models:/%s@champion: %s", registry.name, log_line(entry))


def conclude(registry: Registry) -> None:
    """Make the alias what the history says, also after a crash between the two."""
    while True:
        newest = valid(registry.history())[-1]
        holder = registry.holder(CHAMPION)
        if (holder.number if holder else "") != newest.after:
            registry.give(CHAMPION, Version(newest.after, {}))
        if valid(registry.history())[-1].number == newest.number:
            break
    if not newest.is_done:
        registry.close(newest, "done")
    changes = registry.history()
    registry.describe(
        f"**Champion**: version {newest.after or 'none'}, since {newest.when} ({newest.who}: {newest.why}).\n\n"
        f"Every change stands in the log of `{registry.name}-history`.",
        history_log(changes),
    )


def valid(changes: Sequence[Change]) -> list[Change]:
    """The changes that hold: each starts from the champion that the ones before it left."""
    holding: list[Change] = []
    for change in sorted(changes, key=lambda c: c.number):
        if change.before == (holding[-1].after if holding else ""):
            holding.append(change)
    return holding


def succession(changes: Sequence[Change]) -> list[str]:
    """The champions up to the present one; what was rolled back is taken off the end."""
    line: list[str] = []
    for change in changes:
        if change.action == ROLLED_BACK and len(line) > 1:
            line.pop()
        else:
            line.append(change.after)
    return line


def history_log(changes: Sequence[Change]) -> str:
    """A line for each change, the newest first."""
    holding = {change.number for change in valid(changes)}
    lines = [
        f"* {log_line(change)}{'' if change.number in holding else ' (refused)'}"
        for change in sorted(changes, key=lambda change: -change.number)
    ]
    return "\n".join(lines) or "nobody has been champion yet"


def log_line(change: Change) -> str:
    """When, what, who and why."""
    return (
        f"{change.when}: {change.action}, version {change.before or 'none'} → {change.after or 'none'}, "
        f"by {change.who}: {' '.join(change.why.split())}"
    )


def started() -> datetime:
    """When this process began, to a hundredth of a second.

    The kernel counts that from the boot, whose time of day it gives in whole seconds that change now and then: so what
    is subtracted from the time now is the age.
    """
    try:
        after_command = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return datetime.fromtimestamp(psutil.Process().create_time(), UTC)
    since_boot = int(after_command[19]) / os.sysconf("SC_CLK_TCK")
    return datetime.fromtimestamp(time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot), UTC)


def main() -> None:
    """Promote a version, roll the last promotion back, or show the history."""
    asked = started()
    command = cli.parser(main.__doc__)
    actions = command.add_subparsers(dest="action", required=True)
    promotion = actions.add_parser("promote", help="make a version the champion")
    promotion.add_argument("version")
    promotion.add_argument("--anyway", action="store_true", help="against failed gates; the history names them")
    back = actions.add_parser("rollback", help="the former champion again")
    for change in (promotion, back):
        change.add_argument("--why", required=True)
        change.add_argument(
            "--expect", metavar="VERSION",
            help="do nothing where the champion is another ('none': is any); default: that at the command's start",
        )  # fmt: skip
    actions.add_parser("history", help="all changes of the champion")
    with cli.started(command) as options:
        params = options.params
        if options.action == "history":
            log.info("%s", history_log(Registry(params, params.register_.name).history()))
            return
        expect = "" if options.expect == "none" else options.expect
        decision = Decision(options.why, expect=expect, asked=asked)
        if options.action == "promote":
            promote(params, options.version, decision, options.anyway)
        else:
            rollback(params, decision)


if __name__ == "__main__":
    main()
