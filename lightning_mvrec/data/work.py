"""What the steps of preparing a store hand to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_mvrec.data.histories import History
from lightning_mvrec.data.settings import Settings
from lightning_mvrec.data.sources.base import RawData
from lightning_mvrec.data.split import Assignment, Candidates
from lightning_mvrec.data.vocab import Vocabulary


@dataclass
class Work:
    """Events that are cleaned, ordered, split and numbered, before they are written.

    Args:
        settings: What was asked for.
        raw: What the source gave.
        names: Names of the views, in order.
        histories: One per view; users and items by number from 0, ascending by raw id.
        candidates: Events that may be targets.
        assignment: Their stages.
        row_of_item: Item row of each item number, 0 outside the catalogue.
        users: Raw user id <-> user row.
        items: Raw item id <-> item row.
        first_user: Number of the first user, where these are some of all users, whose numbers begin at 0 here.
    """

    settings: Settings
    raw: RawData
    names: list[str]
    histories: list[History]
    candidates: Candidates
    assignment: Assignment
    row_of_item: np.ndarray
    users: Vocabulary
    items: Vocabulary
    first_user: int = 0
