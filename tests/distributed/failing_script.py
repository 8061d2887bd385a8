"""A training script for two processes that fails in its first attempt: ``failing_script.py FOLDER FAULT RANK``."""

import os
import sys
import threading
import time
import warnings

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.distributed import test_faults as faults
from tests.strategies.stranger import loader


class Module(faults.Keeps):
    def train_dataloader(self):
        return loader()


def die_soon():
    time.sleep(2.0)
    faults.get_killed()


def main(folder, fault, bad):
    warnings.simplefilter("ignore")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if fault == "killed early":
        if os.environ.get("LOCAL_RANK", "0") == bad:
            threading.Thread(target=die_soon, daemon=True).start()
        fault = None
    pl.seed_everything(3, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=faults.strategy(failure_timeout=15.0),
        max_epochs=3,
        callbacks=[ModelCheckpoint(dirpath=folder, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    # A first attempt finds no checkpoint, says so and starts from the beginning.
    trainer.fit(Module(folder, getattr(faults, fault) if first and fault else None, int(bad)), ckpt_path="last")


if __name__ == "__main__":
    main(*sys.argv[1:])
