"""pandas, loaded where it is first used.

It is read by what prepares data; a run that finds its store prepared needs none of it. With pyarrow, which it loads, it
takes about 60 MB of memory in every process and half a second of a command's start.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
else:

    class _Pandas:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("pandas"), name)

    pd = _Pandas()

__all__ = ["pd"]
