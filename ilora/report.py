"""A report: one table, the pictures, what to keep in mind; ``report.md``, ``report.json``, PNGs.

Every row that is handed in is shown, in the order given: a method that lost stands beside the
one that won.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ilora.errors import InputError
from ilora.files import atomic_file, write_json
from ilora.gate_map import GateMap
from ilora.plots import Bar, Curve, draw_bars, draw_gates, draw_losses
from ilora.seeds import SeedRow
from ilora.tables import TABLE_STYLE, fit_names

REPORT_FILE = "report.md"
JSON_FILE = "report.json"
NOTHING = "–"
COLUMNS = (  # a line break where a narrow terminal needs one
    "method",
    "Hit\nRatio@1",
    "95 %\ninterval",
    "over\nvalid",
    "Valid\nRatio",
    "rows",
    "training\nseconds",
    "trainable\nparameters",
)
DEFINITIONS = (
    "**HitRatio@1** is right answers / all rows; *over valid answers* it is right answers / answers "
    "that name exactly one candidate; **ValidRatio** is such answers / all rows. Both hit ratios "
    "go by one name in the literature. The interval is a percentile bootstrap over the rows: it "
    "says what other test users could change, not what another seed of the training could."
)


SEEDS_DEFINITION = (
    "Runs that differ in the seed alone; the interval of the mean is Student's over the seeds: it says "
    "what another seed of the training could change, with these test users."
)
REFERENCE_DEFINITION = (
    "The same answers read as the paper's released code reads them: an answer is valid when exactly "
    "one candidate is a substring of it, and the hit ratio that it publishes is the one over valid "
    "answers."
)


@dataclass(frozen=True)
class Reading:
    """Free answers read in another way: right / all rows, right / valid, valid / all rows."""

    hit_ratio_at_1: float
    hit_ratio_at_1_valid: float | None
    valid_ratio: float


@dataclass(frozen=True)
class ReportRow:
    """One method's figures.

    Attributes:
        name: what the reader calls it.
        hit_ratio_at_1: right answers / all rows.
        ci95: its 95 % interval, low and high.
        hit_ratio_at_1_valid: right answers / valid answers; None without a valid answer.
        valid_ratio: answers that name a candidate / all rows; None where it has no meaning.
        n: rows.
        seconds: of training; None where nothing was trained or it is not known.
        trainable_parameters: None where nothing was trained.
        as_reference: free answers read as the paper's code does; None where there are none.
    """

    name: str
    hit_ratio_at_1: float
    ci95: tuple[float, float]
    hit_ratio_at_1_valid: float | None
    valid_ratio: float | None
    n: int
    seconds: float | None = None
    trainable_parameters: int | None = None
    as_reference: Reading | None = None

    @classmethod
    def of_ranking(cls, name: str, ranking: Mapping[str, Any], **training: Any) -> ReportRow:
        """A method that orders the candidates, of `ilora.evaluation.metrics.ranking_metrics`.

        Each of its answers is a candidate; ``training`` are the fields that tell of it.
        """
        first, (low, high) = ranking["hr@1"], ranking["ci95"]["hr@1"]
        return cls(name, first, (float(low), float(high)), first, 1.0, ranking["n"], **training)

    def cells(self) -> tuple[str, ...]:
        """The row in words, one text for each of ``COLUMNS``."""
        low, high = self.ci95
        return (
            self.name,
            f"{self.hit_ratio_at_1:.3f}",
            f"{low:.3f}–{high:.3f}",
            _or_nothing(self.hit_ratio_at_1_valid, ".3f"),
            _or_nothing(self.valid_ratio, ".3f"),
            f"{self.n:,}",
            _or_nothing(self.seconds, ",.0f"),
            _or_nothing(self.trainable_parameters, ",d"),
        )


def print_table(
    rows: Sequence[ReportRow], *, title: str | None = None, console: Console | None = None
) -> None:
    """Print the rows to ``console``, by default stdout."""
    heading = None if title is None else Text(title)
    table = Table(title=heading, title_justify="left", **TABLE_STYLE)
    for number, column in enumerate(COLUMNS):
        table.add_column(
            column,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number > 0,  # a narrow terminal folds names, never figures
        )
    console = console or Console()
    for cells in fit_names(COLUMNS, [row.cells() for row in rows], console.width):
        table.add_row(*(Text(cell) for cell in cells))  # brackets are text, not markup
    console.print(table)


def write_report(
    out: Path,
    *,
    title: str,
    rows: Sequence[ReportRow],
    curves: Mapping[str, Mapping[str, Curve]],
    gates: GateMap | Mapping[str, GateMap] | None = None,
    notes: Sequence[str] = (),
    chance: float | None = None,
    seeds: Sequence[SeedRow] = (),
) -> Path:
    """Write ``report.md``, ``report.json`` and the pictures into the folder ``out``.

    Args:
        title: the heading.
        rows: the table, in this order.
        curves: run -> ``"train"`` | ``"validation"`` -> ``(step, loss)`` points.
        gates: one map, or one for each run by name.
        notes: sentences that a reader should have in mind.
        chance: the hit ratio of guessing, drawn as a line.
        seeds: methods summed up over their seeds.

    Returns:
        The path of ``report.md``.

    Raises:
        InputError: neither a row nor a curve, so that there is nothing to report.
    """
    if not rows and not any(points for parts in curves.values() for points in parts.values()):
        raise InputError("rows and curves are empty; evaluate or train something first")
    maps = {"": gates} if isinstance(gates, GateMap) else dict(gates or {})
    pictures = _draw(Path(out), rows, curves, maps, chance)
    write_json(
        Path(out) / JSON_FILE,
        {
            "title": title,
            "rows": [dataclasses.asdict(row) for row in rows],
            "curves": curves,
            "gate_means": {name: map_.means() for name, map_ in maps.items()},
            "notes": list(notes),
            "chance": chance,
            "seeds": [dataclasses.asdict(row) for row in seeds],
        },
    )
    path = Path(out) / REPORT_FILE
    with atomic_file(path) as partial:
        partial.write_text(_markdown(title, rows, seeds, pictures, notes), encoding="utf-8")
    return path


def _draw(
    out: Path,
    rows: Sequence[ReportRow],
    curves: Mapping[str, Mapping[str, Curve]],
    gates: Mapping[str, GateMap],
    chance: float | None,
) -> list[tuple[str, str]]:
    """Draw what there is to draw; return (file name, caption) of each picture."""
    pictures: list[tuple[str, str]] = []
    for old in (
        *out.glob("gates-[0-9]*.png"),
        out / "gates.png",
        out / "hit_ratio.png",
        out / "loss.png",
    ):
        old.unlink(missing_ok=True)  # of an earlier report that had more to show
    if rows:
        bars = [
            Bar(row.name, row.hit_ratio_at_1, row.ci95, run=_run_of(row.name, curves))
            for row in rows
        ]
        draw_bars(bars, list(curves), out / "hit_ratio.png", chance=chance)
        pictures.append(("hit_ratio.png", "HitRatio@1 of every row of the table"))
    if any(points for parts in curves.values() for points in parts.values()):
        draw_losses(curves, out / "loss.png")
        pictures.append(("loss.png", "Loss per answer token in training and on validation rows"))
    for number, (name, map_) in enumerate(gates.items(), start=1):
        file = f"gates-{number}.png" if len(gates) > 1 else "gates.png"
        whose = f"Gate of {name}" if name else "Who gets which experts"
        draw_gates(map_, out / file, title=whose)
        grouped = "users by group, and the mean of each group"
        shown = "all users, and their mean" if map_.groups is None else grouped
        pictures.append((file, f"{whose}: {shown}"))
    return pictures


def _run_of(name: str, curves: Mapping[str, Any]) -> str | None:
    """The run that a row is of: its name, or its name and then what was measured in brackets."""
    return next((run for run in curves if name == run or name.startswith(f"{run} (")), None)


def _markdown(
    title: str,
    rows: Sequence[ReportRow],
    seeds: Sequence[SeedRow],
    pictures: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> str:
    parts = [f"# {title}"]
    if rows:
        heads = [column.replace("Hit\n", "Hit").replace("Valid\n", "Valid") for column in COLUMNS]
        heads = [" ".join(head.split()) for head in heads]
        parts += [_table(heads, [row.cells() for row in rows]), DEFINITIONS]
    if seeds:
        parts += ["## Over seeds", _seeds_table(seeds), SEEDS_DEFINITION]
    if any(row.as_reference for row in rows):
        parts += ["## As the paper's code reads answers", _readings(rows), REFERENCE_DEFINITION]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    if pictures:
        parts.append("## Pictures")
        parts += [f"![{caption}]({file})\n\n*{caption}.*" for file, caption in pictures]
    return "\n\n".join(parts) + "\n"


def _seeds_table(seeds: Sequence[SeedRow]) -> str:
    heads = ["method", "mean HitRatio@1", "sd", "95 % interval", "seeds"]
    return _table(
        heads,
        [
            (
                row.name,
                f"{row.mean:.3f}",
                f"{row.sd:.3f}",
                f"{row.ci95[0]:.3f}–{row.ci95[1]:.3f}",
                ", ".join(map(str, row.seeds)),
            )
            for row in seeds
        ],
    )


def _readings(rows: Sequence[ReportRow]) -> str:
    heads = ["method", "HitRatio@1", "over valid", "ValidRatio"]
    return _table(
        heads,
        [
            (
                row.name,
                f"{row.as_reference.hit_ratio_at_1:.3f}",
                _or_nothing(row.as_reference.hit_ratio_at_1_valid, ".3f"),
                f"{row.as_reference.valid_ratio:.3f}",
            )
            for row in rows
            if row.as_reference is not None
        ],
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    lines += [_line([cell.replace("|", r"\|") for cell in row]) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _or_nothing(value: Any, form: str) -> str:
    return NOTHING if value is None else format(value, form)
