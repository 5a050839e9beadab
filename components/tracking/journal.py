"""Results that could not be delivered yet: one JSON object per line, in the order in which they arose."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from components.tracking.delivery import Entry
from invfusion.files import write_text
from invfusion.locks import locked

log = logging.getLogger(__name__)


class Journal:
    """The waiting results of one run, in its folder.

    Synchronising again after a crash in the middle does no harm, since delivery may be repeated.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"

    def append(self, entry: Entry) -> None:
        """Keep one entry; a disk that cannot take it costs this entry and a warning."""
        try:
            with self._locked(), self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            log.warning("a result was lost, since neither MLflow nor %s could take it: %s", self.path, error)

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self.path.exists()

    def synchronise(self, uri: str, deliver: Callable[[Entry], bool]) -> bool:
        """Deliver what waits for this store, in order, until an entry fails; whether nothing waits any more."""
        if self.is_empty():
            return True
        with self._locked():
            entries = self._entries()
            refused = (i for i, entry in enumerate(entries) if entry["uri"] != uri or not deliver(entry))
            sent = next(refused, len(entries))
            self._keep(entries[sent:])
        if sent:
            log.info("delivered %d results to MLflow that had been waiting", sent)
        return sent == len(entries)

    def _entries(self) -> list[Entry]:
        # Another process may have delivered them meanwhile.
        return [] if self.is_empty() else [json.loads(line) for line in self.path.read_text().splitlines()]

    def _keep(self, entries: list[Entry]) -> None:
        if entries:
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))
        else:
            self.path.unlink(missing_ok=True)

    def _locked(self) -> AbstractContextManager[bool]:
        return locked(self.path.with_suffix(".lock"))
