"""`ilora data build` and `ilora data check`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ilora.cli.options import (
    JsonOption,
    OutOption,
    OverwriteOption,
    SeedOption,
    example,
    require_seed,
)

app = typer.Typer(no_args_is_help=True, help="Make data folders and check them.")
build = typer.Typer(no_args_is_help=True, help="Make a data folder from a source.")
app.add_typer(build, name="build")

DownloadOption = Annotated[
    bool,
    typer.Option(
        "--download", help="First fetch into --source, from its public address, what is not there."
    ),
]
MinUserOption = Annotated[
    int, typer.Option("--min-user-count", help="Leave out users with fewer interactions.")
]
MinItemOption = Annotated[
    int, typer.Option("--min-item-count", help="Leave out items with fewer interactions.")
]
WindowOption = Annotated[int, typer.Option("--window", help="Longest history.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the data set. Default: the source's.")
]
DOMAIN_HELP = "What an item is, for the prompts: movie, music, game, product or item."


@build.command(
    "movielens-100k",
    epilog=example(
        "ilora data build movielens-100k --source ml-100k --out data/movielens",
        "ilora data build movielens-100k --source ml-100k --download --out data/movielens",
    ),
)
def movielens_100k(
    source: Annotated[Path, typer.Option(help="Unpacked ml-100k folder with u.data and u.item.")],
    out: OutOption,
    download: DownloadOption = False,
    min_rating: Annotated[int, typer.Option(help="Leave out lower ratings.")] = 3,
    window: WindowOption = 10,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Read the raw files of MovieLens 100K."""
    from ilora.data.movielens import build_movielens

    build_movielens(
        source,
        out,
        download=download,
        seed=seed,
        min_rating=min_rating,
        window=window,
        overwrite=overwrite,
    )
    _print_statistics(out)


