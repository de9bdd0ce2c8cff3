"""Checking a folder, and completing one that lacks its candidates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ilora.data.catalog import Catalog
from ilora.data.check import check_folder, domain_of, fix_folder
from ilora.data.folder import DataFolder, write_folder
from ilora.data.sequences import Row, Split, UserSequence
from ilora.errors import InputError
from tests.ilora.data.conftest import NUM_ITEMS, NUM_USERS, Damage
from tests.ilora.data.made_up import read_lines, write_text


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_report_counts_what_is_there(data_path: Path, sequences: list[UserSequence]) -> None:
    report = check_folder(data_path)
    lengths = [len(one.items) for one in sequences]
    assert report.items == NUM_ITEMS
    assert report.rows["val"] == report.rows["test"] == 3
    assert sum(report.users.values()) == NUM_USERS == report.sequences
    assert report.interactions == sum(lengths)
    assert report.sequence_lengths is not None
    assert report.sequence_lengths[::2] == (min(lengths), max(lengths))
    # A training user of n items has n rows, three of them with fewer than three items before.
    assert report.rows["train"] - report.rows_min_history_3["train"] == 3 * report.users["train"]
    assert json.loads(json.dumps(report.to_dict()))["name"] == "made up"
    assert ("items", "60") in report.table()


def test_quirks_are_notes_and_no_errors(tmp_path: Path) -> None:
    titles = ("Twin", "TWIN", "Storm, Calm", "A :: B", "Café", *(f"T{i}" for i in range(30)))
    catalog = Catalog(titles, {"title_ref": titles})
    rows: dict[Split, list[Row]] = {
        "train": [
            Row(None, (), 1),
            Row(1, (1, 2, 1), 2),
            Row(1, (1, 2, 1), 2),
            Row(2, (), 1),
        ],
        "val": [Row(1, (3,), 4), Row(None, (), 5)],
        "test": [Row(3, (5, 6), 1)],
    }
    folder = write_folder(
        tmp_path / "quirks",
        name="quirks",
        domain="game",
        catalog=catalog,
        rows=rows,
        split_rule="made up",
    )
    assert {note.kind: note.count for note in check_folder(folder.path).notes} == {
        "duplicate_titles": 2,
        "titles_with_comma": 1,
        "titles_with_double_colon": 1,
        "non_ascii_titles": 1,
        "further_columns": 1,
        "train_empty_histories": 2,
        "train_null_users": 1,
        "train_target_in_history": 2,
        "train_repeats_in_history": 2,
        "train_repeated_rows": 1,
        "val_empty_histories": 1,
        "val_null_users": 1,
        "items_not_in_training": len(titles) - 2,
        "targets_not_in_training": 2,
        "users_in_training_and_elsewhere": 1,
    }


def test_further_keys_in_rows_are_ignored(data_path: Path, damage: Damage) -> None:
    rows = DataFolder.open(data_path).rows("train", min_history=0)
    damage("train.jsonl.gz", 1, row=89, text="more")
    assert DataFolder.open(data_path).rows("train", min_history=0) == rows
    check_folder(data_path)


def test_a_negative_the_user_knows_is_noted(data_path: Path, damage: Damage) -> None:
    name = "candidates.val.jsonl.gz"
    record = read_lines(data_path / name)[0]
    row = DataFolder.open(data_path).rows("val")[0]
    kept = [item for item in record["candidates"] if item != record["target"]][:18]
    damage(name, 1, candidates=[record["target"], row.history[0], *kept])
    kinds = {note.kind: note.count for note in check_folder(data_path).notes}
    assert kinds["candidates_hold_history"] == kinds["candidates_hold_own_item"] == 1


def test_counts_that_differ_from_the_files_are_refused(data_path: Path) -> None:
    file = data_path / "dataset.json"
    manifest = json.loads(file.read_text())
    manifest["counts"]["train_rows"] += 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"dataset\.json records \d+ train_rows where"):
        check_folder(data_path)


def test_checking_reads_every_line_of_every_file(data_path: Path, damage: Damage) -> None:
    last = len(read_lines(data_path / "train.jsonl.gz"))
    damage("train.jsonl.gz", last, target=NUM_ITEMS)
    with pytest.raises(InputError, match=rf"train\.jsonl\.gz line {last}: target holds"):
        check_folder(data_path)


def test_fixing_adds_candidates_and_dataset_json_and_changes_nothing_else(
    rows_path: Path,
) -> None:
    before = bytes_of(rows_path)
    written = fix_folder(rows_path, seed=3, name="made up")
    assert set(written) == {"candidates.val.jsonl.gz", "candidates.test.jsonl.gz", "dataset.json"}
    after = bytes_of(rows_path)
    assert {name: data for name, data in after.items() if name in before} == before
    assert set(after) == {*before, *written}
    report = check_folder(rows_path)
    assert (report.candidates, report.candidate_seed) == (20, 3)


def test_fixing_draws_what_the_writer_draws(
    data_path: Path, tmp_path: Path, catalog: Catalog, sequences: list[UserSequence]
) -> None:
    whole = bytes_of(data_path)
    for name in ("candidates.val.jsonl.gz", "candidates.test.jsonl.gz", "dataset.json"):
        (data_path / name).unlink()
    fix_folder(data_path, seed=3)
    fixed = bytes_of(data_path)
    assert {n: d for n, d in fixed.items() if n != "dataset.json"} == {
        n: d for n, d in whole.items() if n != "dataset.json"
    }


def test_a_complete_folder_is_not_touched(data_path: Path) -> None:
    before = bytes_of(data_path)
    assert fix_folder(data_path, seed=99) == ()
    assert bytes_of(data_path) == before


def test_a_fix_that_was_killed_is_finished_as_if_it_had_not_been(rows_path: Path) -> None:
    fix_folder(rows_path, seed=3)
    whole = bytes_of(rows_path)
    for name in ("candidates.test.jsonl.gz", "dataset.json"):
        (rows_path / name).unlink()
    assert fix_folder(rows_path, seed=3) == ("candidates.test.jsonl.gz", "dataset.json")
    assert bytes_of(rows_path) == whole


def test_candidates_that_came_with_the_data_are_kept_and_called_given(rows_path: Path) -> None:
    fix_folder(rows_path, seed=3)
    given = (rows_path / "candidates.val.jsonl.gz").read_bytes()
    for name in ("candidates.test.jsonl.gz", "dataset.json"):
        (rows_path / name).unlink()
    fix_folder(rows_path, seed=4)
    assert (rows_path / "candidates.val.jsonl.gz").read_bytes() == given
    record = DataFolder.open(rows_path).info["candidates"]
    assert record["origin"] == {"val": "given", "test": "drawn"}


def test_fixing_a_changed_folder_is_refused(data_path: Path) -> None:
    write_text(data_path / "val.jsonl.gz", '{"user": 1, "history": [], "target": 1}\n')
    with pytest.raises(InputError, match=r"val\.jsonl\.gz has changed"):
        fix_folder(data_path)


def test_a_recorded_candidate_file_that_is_gone_is_not_drawn_anew(data_path: Path) -> None:
    (data_path / "candidates.val.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"candidates\.val\.jsonl\.gz is recorded .* but gone"):
        fix_folder(data_path)


def test_nothing_is_written_into_a_folder_with_a_bad_line(rows_path: Path) -> None:
    lines = [{"user": 1, "history": [], "target": 1}, {"user": 1, "history": [], "target": 99}]
    write_text(rows_path / "test.jsonl.gz", "".join(json.dumps(line) + "\n" for line in lines))
    before = bytes_of(rows_path)
    with pytest.raises(InputError, match=r"test\.jsonl\.gz line 2: target holds 99"):
        fix_folder(rows_path)
    assert bytes_of(rows_path) == before


def test_a_full_disk_leaves_no_half_written_file(
    rows_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ilora.data.check.write_json", refuse)
    with pytest.raises(InputError, match=r"cannot be completed .No space left on device"):
        fix_folder(rows_path)
    monkeypatch.undo()
    assert not (rows_path / "dataset.json").exists()
    assert not list(rows_path.glob(".*"))
    fix_folder(rows_path)
    check_folder(rows_path)


def test_negatives_keep_out_of_whole_sequences_unless_told_otherwise(tmp_path: Path) -> None:
    # The user's 30 older items are not in the history: by the history rule they are negatives.
    items = tuple(range(41))
    rows: dict[Split, list[Row]] = {
        "train": [Row(1, (), 5)],
        "val": [Row(0, items[30:40], 40)],
        "test": [Row(2, (1,), 2)],
    }
    for excluded, known in (("sequence", False), ("history", True)):
        path = tmp_path / excluded
        write_folder(
            path,
            name="x",
            domain="item",
            catalog=Catalog(tuple(f"Item {item}" for item in range(60))),
            rows=rows,
            sequences=[UserSequence(0, items)],
            split_rule="made up",
        )
        for name in ("candidates.val.jsonl.gz", "candidates.test.jsonl.gz", "dataset.json"):
            (path / name).unlink()
        fix_folder(path, excluded=excluded)  # type: ignore[arg-type]
        folder = DataFolder.open(path)
        (candidates,) = folder.candidates("val")
        assert any(item < 30 for item in candidates) is known
        assert folder.info["candidates"]["excluded"] == excluded


def test_a_longer_history_widens_the_window_of_a_folder_that_names_none(rows_path: Path) -> None:
    record = {"user": None, "history": list(range(12)), "target": 30}
    write_text(rows_path / "val.jsonl.gz", json.dumps(record) + "\n")
    fix_folder(rows_path)
    assert DataFolder.open(rows_path).window == 12


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("MovieLens-1M", "movie"),
        ("lastfm", "music"),
        ("steam", "game"),
        ("amazon_video_games", "game"),
        ("books", "item"),
    ],
)
def test_the_name_of_a_known_data_set_tells_its_domain(name: str, domain: str) -> None:
    assert domain_of(name) == domain


def test_an_unknown_domain_is_refused_before_anything_is_written(rows_path: Path) -> None:
    with pytest.raises(InputError, match="domain is 'toy'"):
        fix_folder(rows_path, domain="toy")  # type: ignore[arg-type]
    assert not (rows_path / "dataset.json").exists()
