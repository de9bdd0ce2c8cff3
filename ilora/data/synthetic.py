"""Built-in made-up data: users of several behaviour groups whose next-item rules conflict.

**Items.** A title is a mood and a thing, "Quiet Harbor", "Amber Fox". Things come in kinds
(animals, places, weather, objects, …), one kind for each group; every mood occurs once in each
kind, so `num_items = moods × kinds`. The catalogue does not depend on the seed.

**Users.** A user belongs to one group and never says which. Two things make a group:

- Its *habit*. All moods stand on one ring, in an order drawn from the seed; group `g` goes `s_g`
  places along it, with a different `s_g` for each group:

      next mood = ring[(place(mood of the last item) + s_g) mod moods]

  After the same last item every group goes on to another mood: one rule for all users must
  compromise, a rule for each group need not.
- Its *taste*. With probability `taste` the next thing is of the group's favourite kind, otherwise of
  any kind, drawn evenly. So the group shows in what a user has seen, and no single item gives it
  away: every item occurs in the histories of all groups.

With probability `noise` the mood is drawn at random instead, so nobody can be right every time. The
best guess of someone who knows the group and all rules, and has to choose among all items, is right
with probability :func:`best_hit_ratio`; the twenty candidates make it somewhat easier.

The target follows from the last item and the group. Prompt and candidates are those of any other
data folder: negatives are drawn evenly from the items that the user has not met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ilora.data.catalog import Catalog
from ilora.data.folder import DataFolder, write_folder
from ilora.data.sequences import UserSequence
from ilora.errors import InputError

MOODS = (
    "Amber", "Ancient", "Azure", "Bitter", "Bright", "Broken", "Calm", "Cold",
    "Crimson", "Distant", "Dusty", "Early", "Empty", "Faded", "Frozen", "Gentle",
    "Golden", "Hidden", "Hollow", "Humble", "Iron", "Ivory", "Late", "Lonely",
    "Loud", "Lucky", "Merry", "Misty", "Narrow", "Noble", "Pale", "Proud",
    "Quick", "Quiet", "Restless", "Royal", "Rustic", "Sacred", "Secret", "Silver",
    "Slow", "Solemn", "Sunny", "Tender", "Velvet", "Wandering", "Wicked", "Young",
)  # fmt: skip

KINDS = {
    "animals": (
        "Badger", "Falcon", "Fox", "Heron", "Otter", "Wolf", "Beaver",
        "Crane", "Deer", "Eagle", "Ferret", "Gecko", "Hare", "Jackal",
        "Lynx", "Magpie", "Newt", "Owl", "Raven", "Stork",
    ),
    "places": (
        "Bridge", "Harbor", "Island", "Mill", "Tower", "Valley", "Abbey",
        "Beach", "Castle", "Desert", "Forest", "Garden", "Hill", "Inn",
        "Lake", "Market", "Orchard", "Port", "Quarry", "River",
    ),
    "weather": (
        "Breeze", "Cloud", "Dawn", "Rain", "Storm", "Thunder", "Blizzard",
        "Drizzle", "Dusk", "Fog", "Frost", "Gale", "Hail", "Heat",
        "Lightning", "Mist", "Rainbow", "Snow", "Sunshine", "Wind",
    ),
    "objects": (
        "Anchor", "Candle", "Compass", "Lantern", "Mirror", "Violin", "Basket",
        "Clock", "Drum", "Engine", "Flute", "Globe", "Hammer", "Kettle",
        "Ladder", "Mask", "Needle", "Piano", "Ribbon", "Sword",
    ),
    "plants": (
        "Cedar", "Clover", "Ivy", "Maple", "Orchid", "Thistle", "Birch",
        "Cactus", "Daisy", "Elm", "Fern", "Heather", "Iris", "Jasmine",
        "Laurel", "Moss", "Nettle", "Oak", "Poppy", "Rose",
    ),
    "people": (
        "Baker", "Dancer", "Pilot", "Rider", "Sailor", "Weaver", "Archer",
        "Barber", "Carpenter", "Doctor", "Farmer", "Guard", "Hunter", "Jester",
        "Knight", "Miner", "Nurse", "Painter", "Queen", "Singer",
    ),
    "food": (
        "Apple", "Bread", "Cherry", "Honey", "Pepper", "Plum", "Almond",
        "Butter", "Cheese", "Dumpling", "Fig", "Garlic", "Lemon", "Mango",
        "Noodle", "Olive", "Peach", "Rice", "Soup", "Tea",
    ),
    "times": (
        "April", "Autumn", "Evening", "Midnight", "Sunday", "Winter", "August",
        "Century", "December", "Easter", "Friday", "Holiday", "January", "June",
        "March", "Monday", "Morning", "Noon", "October", "Spring",
    ),
}  # fmt: skip

STREAM = 0x5E9  # keeps these draws apart from the split's and the candidates' of the same seed


@dataclass(frozen=True, slots=True)
class GroupRules:
    """What each group does.

    Attributes:
        next_mood: `[groups, moods]`, the mood that follows each mood; in every column all entries
            differ (with a shared habit, all are equal).
        favourite: `[groups]`, the kind that the group's taste is for, another for each group.
    """

    next_mood: np.ndarray
    favourite: np.ndarray


def build_synthetic(
    out: Path,
    *,
    num_users: int = 2000,
    num_items: int = 80,
    num_groups: int = 4,
    seed: int = 0,
    noise: float = 0.08,
    taste: float = 0.7,
    lengths: tuple[int, int] = (10, 16),
    shared_habit: bool = False,
    name: str = "synthetic",
    overwrite: bool = False,
) -> DataFolder:
    """Write a synthetic data folder, as the module describes it, and open it.

    `dataset.json` gets, besides what every folder has, `user_groups` (the group of each user) and
    `synthetic` (the arguments and the rules). Equal arguments give equal bytes.

    Args:
        out: where; a new folder unless `overwrite`.
        num_users: split 8:1:1 into training, validation and test; groups are of equal size.
        num_items: a multiple of `num_groups`; `num_items / num_groups` moods.
        num_groups: from 2 to 8.
        seed: of the rules, the users, the split and the candidates. Two seeds give two worlds with the
            same titles: a language model pre-trained in one has read the words but not the rules
            of the other.
        noise: probability that a mood is drawn at random, in `[0, 1)`.
        taste: probability that a thing is of the favourite kind and not of any, in `[0, 1]`.
        lengths: shortest and longest sequence; every length between is equally likely.
        shared_habit: give all groups the same step along the ring, tastes still differing: the
            control in which one rule fits everybody and one shared adapter has nothing to lose.
        name: the data set's name in `dataset.json`.
        overwrite: replace a data folder at `out`.

    Raises:
        InputError: a number out of range, or something at `out` already.
    """
    if seed < 0:
        raise InputError(f"seed: {seed} is below 0; give 0 or more")
    _check(num_users, num_items, num_groups, noise, taste, lengths)
    rng = np.random.default_rng((seed, STREAM))
    rules = draw_rules(num_items // num_groups, num_groups, rng, shared_habit=shared_habit)
    groups = rng.permutation(np.arange(num_users) % num_groups)
    sequences = [
        UserSequence(user, _walk(rules, group, noise, taste, lengths, rng))
        for user, group in enumerate(groups.tolist())
    ]
    return write_folder(
        out,
        name=name,
        domain="item",
        catalog=synthetic_catalog(num_items, num_groups),
        sequences=sequences,
        seed=seed,
        user_groups=groups.tolist(),
        details={
            "synthetic": {
                "num_users": num_users,
                "num_items": num_items,
                "num_groups": num_groups,
                "seed": seed,
                "noise": noise,
                "taste": taste,
                "lengths": list(lengths),
                "shared_habit": shared_habit,
                "next_mood": rules.next_mood.tolist(),
                "favourite_kind": rules.favourite.tolist(),
            }
        },
        overwrite=overwrite,
    )


def synthetic_catalog(num_items: int, num_groups: int) -> Catalog:
    """The titles: item `mood · num_groups + kind` is `"<mood> <thing of that kind>"`.

    The things of a kind take turns along the moods, each kind in another order. Up to 20 moods no
    thing comes twice.
    """
    kinds = list(KINDS.values())[:num_groups]
    titles = []
    for mood, word in enumerate(MOODS[: num_items // num_groups]):
        for kind, things in enumerate(kinds):
            turn, place = divmod(mood, len(things))
            titles.append(f"{word} {things[(place + turn * (kind + 1)) % len(things)]}")
    return Catalog(tuple(titles))


def draw_rules(
    num_moods: int, num_groups: int, rng: np.random.Generator, *, shared_habit: bool = False
) -> GroupRules:
    """Draw the ring, each group's step along it (or one for all), and its favourite kind.

    Steps have no divisor in common with `num_moods`, so every group comes by every mood.
    """
    steps = rng.permutation(_possible_steps(num_moods))[:num_groups]
    if shared_habit:
        steps = np.repeat(steps[:1], num_groups)
    ring = rng.permutation(num_moods)
    next_mood = np.empty((num_groups, num_moods), dtype=np.int64)
    for group, step in enumerate(steps):
        next_mood[group, ring] = np.roll(ring, -step)
    return GroupRules(next_mood, rng.permutation(num_groups))


def best_hit_ratio(num_moods: int, num_kinds: int, noise: float, taste: float) -> float:
    """Probability that the next item is the most likely one for someone who knows all rules.

    (1 − noise + noise / moods) · (taste + (1 − taste) / kinds)
    """
    return (1 - noise + noise / num_moods) * (taste + (1 - taste) / num_kinds)


def _walk(
    rules: GroupRules,
    group: int,
    noise: float,
    taste: float,
    lengths: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """One user's items, oldest first; the first mood is any."""
    num_groups, num_moods = rules.next_mood.shape
    length = int(rng.integers(lengths[0], lengths[1], endpoint=True))
    any_mood = rng.integers(num_moods, size=length)
    any_kind = rng.integers(num_groups, size=length)
    kinds = np.where(rng.random(length) < taste, rules.favourite[group], any_kind)
    by_habit = rng.random(length) >= noise
    moods = any_mood.copy()
    for step in range(1, length):
        if by_habit[step]:
            moods[step] = rules.next_mood[group, moods[step - 1]]
    return tuple((moods * num_groups + kinds).tolist())


