"""Items named by a person: ids are the truth, a title must mean one item."""

from __future__ import annotations

import pytest

from ilora.data.catalog import Catalog
from ilora.errors import InputError
from ilora.item_names import parse_items

CATALOG = Catalog(("Heat", "Portal", "Portal 2", "3", "Twice", "Me, Myself & Irene", "twice"))


def test_digits_and_commas_are_ids_in_their_order() -> None:
    assert parse_items("history", ["3, 1,3", "0"], CATALOG) == [3, 1, 3, 0]


def test_a_title_is_compared_without_case_and_white_space() -> None:
    assert parse_items("history", ["  HEAT ", "Portal  2"], CATALOG) == [0, 2]


def test_a_title_may_hold_commas() -> None:
    assert parse_items("history", ["Me, Myself & Irene"], CATALOG) == [5]


def test_a_prefix_makes_a_title_of_digits() -> None:
    assert parse_items("history", ["title:3"], CATALOG) == [3]


def test_a_shared_title_is_refused_with_the_ids() -> None:
    with pytest.raises(InputError, match="'Twice' is the title of items 4, 6; give the id"):
        parse_items("history", ["Twice"], CATALOG)


def test_an_unknown_title_is_refused_with_those_that_are_close() -> None:
    with pytest.raises(InputError, match=r"did you mean 'Portal' \(id 1\)"):
        parse_items("history", ["Portall"], CATALOG)


def test_an_unknown_title_far_from_all_is_refused_too() -> None:
    with pytest.raises(InputError, match=r"no item has the title 'Zzzzzz'; take one from"):
        parse_items("candidates", ["Zzzzzz"], CATALOG)


def test_an_id_outside_the_catalogue_is_refused() -> None:
    with pytest.raises(InputError, match="candidates: item 7 is not in the catalogue"):
        parse_items("candidates", ["1,7"], CATALOG)


def test_an_empty_text_names_nothing() -> None:
    with pytest.raises(InputError, match="an empty text names no item"):
        parse_items("history", [" "], CATALOG)


def test_ids_of_the_source_are_looked_up_in_its_column() -> None:
    own = ("12", "i7", "x,y", "3", "0", "b", "c")
    catalog = Catalog(CATALOG.titles, {"source_id": own})
    assert parse_items("history", ["source:12, i7,0", "source:x,y", "2"], catalog) == [
        0,
        1,
        4,
        2,
        2,
    ]
    with pytest.raises(InputError, match="history: no item had the id '7' in its source"):
        parse_items("history", ["source:12,7"], catalog)


def test_a_catalogue_without_ids_of_its_source_says_so() -> None:
    with pytest.raises(InputError, match=r"items\.csv has no column source_id; give its ids"):
        parse_items("history", ["source:12"], CATALOG)
