"""``mvrec prepare``: read, clean and split the data of a recipe once, so that later runs start at once."""

from __future__ import annotations

import sys

import lightning as L

from lightning_mvrec.cli.fit import TRAINER_DEFAULTS
from lightning_mvrec.cli.parser import RecipeParser
from lightning_mvrec.data import EventsDataModule
from lightning_mvrec.data.prepare import store_path
from lightning_mvrec.models.baselines import Baseline
from lightning_mvrec.training import MultiViewModule


def main(argv: list[str]) -> int:
    """Prepare the data of a recipe; its other parts are checked and left alone."""
    parser = RecipeParser(prog="mvrec prepare", description="Prepare the data of a recipe once.")
    parser.add_argument("--config", "-c", action="config", help="a recipe; given again, later ones win")
    parser.add_lightning_class_args(EventsDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(MultiViewModule, "model", subclass_mode=True, required=False)
    parser.add_lightning_class_args(L.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_argument("--seed_everything", type=bool | int, default=0)
    parser.add_argument("--run_dir", type=str | None, default=None)
    parser.add_argument("--baselines", type=list[Baseline], default=[])
    parser.add_argument("--stack", type=bool, default=False)
    parser.add_argument("--ckpt_path", type=str | None, default=None)
    config = parser.parse_args(argv)
    data = parser.instantiate_classes(config).data if "model" not in config else _data_only(parser, config)
    found = store_path(data.settings, data.root, data.store_dir).is_dir()
    data.prepare_data()
    if found:  # of a new one it has told what is in it
        data.setup()
        print(data.store.summary)
    return 0


def _data_only(parser: RecipeParser, config) -> EventsDataModule:
    """Build the data module without the model and the trainer."""
    for name in ("model", "trainer", "baselines"):
        config.pop(name, None)
    return parser.instantiate_classes(config).data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
