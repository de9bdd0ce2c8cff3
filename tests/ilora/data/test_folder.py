"""Data folders: written whole, opened only when whole, every bad line named."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ilora.data.catalog import Catalog
from ilora.data.check import check_folder
from ilora.data.folder import DataFolder, write_folder
from ilora.data.popularity import item_counts, popularity_scores
from ilora.data.sequences import Row, UserSequence
from ilora.errors import InputError
from tests.ilora.data.conftest import NUM_ITEMS, NUM_USERS, Damage
from tests.ilora.data.made_up import read_lines, record_hash, write_text


def test_what_was_written_is_read_back(
    data_path: Path, catalog: Catalog, sequences: list[UserSequence]
) -> None:
    folder = DataFolder.open(data_path)
    assert folder.catalog == catalog
    assert (folder.name, folder.domain, folder.window) == ("made up", "item", 10)
    stored = folder.sequences()
    assert stored is not None
    assert [one.items for one in stored] == [one.items for one in sequences]
    train = [one for one in stored if one.split == "train"]
    assert len(folder.rows("train", min_history=0)) == sum(len(one.items) for one in train)
    assert [row.target for row in folder.rows("test")] == [
        one.items[-1] for one in stored if one.split == "test"
    ]


def test_equal_arguments_give_equal_bytes(
    data_path: Path, tmp_path: Path, catalog: Catalog, sequences: list[UserSequence]
) -> None:
    again = tmp_path / "again"
    write_folder(again, name="made up", domain="item", catalog=catalog, sequences=sequences, seed=3)
    for file in data_path.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_no_user_of_validation_or_test_is_in_training(data_path: Path) -> None:
    folder = DataFolder.open(data_path)
    users = {
        split: {row.user for row in folder.rows(split, min_history=0)}
        for split in ("train", "val", "test")
    }
    assert sum(map(len, users.values())) == NUM_USERS == len(set().union(*users.values()))


def test_rows_and_candidates_are_filtered_together(data_path: Path, damage: Damage) -> None:
    damage("test.jsonl.gz", 2, history=[])
    folder = DataFolder.open(data_path)
    rows, lists = folder.rows("test", min_history=0), folder.candidates("test")
    assert len(rows) == len(lists) == 3
    assert folder.ranked_rows("test") == [(rows[0], lists[0]), (rows[2], lists[2])]
    assert folder.rows("test") == [rows[0], rows[2]]
    assert len(folder.ranked_rows("test", min_history=0)) == 3


def test_the_folder_hash_is_that_of_the_content_and_not_of_the_place(data_path: Path) -> None:
    before = DataFolder.open(data_path).sha256
    moved = data_path.rename(data_path.with_name("moved"))
    assert DataFolder.open(moved).sha256 == before
    with gzip.open(moved / "val.jsonl.gz", "at") as file:
        file.write('{"user": null, "history": [], "target": 0}\n')
    record_hash(moved, "val.jsonl.gz")
    assert DataFolder.open(moved).sha256 != before


def test_groups_of_users_are_kept_and_absent_ones_are_none(
    data_path: Path, tmp_path: Path, catalog: Catalog, sequences: list[UserSequence]
) -> None:
    assert DataFolder.open(data_path).groups() is None
    groups = [user % 4 for user in range(NUM_USERS)]
    folder = write_folder(
        tmp_path / "groups",
        name="groups",
        domain="item",
        catalog=catalog,
        sequences=sequences,
        user_groups=groups,
        details={"noise": 0.1},
    )
    assert folder.groups() == groups
    assert folder.info["noise"] == 0.1


def test_groups_for_fewer_users_than_there_are_are_refused(
    tmp_path: Path, catalog: Catalog, sequences: list[UserSequence]
) -> None:
    with pytest.raises(InputError, match=r"user_groups has 2 values, .* user 29"):
        write_folder(
            tmp_path / "groups",
            name="groups",
            domain="item",
            catalog=catalog,
            sequences=sequences,
            user_groups=[0, 1],
        )


def test_rows_divided_elsewhere_are_written_as_they_are(tmp_path: Path, catalog: Catalog) -> None:
    rows: dict[Any, list[Row]] = {
        "train": [Row(None, (1, 2), 3), Row(None, (), 3)],
        "val": [Row(None, (1,), 1)],
        "test": [Row(8, (5, 5), 6)],
    }
    folder = write_folder(
        tmp_path / "rows",
        name="rows",
        domain="game",
        catalog=catalog,
        rows=rows,
        split_rule="by time",
    )
    assert {split: folder.rows(split, min_history=0) for split in rows} == rows
    assert folder.sequences() is None
    assert folder.info["split"] == {"rule": "by time", "seed": None}
    check_folder(folder.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "toy"}, "domain is 'toy'"),
        ({"sequences": None}, "neither sequences nor rows"),
        ({"sequences": [UserSequence(0, (1, 2))] * 2}, "more than one sequence"),
        ({"sequences": [UserSequence(u, (1, NUM_ITEMS)) for u in range(9)]}, f"item {NUM_ITEMS}"),
        ({"sequences": [UserSequence(u, (1, -1)) for u in range(9)]}, "item -1"),
        ({"rows": {"train": [Row(0, (), 1)]}}, "without split_rule"),
        ({"rows": {"train": [Row(0, (), 1)]}, "split_rule": "mine"}, "no val row"),
        ({"window": 0}, "window is 0"),
        ({"num_candidates": 1}, "num_candidates is 1"),
    ],
)
def test_bad_contents_are_refused_and_nothing_is_written(
    tmp_path: Path,
    catalog: Catalog,
    sequences: list[UserSequence],
    change: dict[str, Any],
    message: str,
) -> None:
    arguments = {"name": "x", "domain": "item", "catalog": catalog, "sequences": sequences}
    with pytest.raises(InputError, match=message):
        write_folder(tmp_path / "out", **{**arguments, **change})
    assert list(tmp_path.iterdir()) == []


def test_only_a_data_folder_is_overwritten_and_only_when_asked(
    data_path: Path, tmp_path: Path, catalog: Catalog, sequences: list[UserSequence]
) -> None:
    arguments: dict[str, Any] = {
        "name": "new",
        "domain": "item",
        "catalog": catalog,
        "sequences": sequences,
    }
    with pytest.raises(InputError, match="is a data folder already"):
        write_folder(data_path, **arguments)
    assert write_folder(data_path, **arguments, overwrite=True).name == "new"
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not a data folder"):
        write_folder(tmp_path / "letters", **arguments, overwrite=True)
    assert (tmp_path / "letters" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "name",
    [
        "items.csv",
        "train.jsonl.gz",
        "val.jsonl.gz",
        "test.jsonl.gz",
        "candidates.val.jsonl.gz",
        "candidates.test.jsonl.gz",
        "dataset.json",
        "sequences.jsonl.gz",
    ],
)
def test_a_missing_file_is_named(data_path: Path, name: str) -> None:
    (data_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is (missing|recorded in dataset.json but gone)"):
        DataFolder.open(data_path)


def test_a_folder_without_candidates_says_how_to_get_them(rows_path: Path) -> None:
    with pytest.raises(InputError, match=f"run `ilora data check {rows_path} --fix`"):
        DataFolder.open(rows_path)


def test_a_folder_that_records_no_candidates_says_how_to_get_them(data_path: Path) -> None:
    (data_path / "candidates.val.jsonl.gz").unlink()
    file = data_path / "dataset.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]["candidates.val.jsonl.gz"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"gz is missing; remove dataset\.json and run"):
        DataFolder.open(data_path)


def test_a_sample_is_not_taken_for_the_training_file_but_named(data_path: Path) -> None:
    (data_path / "train.jsonl.gz").rename(data_path / "train_sample.jsonl.gz")
    with pytest.raises(InputError, match=r"train\.jsonl\.gz is missing.*train_sample\.jsonl\.gz"):
        DataFolder.open(data_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        DataFolder.open(tmp_path / "nowhere")


def test_a_changed_file_is_named(data_path: Path) -> None:
    (data_path / "items.csv").write_bytes((data_path / "items.csv").read_bytes() + b"\n")
    with pytest.raises(InputError, match=r"items\.csv has changed"):
        DataFolder.open(data_path)


def test_a_file_that_came_in_later_is_named(data_path: Path) -> None:
    (data_path / "users.csv").write_text("user,source_id\n")
    with pytest.raises(InputError, match=r"users\.csv is not recorded"):
        DataFolder.open(data_path)


def test_files_that_are_not_of_the_format_are_left_alone(data_path: Path) -> None:
    (data_path / "candidates_sdpo.val.jsonl.gz").write_bytes(b"whatever")
    (data_path / "interactions.csv.gz").write_bytes(b"whatever")
    assert check_folder(data_path).items == NUM_ITEMS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": "ten"}, "window: "),
        ({"domain": "toy"}, "domain: "),
        ({"candidates": None}, "candidates: "),
        ({"format": 2}, "format: "),
    ],
)
def test_an_unsound_dataset_json_is_named_with_its_key(
    data_path: Path, change: dict[str, Any], message: str
) -> None:
    file = data_path / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=rf"dataset\.json: {message}"):
        DataFolder.open(data_path)
    file.write_text("{")
    with pytest.raises(InputError, match=r"dataset\.json is not sound JSON"):
        DataFolder.open(data_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"history": [1, NUM_ITEMS]}, f"line 2: history holds {NUM_ITEMS}, .* 0 to 59"),
        ({"history": [-1]}, "line 2: history holds -1"),
        ({"history": [1.0]}, "line 2: history holds 1.0"),
        ({"history": [True]}, "line 2: history holds True"),
        ({"history": "1 2"}, "line 2: history is '1 2'"),
        ({"history": list(range(11))}, "line 2: history has 11 items, .* window of 10"),
        ({"target": NUM_ITEMS}, f"line 2: target holds {NUM_ITEMS}"),
        ({"target": None}, "line 2: target holds None"),
        ({"target": float("nan")}, "line 2: target holds nan"),
        ({"user": "Ann"}, "line 2: user is 'Ann'"),
    ],
)
def test_a_bad_row_is_refused(
    data_path: Path, damage: Damage, keys: dict[str, Any], message: str
) -> None:
    damage("train.jsonl.gz", 2, **keys)
    with pytest.raises(InputError, match=rf"train\.jsonl\.gz {message}"):
        DataFolder.open(data_path).rows("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user": 1, "history": [], "target": 1}\n{"user"', "line 2: not JSON"),
        ('{"user": 1, "history": [], "target": 1}\n\n', "line 2: not JSON"),
        ("[1, 2, 3]\n", r"line 1: \[1, 2, 3\] is not an object"),
        ('{"user": 1, "history": []}\n', "line 1: no key 'target'"),
        ('{"history": [], "target": 1}\n', "line 1: no key 'user'"),
        ("", "has no row"),
    ],
)
def test_a_line_that_is_no_row_is_refused(data_path: Path, text: str, message: str) -> None:
    write_text(data_path / "val.jsonl.gz", text)
    record_hash(data_path, "val.jsonl.gz")
    with pytest.raises(InputError, match=rf"val\.jsonl\.gz {message}"):
        DataFolder.open(data_path).rows("val")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[: len(data) // 2], "is cut off"),
        (lambda data: data[:-4], "is cut off"),
        (lambda data: b"", "is cut off|has no row"),
        (lambda data: gzip.decompress(data), "is not a sound gzip file"),
        (lambda data: data[:-8] + bytes(8), "is not a sound gzip file"),
        (lambda data: data[:40] + b"\xff" * 40 + data[80:], "is not a sound gzip file"),
        (lambda data: gzip.compress(b"\xff\xfe\n"), "is not UTF-8"),
    ],
)
def test_a_damaged_gzip_file_is_refused(data_path: Path, spoil: Any, message: str) -> None:
    file = data_path / "train.jsonl.gz"
    file.write_bytes(spoil(file.read_bytes()))
    record_hash(data_path, "train.jsonl.gz")
    with pytest.raises(InputError, match=rf"train\.jsonl\.gz ({message})"):
        DataFolder.open(data_path).rows("train")


@pytest.mark.parametrize("extra", ["", "\n"])
def test_the_last_line_may_lack_its_line_break(data_path: Path, extra: str) -> None:
    write_text(data_path / "val.jsonl.gz", '{"user": null, "history": [], "target": 4}' + extra)
    record_hash(data_path, "val.jsonl.gz")
    assert DataFolder.open(data_path).rows("val", min_history=0) == [Row(None, (), 4)]


def test_a_candidate_list_without_its_target_is_refused(data_path: Path, damage: Damage) -> None:
    name = "candidates.test.jsonl.gz"
    record = read_lines(data_path / name)[1]
    others = [item for item in range(NUM_ITEMS) if item != record["target"]][:20]
    damage(name, 2, candidates=others)
    with pytest.raises(InputError, match=rf"line 2: the target {record['target']} is not among"):
        DataFolder.open(data_path).candidates("test")


def test_a_candidate_list_with_an_item_twice_is_refused(data_path: Path, damage: Damage) -> None:
    name = "candidates.val.jsonl.gz"
    items = read_lines(data_path / name)[0]["candidates"]
    target = read_lines(data_path / name)[0]["target"]
    damage(name, 1, candidates=[target, *[item for item in items if item != target][:18], target])
    with pytest.raises(InputError, match=rf"line 1: candidate {target} stands twice"):
        DataFolder.open(data_path).candidates("val")


def test_a_candidate_list_of_another_length_is_refused(data_path: Path, damage: Damage) -> None:
    name = "candidates.val.jsonl.gz"
    record = read_lines(data_path / name)[2]
    others = [item for item in record["candidates"] if item != record["target"]]
    damage(name, 3, candidates=[record["target"], *others[:9]])
    with pytest.raises(InputError, match="line 3: 10 candidates where 20"):
        DataFolder.open(data_path).candidates("val")


def test_a_candidate_outside_the_catalogue_is_refused(data_path: Path, damage: Damage) -> None:
    name = "candidates.val.jsonl.gz"
    items = read_lines(data_path / name)[0]["candidates"]
    damage(name, 1, candidates=[*items[:-1], NUM_ITEMS])
    with pytest.raises(InputError, match=f"line 1: candidates holds {NUM_ITEMS}"):
        DataFolder.open(data_path).candidates("val")


@pytest.mark.parametrize(("key", "value"), [("user", None), ("target", NUM_ITEMS - 1)])
def test_candidates_of_another_row_are_refused(
    data_path: Path, damage: Damage, key: str, value: Any
) -> None:
    damage("candidates.val.jsonl.gz", 2, **{key: value})
    with pytest.raises(InputError, match=r"line 2: user .* do not match the row's"):
        DataFolder.open(data_path).candidates("val")


def test_fewer_candidate_lists_than_rows_are_refused(data_path: Path) -> None:
    name = "candidates.val.jsonl.gz"
    lines = read_lines(data_path / name)[:-1]
    write_text(data_path / name, "".join(json.dumps(line) + "\n" for line in lines))
    record_hash(data_path, name)
    with pytest.raises(InputError, match=r"candidates\.val\.jsonl\.gz has 2 lines for 3 rows"):
        DataFolder.open(data_path).candidates("val")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "dev"}, "line 2: split is 'dev'"),
        ({"items": []}, "line 2: items is empty"),
        ({"items": [NUM_ITEMS]}, f"line 2: items holds {NUM_ITEMS}"),
        ({"user": 0}, "line 2: user 0 has a sequence on line 1"),
        ({"user": 1.5}, "line 2: user is 1.5"),
    ],
)
def test_a_bad_sequence_is_refused(
    data_path: Path, damage: Damage, keys: dict[str, Any], message: str
) -> None:
    damage("sequences.jsonl.gz", 2, **keys)
    with pytest.raises(InputError, match=rf"sequences\.jsonl\.gz {message}"):
        DataFolder.open(data_path).sequences()


def test_training_has_no_frozen_candidates(data_path: Path) -> None:
    with pytest.raises(InputError, match="no frozen candidates"):
        DataFolder.open(data_path).candidates("train")


def test_an_unknown_split_is_refused(data_path: Path) -> None:
    with pytest.raises(InputError, match="split is 'dev'"):
        DataFolder.open(data_path).rows("dev")  # type: ignore[arg-type]


def test_popularity_counts_every_training_interaction_once(data_path: Path) -> None:
    folder = DataFolder.open(data_path)
    counts = item_counts(folder)
    train = [one for one in folder.sequences() or [] if one.split == "train"]
    occurrences = [item for one in train for item in one.items]
    assert counts.tolist() == [occurrences.count(item) for item in range(NUM_ITEMS)]
    scores = popularity_scores(counts, [[3, 1], [1, 3]])
    assert scores.tolist() == [[counts[3], counts[1]], [counts[1], counts[3]]]


def test_popularity_counts_the_items_before_a_users_first_row(
    tmp_path: Path, catalog: Catalog
) -> None:
    train = [Row(0, (1, 2), 3), Row(0, (1, 2, 3), 4), Row(1, (2,), 2), Row(None, (9, 8), 7)]
    others = [Row(5, (1,), 2)]
    folder = write_folder(
        tmp_path / "rows",
        name="rows",
        domain="item",
        catalog=catalog,
        rows={"train": train, "val": others, "test": others},
        split_rule="mine",
    )
    # User 0: 1, 2, 3, 4. User 1: 2, 2. The row without a user: its target.
    assert item_counts(folder)[:10].tolist() == [0, 1, 3, 1, 1, 0, 0, 1, 0, 0]


def test_seventy_thousand_rows_are_read_in_seconds(tmp_path: Path) -> None:
    sequences = [UserSequence(user, tuple(range(user, user + 85))) for user in range(1_000)]
    catalog = Catalog(tuple(f"Item {item}" for item in range(1_100)))
    write_folder(tmp_path / "big", name="big", domain="item", catalog=catalog, sequences=sequences)
    start = time.process_time()
    rows = DataFolder.open(tmp_path / "big").rows("train", min_history=0)
    assert len(rows) == 68_000
    assert time.process_time() - start < 4  # half a second on an idle core; CI cores are slower
