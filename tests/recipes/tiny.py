"""Small files in the published layouts, drawn anew: what every recipe is tried on where the real data is absent."""

import json
from pathlib import Path

import numpy as np

USERS, ITEMS, GENRES = 40, 60, 19


def write_all(root: Path) -> None:
    """Write every data set below ``root``, each in the folder that its source looks for."""
    rng = np.random.default_rng(0)
    for write in (movielens_100k, movielens_1m, taobao, retailrocket, amazon_beauty):
        write(root, rng)


def movielens_100k(root: Path, rng: np.random.Generator) -> None:
    """Ratings, items with genre flags, users."""
    folder = _folder(root, "ml-100k")
    lines = []
    for user in range(1, USERS + 1):
        for item in rng.choice(np.arange(1, ITEMS + 1), 20, replace=False):
            lines.append((user, item, rng.integers(1, 6), 880_000_000 + int(rng.integers(0, 10_000_000))))
    _write(folder / "u.data", ["\t".join(map(str, line)) for line in lines])
    flags = rng.integers(0, 2, (ITEMS, GENRES))
    items = [
        f"{item}|Film {item} (1995)|01-Jan-1995||http://localhost/{item}|" + "|".join(map(str, flags[item - 1]))
        for item in range(1, ITEMS + 1)
    ]
    _write(folder / "u.item", items, "latin-1")
    _write(folder / "u.genre", [f"genre{number}|{number}" for number in range(GENRES)])
    jobs = ["writer", "student", "other"]
    users = [f"{u}|{rng.integers(15, 70)}|{'MF'[u % 2]}|{jobs[u % 3]}|{10000 + u}" for u in range(1, USERS + 1)]
    _write(folder / "u.user", users)
    _write(folder / "u.occupation", jobs)
    _write(folder / "u.info", [f"{USERS} users", f"{ITEMS} items", f"{len(lines)} ratings"])


def movielens_1m(root: Path, rng: np.random.Generator) -> None:
    """One ``user item`` a line in time order, with the item and user files and the maps to their ids."""
    folder = _folder(root, "ml-1m")
    lines = [
        f"{user} {item}"
        for user in range(1, USERS + 1)
        for item in rng.choice(np.arange(1, ITEMS + 1), 20, replace=False)
    ]
    _write(folder / "ml-1m.txt", lines)
    genres = ["Action", "Comedy|Drama"]
    films = [f"{item + 100}::Film {item} (1995)::{genres[item % 2]}" for item in range(1, ITEMS + 1)]
    _write(folder / "movies.dat", films, "latin-1")
    people = [f"{user + 500}::{'MF'[user % 2]}::25::{user % 5}::12345" for user in range(1, USERS + 1)]
    _write(folder / "users.dat", people)
    _write(folder / "sas_to_original_items.txt", [f"{item} {item + 100}" for item in range(1, ITEMS + 1)])
    _write(folder / "sas_to_original_users.txt", [f"{user} {user + 500}" for user in range(1, USERS + 1)])


def taobao(root: Path, rng: np.random.Generator) -> None:
    """Favourites, carts and purchases."""
    lines = ["user_id,item_id,behavior_type,timestamp"]
    times = iter(np.sort(rng.integers(1_511_539_200, 1_512_316_799, USERS * 20)))
    kinds = ["fav", "cart", "buy"]
    for _ in range(20):
        for user in rng.permutation(USERS):
            lines.append(f"{user},{rng.integers(0, ITEMS)},{kinds[rng.integers(0, 3)]},{next(times)}")
    _write(_folder(root, "taobao") / "events.csv", lines)


def retailrocket(root: Path, rng: np.random.Generator) -> None:
    """Views, carts and transactions, and one held-out purchase a visitor."""
    folder = _folder(root, "retailrocket")
    lines = ["timestamp,visitorid,event,itemid,transactionid"]
    kinds = ["view", "view", "addtocart", "transaction"]
    for number in range(USERS * 20):
        kind = kinds[rng.integers(0, 4)]
        transaction = number if kind == "transaction" else ""
        time, user, item = 1430623510000 + number * 60000, rng.integers(0, USERS), rng.integers(0, ITEMS)
        lines.append(f"{time},{user},{kind},{item},{transaction}")
    _write(folder / "events.csv", lines)
    pairs = [f"{user},{rng.integers(0, ITEMS)}" for user in range(USERS)]
    _write(folder / "test_buy.csv", ["visitorid,itemid", *pairs])


def amazon_beauty(root: Path, rng: np.random.Generator) -> None:
    """``user item item ...`` a line, and titles and category paths."""
    folder = _folder(root, "amazon-beauty")
    lines = [
        " ".join(map(str, [user, *rng.choice(np.arange(1, ITEMS + 1), 8, replace=False)]))
        for user in range(1, USERS + 1)
    ]
    _write(folder / "sequences.txt", lines)
    items = [
        json.dumps({"item": item, "title": f"Lotion {item}", "categories": [["Beauty", f"Kind {item % 4}"]]})
        for item in range(ITEMS + 1)
    ]
    _write(folder / "items.jsonl", items)


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
