"""Event logs with a planted preference that only a model reading all views finds fully.

An item is a combination of three factors (genre, brand, price band). A visit starts with a mood: a genre and a brand,
drawn anew each time. Its clicks show the genre and nothing else, its carts show the brand and nothing else, and the
price band is the user's own and shows in what was bought. The purchase that ends the visit has all three right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.sources.base import RawData, Source


@dataclass
class SyntheticTruth:
    """What was planted, one row a purchase, in the order of the ``buy`` view.

    Args:
        mood: ``(purchases, 3)`` factors that the visit and the user called for.
        factors: ``(items, 3)`` factors of each item.
    """

    mood: np.ndarray
    factors: np.ndarray


class SyntheticEvents(Source):
    """Views ``click``, ``cart`` and ``buy``; the purchase is to be predicted.

    Args:
        num_users: Users, above 0.
        visits: Mean visits (and so purchases) of a user, at least 2.
        levels: Values of each factor: ``levels ** 3`` items.
        clicks: Mean clicks of a visit, at least 1.
        carts: Mean carts of a visit, at least 1.
        noise: Probability in [0, 1) that an event ignores the mood.
        item_fields: Whether the three factors are given as item fields.
        seed: Seed of everything drawn.

    Raises:
        ValueError: If an argument is out of its range.
    """

    folder = "synthetic"

    def __init__(
        self,
        num_users: int = 2000,
        visits: float = 8.0,
        levels: int = 9,
        clicks: float = 4.0,
        carts: float = 3.0,
        noise: float = 0.1,
        item_fields: bool = True,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("num_users", num_users, 1),
            ("visits", visits, 2),
            ("levels", levels, 2),
            ("clicks", clicks, 1),
            ("carts", carts, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= noise < 1:
            raise ValueError(f"noise must be in [0, 1), got {noise}")
        self.num_users = num_users
        self.visits = visits
        self.levels = levels
        self.clicks = clicks
        self.carts = carts
        self.noise = noise
        self.item_fields = item_fields
        self.seed = seed

    def load(self, root: str | None = None) -> RawData:
        """Draw the events; ``root`` is not used."""
        return self.generate()[0]

    def generate(self) -> tuple[RawData, SyntheticTruth]:
        """Draw the events and return them with what was planted."""
        rng = np.random.default_rng(self.seed)
        levels = self.levels
        items = levels**3
        # Item ids carry no hint of the factors: row number and factors are unrelated.
        code_of_factors = rng.permutation(items)
        grid = np.stack(np.unravel_index(np.arange(items), (levels, levels, levels)), 1)
        factors = np.empty_like(grid)
        factors[code_of_factors] = grid

        # Some factor values are more common than others, so that popularity is worth something.
        chance = 1 / (np.arange(levels) + 4.0)
        chance /= chance.sum()
        visits_U = 2 + rng.poisson(self.visits - 2, self.num_users)
        user_S = np.repeat(np.arange(self.num_users), visits_U)
        band_U = rng.choice(levels, self.num_users, p=chance)
        count = len(user_S)
        mood_S3 = np.stack(
            [rng.choice(levels, count, p=chance), rng.choice(levels, count, p=chance), band_U[user_S]], 1
        )
        # 90 days of visits, whole minutes; an hour apart at least is not needed, a visit lasts minutes.
        start_S = 1_700_000_000 + rng.integers(0, 90 * 24 * 60, count) * 60

        def events(number_S: np.ndarray, shown: tuple[int, ...], first: int) -> tuple[np.ndarray, ...]:
            visit = np.repeat(np.arange(count), number_S)
            step = np.arange(len(visit)) - np.repeat(np.cumsum(number_S) - number_S, number_S)
            drawn = np.stack([rng.choice(levels, len(visit), p=chance) for _ in range(3)], 1)
            keep = rng.random(len(visit)) >= self.noise
            for factor in shown:
                drawn[keep, factor] = mood_S3[visit[keep], factor]
            item = code_of_factors[np.ravel_multi_index(tuple(drawn.T), (levels, levels, levels))]
            return user_S[visit], item, start_S[visit] + first + step * 5, visit

        clicks = events(1 + rng.poisson(self.clicks - 1, count), (0,), 0)
        carts = events(1 + rng.poisson(self.carts - 1, count), (1,), 2)
        buys = events(np.ones(count, dtype=np.int64), (0, 1, 2), 600)
        views = {
            name: pd.DataFrame({"user": user, "item": item, "time": time})
            for name, (user, item, time, _) in {"click": clicks, "cart": carts, "buy": buys}.items()
        }
        frame = None
        if self.item_fields:
            names = ("genre", "brand", "price_band")
            frame = pd.DataFrame({"item": np.arange(items)})
            for number, name in enumerate(names):
                frame[name] = [f"{name}-{value}" for value in factors[:, number]]
        return RawData(views=views, items=frame), SyntheticTruth(mood=mood_S3[buys[3]], factors=factors)


def synthetic_events(num_users: int = 2000, seed: int = 0) -> RawData:
    """Return a small event log with views ``click``, ``cart`` and ``buy``.

    Example:
        >>> sorted(synthetic_events(num_users=10).views)
        ['buy', 'cart', 'click']
    """
    return SyntheticEvents(num_users=num_users, seed=seed).load()
