"""Checkpoints that the first release wrote are read as it read them, and go on as they did."""

import json
from pathlib import Path

import pytest
import torch

from lightning_mvrec.strategies import plain_module
from lightning_mvrec.strategies.checkpoint_read import read_meta
from lightning_mvrec.strategies.checkpoint_tools import consolidate, describe
from tests.distributed.launch import run_ranks
from tests.strategies.first_release import BEFORE, STEPS, First, Keep, fit

FOLDER = Path(__file__).parent / "data" / "format1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def equal(weights, written):
    assert set(weights) == set(EXPECTED[written]["weights"])
    return all(torch.equal(value, torch.tensor(EXPECTED[written]["weights"][key])) for key, value in weights.items())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("written", EXPECTED)
def test_a_run_goes_on_from_it(written, size):
    class Began(Keep):
        def on_train_batch_start(self, trainer, module, *args):
            self.found = self.found or (trainer.global_step, module.trainer.optimizers[0].param_groups[0]["lr"])

        def load_state_dict(self, state):
            self.state = state

        on_train_batch_end = on_train_epoch_end = lambda *args: None

    Began.__qualname__ = "Keep"  # a callback's state goes by the name of its class

    def run():
        keep = Began("")
        _, losses, trainer = fit(FOLDER / f"{written}.ckpt", [keep])
        return losses, trainer.global_step, keep.found, keep.state

    for losses, step, found, state in run_ranks(run, size):
        assert losses == pytest.approx(EXPECTED[written]["losses"], abs=1e-6)
        assert len(losses) == STEPS - BEFORE
        assert (step, found) == (STEPS, (BEFORE, 0.05 * 0.5))
        assert state == {"words": ["a", "b"], "number": 2}


@pytest.mark.parametrize("written", EXPECTED)
def test_its_weights_are_read_bit_for_bit(tmp_path, written):
    path = FOLDER / f"{written}.ckpt"
    assert equal(plain_module(path, First()).state_dict(), written)
    assert consolidate(path, tmp_path / "plain.pt") == []
    assert equal(torch.load(tmp_path / "plain.pt", weights_only=True)["state_dict"], written)


@pytest.mark.parametrize("written", EXPECTED)
def test_what_it_says_of_itself(written):
    path = FOLDER / f"{written}.ckpt"
    described = describe(path)
    assert (described.format, described.step, described.world_size) == (1, BEFORE, int(written[-1]))
    assert [(table.name, table.rows, table.sharding, table.state) for table in described.tables] == [
        ("tag", 5, "replicated", {"sum": [5, 4]}),
        ("item", 10, "row_wise", {"sum": [10, 4]}),
        ("user", 6, "row_wise", {"sum": [6]}),
    ]
    checkpoint = read_meta(path)["checkpoint"]
    assert checkpoint["mine"] == {"steps": BEFORE, "mean": torch.tensor([1.5])}
    assert checkpoint["hyper_parameters"] == {"name": "first"}
