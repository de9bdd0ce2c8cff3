"""Seeds of one method become one row."""

from __future__ import annotations

import pytest

from ilora.seeds import Seeded, over_seeds


def seeded(run: str, seed: int, hit_ratio: float, **changes: str) -> Seeded:
    told = {"evaluation": "test-free", "settings": "s"} | changes
    return Seeded(run, told["evaluation"], told["settings"], seed, hit_ratio)


def test_evaluations_and_settings_are_kept_apart() -> None:
    runs = [
        seeded("a-0", 0, 0.2),
        seeded("a-0", 0, 0.5, evaluation="val-free"),
        seeded("b-0", 0, 0.9, settings="t"),
        seeded("a-1", 1, 0.4),
        seeded("a-1", 1, 0.7, evaluation="val-free"),
    ]
    rows = over_seeds(runs)
    assert [(row.name, row.seeds) for row in rows] == [
        ("a (test-free)", (0, 1)),
        ("a (val-free)", (0, 1)),
    ]
    assert [row.mean for row in rows] == pytest.approx([0.3, 0.6])


def test_a_run_made_twice_is_not_two_seeds() -> None:
    assert over_seeds([seeded("a", 0, 0.2), seeded("copy", 0, 0.2)]) == []


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("ilora-0.001-seed0", "ilora-0.001-seed10"), "ilora-0.001"),
        (("x/lora_s1", "y/lora_s2"), "lora"),
        (("seed1", "seed2"), "seed1, seed2"),
        (("one", "two"), "one, two"),
        (("lora", "lora-2"), "lora"),
    ],
)
def test_the_row_is_called_what_the_names_begin_with(names: tuple[str, str], name: str) -> None:
    (row,) = over_seeds([seeded(names[0], 0, 0.2), seeded(names[1], 1, 0.2)])
    assert row.name == f"{name} (test-free)"
