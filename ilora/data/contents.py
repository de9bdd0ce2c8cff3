"""What goes into a data folder, in memory, checked before a file is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ilora.data.candidates import known_items
from ilora.data.catalog import Catalog
from ilora.data.sequences import SPLITS, Row, Split, UserSequence, rows_of
from ilora.data.splits import split_by_user
from ilora.errors import InputError


@dataclass(frozen=True)
class Contents:
    """A catalogue, the rows of each split, and whole sequences where they are known (else none)."""

    catalog: Catalog
    rows: Mapping[Split, Sequence[Row]]
    sequences: Sequence[UserSequence]

    @classmethod
    def from_sequences(
        cls, catalog: Catalog, sequences: Sequence[UserSequence], *, seed: int, window: int
    ) -> Contents:
        """Split the sequences by user 8:1:1 and cut them into windows.

        Raises:
            InputError: what `split_by_user` and `last_window` raise.
        """
        divided = split_by_user(sequences, seed)
        return cls(catalog, {s: rows_of(divided, s, window) for s in SPLITS}, divided)

    def counts(self) -> dict[str, int]:
        """The counts of ``dataset.json``: items, rows of each split, sequences and their items."""
        return {
            "items": len(self.catalog),
            **{f"{split}_rows": len(self.rows[split]) for split in SPLITS},
            "sequences": len(self.sequences),
            "interactions": sum(len(sequence.items) for sequence in self.sequences),
        }

    def known_items(self) -> dict[int, set[int]]:
        """All items of every known user, from sequences and rows."""
        return known_items(self.sequences, chain.from_iterable(self.rows.values()))

    def require_sound(self, window: int) -> None:
        """Raise `InputError` for an empty split or sequence, a history longer than ``window``,
        or an item outside the catalogue, naming its place."""
        for split in SPLITS:
            if not self.rows.get(split):
                raise InputError(f"rows has no {split} row; each split needs at least one")
            for index, row in enumerate(self.rows[split]):
                where = f"rows[{split!r}][{index}]"
                if len(row.history) > window:
                    raise InputError(
                        f"{where} has a history of {len(row.history)} items, more than the "
                        f"window of {window}; keep the latest"
                    )
                self._require_items(where, (*row.history, row.target))
        for index, sequence in enumerate(self.sequences):
            if not sequence.items:
                raise InputError(f"sequences[{index}] is empty; leave the user out")
            self._require_items(f"sequences[{index}]", sequence.items)

    def _require_items(self, where: str, items: Sequence[int]) -> None:
        low, high = min(items), max(items)
        if low < 0 or high >= len(self.catalog):
            raise InputError(
                f"{where} holds item {low if low < 0 else high}, which is not in the catalogue "
                f"(ids 0 to {len(self.catalog) - 1}); add its title"
            )
