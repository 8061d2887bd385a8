"""A training script for two processes that fails in its first attempt: ``failing_script.py FOLDER FAULT RANK``."""

import os
import sys
import threading
import time
import warnings

import lightning.pytorch as pl
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.distributed import test_faults as faults
from tests.strategies.stranger import loader


class Module(faults.Keeps):
    def on_train_batch_end(self, *args):
        if self.fault is faults.get_sigterm and self.global_step > 8:
            time.sleep(0.5)  # so that the news arrives before the end

    def train_dataloader(self):
        return loader()


def die_before_the_other_has_joined(strategy):
    """It has still to import torch when this process has just started it."""
    while not (strategy._launcher and strategy._launcher.procs):
        time.sleep(0.01)
    faults.get_killed()


def main(folder, fault, bad):
    warnings.simplefilter("ignore")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    # Lightning's own look for lost processes comes every 5 s; here always at the worst moment, at once.
    _ChildProcessObserver.__init__.__defaults__ = (0.01,)
    strategy = faults.strategy(failure_timeout=15.0)
    if fault == "killed early":
        if os.environ.get("LOCAL_RANK", "0") == bad:
            threading.Thread(target=die_before_the_other_has_joined, args=[strategy], daemon=True).start()
        fault = None
    keep = ModelCheckpoint(dirpath=folder, save_last=True, save_on_exception=fault == "get_sigterm")
    pl.seed_everything(3, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=3,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    module = Module(folder, getattr(faults, fault) if first and fault else None, int(bad))
    try:
        # A first attempt finds no checkpoint, says so and starts from the beginning.
        trainer.fit(module, ckpt_path="last")
    finally:
        if fault == "get_sigterm" and trainer.is_global_zero:
            strategy._launcher.procs[0].wait()
            time.sleep(2.0)
            print("all is put away")


if __name__ == "__main__":
    main(*sys.argv[1:])
