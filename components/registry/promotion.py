"""Who is champion, and how it came to be: promotion, rollback, and a history that only grows.

The history is a registered model of its own, `<name>-history`, whose versions MLflow numbers one after another. Each
entry says from which version to which; it holds only if the champion then was the one from which it starts. So of two
promotions that begin at once, the one that is numbered first holds and the other one is refused, wherever they run.
"""

import getpass
import logging
import socket
from collections.abc import Sequence
from datetime import UTC, datetime

from components import cli
from components.params import Params
from components.registry.gates import Gate, judge, stored
from components.tracking import Change, Registry, Version
from invfusion.errors import ConfigError

log = logging.getLogger(__name__)

CHAMPION = "champion"
PROMOTED, ROLLED_BACK, BY_HAND = "promoted", "rolled back", "moved by hand"
SHOWN = 50


def promote(params: Params, number: str, why: str, anyway: bool = False) -> list[Gate]:
    """Make a version the champion where every gate passes, or `anyway`; returns the gates.

    Raises:
        ConfigError: a gate fails, there is no such version, or another promotion came first.
        ServiceError: MLflow does not answer.
    """
    registry = Registry(params, params.register_.name)
    champion = present(registry)
    version = registry.version(number)
    if champion is not None and champion.number == number:
        raise ConfigError(f"models:/{registry.name}/{number} is the champion already")
    gates = judge(stored(version), params, champion)
    failed = [f"{gate.name}: {gate.reason}" for gate in gates if not gate.passed]
    if failed and not anyway:
        raise ConfigError(f"models:/{registry.name}/{number} stays a challenger\n  " + "\n  ".join(failed))
    move(registry, champion, number, PROMOTED, why + (f" (against: {'; '.join(failed)})" if failed else ""))
    return gates


def rollback(params: Params, why: str) -> str:
    """Give `champion` back to the version that held it before the present one; returns that version's number.

    Raises:
        ConfigError: there is none, or another promotion came first.
    """
    registry = Registry(params, params.register_.name)
    champion = present(registry)
    line = succession(valid(registry.history()))
    if len(line) < 2 or not line[-2]:
        raise ConfigError(f"models:/{registry.name} has no earlier champion to go back to")
    registry.version(line[-2])
    move(registry, champion, line[-2], ROLLED_BACK, why)
    return line[-2]


def present(registry: Registry) -> Version | None:
    """The champion; what somebody did to the alias by hand is written into the history first."""
    holder, known = registry.holder(CHAMPION), valid(registry.history())
    number = holder.number if holder else ""
    if known and not known[-1].is_done:
        conclude(registry)
        holder = registry.holder(CHAMPION)
    elif number != (known[-1].after if known else ""):
        move(registry, Version(known[-1].after, {}) if known else None, number, BY_HAND, "found so")
    return holder


def move(registry: Registry, before: Version | None, after: str, action: str, why: str) -> None:
    """Write the change into the history, and carry it out if it holds there.

    Raises:
        ConfigError: another change came first.
    """
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    start = before.number if before else ""
    entry = registry.append(Change(0, action, start, after, who, when, why))
    if entry.number not in {change.number for change in valid(registry.history())}:
        registry.close(entry, "refused: another change came first")
        raise ConfigError(
            f"another promotion of models:/{registry.name} came first, so this one (from version {start or 'none'} to "
            f"{after or 'none'}) did not happen; look at the new champion and decide again"
        )
    conclude(registry)
    log.info("models:/%s@champion: version %s -> %s, %s: %s", registry.name, start or "none", after, action, why)


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
    registry.describe(history_table(registry.history()))


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


def history_table(changes: Sequence[Change]) -> str:
    """Who, when, why, from and to, newest first, as MLflow's page of the model shows it."""
    holding = {change.number for change in valid(changes)}
    head = "**Champions** (all of it: the versions of the registered model with `-history` behind its name)\n\n"
    rows = [
        f"| {c.number} | {c.when} | {c.who} | {c.before or 'none'} → {c.after or 'none'} "
        f"| {c.action if c.number in holding else 'refused'} | {c.why.replace('|', '/')} |"
        for c in sorted(changes, key=lambda c: -c.number)[:SHOWN]
    ]
    return head + "| # | when | who | versions | what | why |\n|---|---|---|---|---|---|\n" + "\n".join(rows)


def main() -> None:
    """Promote a version, roll the last promotion back, or show the history."""
    command = cli.parser(main.__doc__)
    actions = command.add_subparsers(dest="action", required=True)
    promotion = actions.add_parser("promote", help="make a version the champion")
    promotion.add_argument("version")
    promotion.add_argument("--why", required=True)
    promotion.add_argument("--anyway", action="store_true", help="against failed gates; the history names them")
    actions.add_parser("rollback", help="the former champion again").add_argument("--why", required=True)
    actions.add_parser("history", help="all changes of the champion")
    with cli.started(command) as options:
        params = options.params
        if options.action == "promote":
            promote(params, options.version, options.why, options.anyway)
        elif options.action == "rollback":
            rollback(params, options.why)
        else:
            log.info("%s", history_table(Registry(params, params.register_.name).history()))


if __name__ == "__main__":
    main()