def _possible_steps(num_moods: int) -> Sequence[int]:
    return [step for step in range(1, num_moods) if math.gcd(step, num_moods) == 1]


def _check(
    num_users: int,
    num_items: int,
    num_groups: int,
    noise: float,
    taste: float,
    lengths: tuple[int, int],
) -> None:
    if not 2 <= num_groups <= len(KINDS):
        raise InputError(f"num_groups: {num_groups} is out of range; give 2 to {len(KINDS)}")
    if num_users < 10 * num_groups:
        raise InputError(
            f"num_users: {num_users} is too few for {num_groups} groups and three splits; give at "
            f"least {10 * num_groups}"
        )
    num_moods, left = divmod(num_items, num_groups)
    if left or num_moods > len(MOODS) or len(_possible_steps(num_moods)) < num_groups:
        sizes = [
            num_groups * moods
            for moods in range(1, len(MOODS) + 1)
            if len(_possible_steps(moods)) >= num_groups
        ]
        nearest = min(sizes, key=lambda size: abs(size - num_items))
        raise InputError(
            f"num_items: {num_items} items cannot be laid out for {num_groups} groups; "
            f"the nearest number that can is {nearest}"
        )
    if not 0 <= noise < 1:
        raise InputError(f"noise: {noise} is no probability below 1; give 0 to 0.99")
    if not 0 <= taste <= 1:
        raise InputError(f"taste: {taste} is no probability; give 0 to 1")
    if not 2 <= lengths[0] <= lengths[1]:
        raise InputError(
            f"lengths: {lengths} is no range; give a shortest of at least 2 and a longest of at "
            "least that"
        )
