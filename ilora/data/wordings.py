"""What a prompt says around its titles: three wordings for every domain.

Short on purpose: thirty titles share the prompt, so the words around them should cost little.
Training draws one of the three for each row, so that the adapter learns the task and not one
sentence; evaluation always uses the first.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to ask: the line before the history, the one in its place, the candidates' line."""

    history: str
    no_history: str
    candidates: str


WORDINGS: dict[str, tuple[Wording, Wording, Wording]] = {
    "movie": (
        Wording(
            "A viewer watched these movies, oldest first:",
            "A viewer has not watched any movie yet.",
            "Which movie is watched next? Reply with one title from:",
        ),
        Wording(
            "Movies seen so far, latest last:",
            "No movies seen so far.",
            "Choose the next movie from:",
        ),
        Wording(
            "Someone's evenings at the movies, in order:",
            "Someone is about to see a first movie.",
            "The movie that follows is one of:",
        ),
    ),
    "music": (
        Wording(
            "A listener played this music, oldest first:",
            "A listener has not played any music yet.",
            "What is played next? Reply with one name from:",
        ),
        Wording(
            "Music heard so far, latest last:",
            "No music heard so far.",
            "Choose what to hear next from:",
        ),
        Wording(
            "Someone's listening, in order:",
            "Someone is about to listen for the first time.",
            "The music that follows is one of:",
        ),
    ),
    "game": (
        Wording(
            "A player played these games, oldest first:",
            "A player has not played any game yet.",
            "Which game is played next? Reply with one title from:",
        ),
        Wording(
            "Games played so far, latest last:",
            "No games played so far.",
            "Choose the next game from:",
        ),
        Wording(
            "Someone's game library, in order:",
            "Someone is about to get a first game.",
            "The game that follows is one of:",
        ),
    ),
    "product": (
        Wording(
            "A customer bought these products, oldest first:",
            "A customer has not bought any product yet.",
            "Which product is bought next? Reply with one name from:",
        ),
        Wording(
            "Products bought so far, latest last:",
            "No products bought so far.",
            "Choose the next product from:",
        ),
        Wording(
            "Someone's orders, in order of purchase:",
            "Someone is about to place a first order.",
            "The product that follows is one of:",
        ),
    ),
    "item": (
        Wording(
            "A user chose these items, oldest first:",
            "A user has not chosen any item yet.",
            "Which item is chosen next? Reply with one name from:",
        ),
        Wording(
            "Items chosen so far, latest last:",
            "No items chosen so far.",
            "Choose the next item from:",
        ),
        Wording(
            "Someone's choices, in order:",
            "Someone is about to make a first choice.",
            "The item that follows is one of:",
        ),
    ),
}

WORDINGS_PER_DOMAIN = 3