@build.command(
    "lastfm",
    epilog=example("ilora data build lastfm --source hetrec2011-lastfm-2k --out data/lastfm-2k"),
)
def lastfm(
    source: Annotated[
        Path, typer.Option(help="Unpacked hetrec2011-lastfm-2k folder; with --download any folder.")
    ],
    out: OutOption,
    download: DownloadOption = False,
    min_user_count: MinUserOption = 5,
    min_item_count: MinItemOption = 5,
    window: WindowOption = 10,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Read Last.fm 2K of HetRec 2011: a user meets an artist when he first tags him.

    The rows of the paper are in the folder that its authors publish: `ilora data build llara`.
    """
    from ilora.data.lastfm import build_lastfm

    with _notes():
        build_lastfm(
            source,
            out,
            download=download,
            min_user_count=min_user_count,
            min_item_count=min_item_count,
            window=window,
            seed=seed,
            overwrite=overwrite,
        )
    _print_statistics(out)


@build.command(
    "steam", epilog=example("ilora data build steam --source steam --download --out data/steam")
)
def steam(
    source: Annotated[
        Path, typer.Option(help="Folder with steam_reviews.json.gz and steam_games.json.gz.")
    ],
    out: OutOption,
    download: DownloadOption = False,
    min_user_count: MinUserOption = 5,
    min_item_count: MinItemOption = 5,
    window: WindowOption = 10,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Read the Steam reviews that SASRec's authors publish.

    The rows of the paper are in the folder that its authors publish: `ilora data build llara`.
    """
    from ilora.data.steam import build_steam

    with _notes():
        build_steam(
            source,
            out,
            download=download,
            min_user_count=min_user_count,
            min_item_count=min_item_count,
            window=window,
            seed=seed,
            overwrite=overwrite,
        )
    _print_statistics(out)


@build.command(
    "amazon",
    epilog=example(
        "ilora data build amazon --source amazon --category Video_Games --first-day 2015-10-01 "
        "--last-day 2018-11-30 --domain game --out data/games"
    ),
)
def amazon(
    source: Annotated[
        Path, typer.Option(help="Folder with CATEGORY_5.json.gz and meta_CATEGORY.json.gz.")
    ],
    out: OutOption,
    category: Annotated[str, typer.Option(help="As the files name it.")] = "Video_Games",
    domain: Annotated[str, typer.Option(help=DOMAIN_HELP)] = "product",
    download: DownloadOption = False,
    first_day: Annotated[
        str | None, typer.Option(help="Leave out earlier reviews, as 2015-10-01.")
    ] = None,
    last_day: Annotated[
        str | None, typer.Option(help="Leave out later reviews, as 2018-11-30.")
    ] = None,
    min_rating: Annotated[float | None, typer.Option(help="Leave out lower ratings.")] = None,
    min_user_count: MinUserOption = 5,
    min_item_count: MinItemOption = 5,
    window: WindowOption = 10,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Read Amazon reviews of one category (2014, 2018 or 2023), split by time."""
    from ilora.data.amazon import build_amazon

    with _notes():
        build_amazon(
            source,
            out,
            category=category,
            domain=cast(Any, domain),
            download=download,
            first_day=first_day,
            last_day=last_day,
            min_rating=min_rating,
            min_user_count=min_user_count,
            min_item_count=min_item_count,
            window=window,
            seed=seed,
            overwrite=overwrite,
        )
    _print_statistics(out)


@build.command(
    "csv",
    epilog=example(
        "ilora data build csv --source plays.csv --out data/plays",
        "ilora data build csv --source ratings.tsv --user-column userId --item-column movieId "
        "--titles movies.tsv --domain movie --out data/films",
    ),
)
def csv(
    source: Annotated[Path, typer.Option(help="CSV or TSV file with a header, also gzipped.")],
    out: OutOption,
    user_column: Annotated[str, typer.Option(help="Column of the user.")] = "user",
    item_column: Annotated[str, typer.Option(help="Column of the item.")] = "item",
    timestamp_column: Annotated[
        str, typer.Option(help="Column of the time: numbers or ISO 8601 dates.")
    ] = "timestamp",
    title_column: Annotated[str | None, typer.Option(help="Column of the title, if any.")] = None,
    rating_column: Annotated[
        str | None, typer.Option(help="Column of the rating, with --min-rating.")
    ] = None,
    titles: Annotated[
        Path | None, typer.Option(help="File of items and titles, if they are not in --source.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Between fields. Default: a tab for .tsv, else a comma.")
    ] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the files.")] = "utf-8-sig",
    name: Annotated[
        str | None, typer.Option(help="Name of the data set. Default: the file's.")
    ] = None,
    domain: Annotated[str, typer.Option(help=DOMAIN_HELP)] = "item",
    min_rating: Annotated[
        float | None, typer.Option(help="Leave out interactions rated lower.")
    ] = None,
    min_user_count: Annotated[
        int, typer.Option(help="Leave out users with fewer interactions.")
    ] = 3,
    min_item_count: Annotated[
        int, typer.Option(help="Leave out items with fewer interactions.")
    ] = 1,
    window: WindowOption = 10,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Read any table of user, item and time, with or without titles."""
    from ilora.data.csv_source import CsvColumns, build_csv

    with _notes():
        build_csv(
            source,
            out,
            columns=CsvColumns(
                user_column, item_column, timestamp_column, title_column, rating_column
            ),
            titles=titles,
            delimiter=delimiter,
            encoding=encoding,
            name=name,
            domain=cast(Any, domain),  # checked by the callee, whose message names the choices
            min_rating=min_rating,
            min_user_count=min_user_count,
            min_item_count=min_item_count,
            window=window,
            seed=seed,
            overwrite=overwrite,
        )
    _print_statistics(out)


@build.command(
    "llara",
    epilog=example("ilora data build llara --source LLaRA/data/ref/steam --out data/steam"),
)
def llara(
    source: Annotated[
        Path,
        typer.Option(help="Folder with train_data.df, Val_data.df, Test_data.df and the titles."),
    ],
    out: OutOption,
    name: NameOption = None,
    domain: Annotated[
        str | None, typer.Option(help=f"{DOMAIN_HELP} Default: told by the name.")
    ] = None,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Read a folder as LLaRA and iLoRA publish them, rows and splits as they are.

    Its frames are pickles. They are read as data, by a reader that runs nothing and knows nothing but
    frames of numbers and texts; a file that wants anything else is refused.
    """
    from ilora.data.llara import build_llara

    build_llara(source, out, name=name, domain=cast(Any, domain), seed=seed, overwrite=overwrite)
    _print_statistics(out)


@build.command(
    "synthetic", epilog=example("ilora data build synthetic --users 2000 --out data/synthetic")
)
def synthetic(
    out: OutOption,
    users: Annotated[int, typer.Option(help="Number of users.")] = 2000,
    items: Annotated[int, typer.Option(help="Number of items, a multiple of --groups.")] = 80,
    groups: Annotated[int, typer.Option(help="Number of behaviour groups, 2 to 8.")] = 4,
    noise: Annotated[
        float, typer.Option(help="Probability of a step that follows no rule.")
    ] = 0.08,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Make up users of several groups whose next-item rules conflict."""
    from ilora.data.synthetic import build_synthetic

    build_synthetic(
        out,
        num_users=users,
        num_items=items,
        num_groups=groups,
        noise=noise,
        seed=seed,
        overwrite=overwrite,
    )
    _print_statistics(out)


@app.command(
    epilog=example(
        "ilora data check data/movielens",
        "ilora data check data/mine --fix --name mine --domain movie",
    )
)
def check(
    path: Annotated[Path, typer.Argument(help="Data folder.")],
    fix: Annotated[
        bool, typer.Option("--fix", help="First add candidates.* and dataset.json if missing.")
    ] = False,
    domain: Annotated[
        str | None, typer.Option(help=f"With --fix. {DOMAIN_HELP} Default: told by the name.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="With --fix: name of the data set. Default: the folder's.")
    ] = None,
    excluded: Annotated[
        str | None,
        typer.Option(
            help="With --fix: what negatives stay out of: sequence (all items the user met) or "
            "history (the row's own, as in the paper's code). Default: sequence."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="With --fix: seed of the candidates.", callback=require_seed)
    ] = 0,
    out: JsonOption = None,
) -> None:
    """Check every line of a data folder and print its statistics."""
    from ilora.data.check import fix_folder
    from ilora.errors import InputError

    if fix:
        rule: dict[str, Any] = {} if excluded is None else {"excluded": excluded}
        written = fix_folder(path, seed=seed, domain=cast(Any, domain), name=name, **rule)
        typer.echo(
            f"wrote {', '.join(written)}" if written else "complete, nothing to fix", err=True
        )
    elif (domain, name, excluded) != (None, None, None):
        raise InputError("domain, name and excluded are for --fix; give --fix or leave them out")
    _print_statistics(path, out)


@contextmanager
def _notes() -> Iterator[None]:
    """Print what the block warns of as notes on stderr."""
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        yield
    for warning in met:
        typer.echo(f"note: {warning.message}", err=True)


def _print_statistics(path: Path, out: Path | None = None) -> None:
    from ilora.data.check import check_folder
    from ilora.files import write_json
    from ilora.tables import print_pairs

    report = check_folder(path)
    print_pairs(report.table(), title=f"{path} is sound")
    if out is not None:
        write_json(out, report.to_dict())
