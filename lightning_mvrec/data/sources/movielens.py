"""MovieLens: 100K and 1M in the official layouts, and the 1M sequence file of the sequence papers."""

from __future__ import annotations

from pathlib import Path

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.sources.base import RawData, Source
from lightning_mvrec.data.sources.sequences import read_pairs


def views_of_ratings(ratings: pd.DataFrame, click_from: float) -> dict[str, pd.DataFrame]:
    """Return view ``rating`` (all, with the rating), ``click`` (liked) and ``browse`` (all, without the rating)."""
    bare = ratings[["user", "item", "time"]]
    return {"rating": ratings, "click": bare[ratings["rating"] >= click_from], "browse": bare}


def _rows(path: Path, separator: str, columns: list[str], encoding: str = "latin-1") -> pd.DataFrame:
    """Read a file without a header line, as text; names the first line with another number of columns."""
    with open(path, encoding=encoding) as file:
        rows = [line.rstrip("\r\n").split(separator) for line in file]
    if not rows:
        raise ValueError(f"{path} must have at least one line, it is empty")
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise ValueError(f"{path}, line {number}: must have {len(columns)} columns, got {len(row)}")
    return pd.DataFrame(rows, columns=columns)


def _integers(frame: pd.DataFrame, path: Path, columns: list[str]) -> pd.DataFrame:
    for column in columns:
        number = pd.to_numeric(frame[column], errors="coerce")
        bad = number.isna()
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise ValueError(
                f"{path}, line {row + 1}, column {column!r}: must be a number, got {frame[column].iloc[row]!r}"
            )
        frame[column] = number.astype("int64")
    return frame


class MovieLens100K(Source):
    """``u.data``, ``u.item``, ``u.genre`` and ``u.user``: ratings with times, genres and years, age and occupation.

    Args:
        click_from: Rating from which an event also counts as a click.
    """

    folder = "ml-100k"
    download = (
        'Download "MovieLens 100K Dataset" (ml-100k.zip) from the MovieLens page of GroupLens and unpack it, so that '
        "<root>/u.data or <root>/ml-100k/u.data exists."
    )

    def __init__(self, click_from: float = 4.0) -> None:
        self.click_from = click_from

    def files(self, root: str | None) -> list[Path]:
        """Return the four files."""
        return [self.find(root, name) for name in ("u.data", "u.item", "u.genre", "u.user")]

    def load(self, root: str | None) -> RawData:
        """Read the four files."""
        data, item, genre, user = self.files(root)
        names = ["user", "item", "rating", "time"]
        ratings = _integers(_rows(data, "\t", names), data, names)
        with open(genre, encoding="latin-1") as file:
            genres = [line.split("|")[0] for line in file if line.strip()]
        films = _rows(item, "|", ["item", "title", "released", "video", "url", *genres])
        films = _integers(films, item, ["item"])
        flags = films[genres].to_numpy() == "1"
        items = pd.DataFrame(
            {
                "item": films["item"],
                "title": films["title"],
                "genres": [[name for name, has in zip(genres, row, strict=True) if has] for row in flags],
                "year": pd.to_numeric(films["released"].str[-4:], errors="coerce"),
            }
        )
        people = _integers(_rows(user, "|", ["user", "age", "gender", "occupation", "zip"]), user, ["user", "age"])
        views = views_of_ratings(ratings, self.click_from)
        return RawData(
            views, items, people.drop(columns="zip"), text=("title",), origin=dict.fromkeys(views, str(data))
        )


class MovieLens1M(Source):
    """``ratings.dat``, ``movies.dat`` and ``users.dat`` in the official layout, with real times.

    Args:
        click_from: Rating from which an event also counts as a click.
    """

    folder = "ml-1m"
    download = (
        'Download "MovieLens 1M Dataset" (ml-1m.zip) from the MovieLens page of GroupLens and unpack it, so that '
        "<root>/ratings.dat or <root>/ml-1m/ratings.dat exists."
    )

    def __init__(self, click_from: float = 4.0) -> None:
        self.click_from = click_from

    def files(self, root: str | None) -> list[Path]:
        """Return the three files."""
        return [self.find(root, name) for name in ("ratings.dat", "movies.dat", "users.dat")]

    def load(self, root: str | None) -> RawData:
        """Read the three files."""
        data, movies, users = self.files(root)
        names = ["user", "item", "rating", "time"]
        ratings = _integers(_rows(data, "::", names), data, names)
        views = views_of_ratings(ratings, self.click_from)
        return RawData(
            views, read_movies(movies), read_users(users), text=("title",), origin=dict.fromkeys(views, str(data))
        )


class MovieLens1MSequence(Source):
    """``ml-1m.txt``: lines ``user item`` in time order, the file of the SASRec, BERT4Rec and gSASRec papers.

    Genres, titles and demographics are added where ``movies.dat``, ``users.dat`` and the two maps
    ``sas_to_original_items.txt`` and ``sas_to_original_users.txt`` lie beside it. No times: leave-one-out only.

    Args:
        view: Name of the only view.
    """

    folder = "ml-1m"
    download = (
        "Take ml-1m.txt from the code repository of the SASRec, BERT4Rec or gSASRec paper (they are the same file) and "
        "lay it out as <root>/ml-1m.txt or <root>/ml-1m/ml-1m.txt."
    )

    def __init__(self, view: str = "rating") -> None:
        self.view = view

    def files(self, root: str | None) -> list[Path]:
        """Return the sequence file and whatever lies beside it."""
        beside = ("movies.dat", "users.dat", "sas_to_original_items.txt", "sas_to_original_users.txt")
        found = [self.find_optional(root, name) for name in beside]
        return [self.find(root, "ml-1m.txt"), *(path for path in found if path)]

    def load(self, root: str | None) -> RawData:
        """Read the files."""
        path = self.find(root, "ml-1m.txt")
        items = self._mapped(root, "movies.dat", "sas_to_original_items.txt", "item")
        users = self._mapped(root, "users.dat", "sas_to_original_users.txt", "user")
        views = {self.view: read_pairs(path)}
        text = () if items is None else ("title",)
        return RawData(views, items, users, text=text, has_times=False, origin={self.view: str(path)})

    def _mapped(self, root: str | None, name: str, map_name: str, column: str) -> pd.DataFrame | None:
        file = self.find_optional(root, name)
        ids = self.find_optional(root, map_name)
        if file is None or ids is None:
            return None
        frame = read_movies(file) if column == "item" else read_users(file)
        pairs = read_pairs(ids).set_axis(["ours", column], axis=1)
        return pairs.merge(frame, on=column).drop(columns=column).rename(columns={"ours": column})


def read_movies(path: Path) -> pd.DataFrame:
    """Read ``movies.dat``: item, title, genres (a list) and year of the title."""
    frame = _integers(_rows(path, "::", ["item", "title", "genres"]), path, ["item"])
    year = pd.to_numeric(frame["title"].str.extract(r"\((\d{4})\)\s*$")[0], errors="coerce")
    return frame.assign(genres=frame["genres"].str.split("|"), year=year)


def read_users(path: Path) -> pd.DataFrame:
    """Read ``users.dat``: user, gender, age group and occupation (codes, kept as text)."""
    frame = _integers(_rows(path, "::", ["user", "gender", "age", "occupation", "zip"]), path, ["user"])
    return frame.drop(columns="zip")
