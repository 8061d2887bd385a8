"""RetailRocket: what visitors of a shop viewed, put into the cart and bought."""

from __future__ import annotations

from pathlib import Path

from lightning_mvrec.data.sources.base import RawData
from lightning_mvrec.data.sources.tables import LogSource, read_table, rename


class RetailRocket(LogSource):
    """``events.csv`` in the official layout, and held-out purchases in ``test_buy.csv`` where there are any.

    Views ``view``, ``addtocart`` and ``transaction``; times come in milliseconds and are read in seconds.
    """

    folder = "retailrocket"
    download = (
        'Download "Retailrocket recommender system dataset" from its Kaggle page (retailrocket/ecommerce-dataset) and '
        "lay it out as <root>/events.csv or <root>/retailrocket/events.csv (columns timestamp in ms, visitorid, event, "
        "itemid, transactionid); held-out purchases, if any, beside it as test_buy.csv (visitorid, itemid)."
    )

    def __init__(self) -> None:
        super().__init__(
            file="events.csv",
            behavior="event",
            views={"view": "view", "addtocart": "addtocart", "transaction": "transaction"},
            columns={"user": "visitorid", "item": "itemid", "time": "timestamp"},
            numeric=["user", "item", "time"],
            time_unit="ms",
        )

    def files(self, root: str | None) -> list[Path]:
        """Return the events and the held-out pairs."""
        pairs = self.find_optional(root, "test_buy.csv")
        return [*super().files(root), *([pairs] if pairs else [])]

    def beside(self, root: str | None) -> RawData:
        """Read the held-out pairs."""
        pairs = self.find_optional(root, "test_buy.csv")
        if pairs is None:
            return RawData({})
        frame = rename(read_table(pairs), {"user": "visitorid", "item": "itemid"}, str(pairs))
        return RawData({}, held_out=frame.assign(view="transaction"))
