"""`mvrec checkpoint`: what it says is what was saved, its one file loads into the unsharded module."""

import json
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_mvrec.cli.main import main
from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy, plain_module
from lightning_mvrec.strategies.checkpoint_tools import describe
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import BATCH, DIM, ITEMS, USERS, InConfigureModel, InInit, loader, trainer


def save(folder):
    class Saved(InConfigureModel):
        def __init__(self, width: int = 3):
            super().__init__()
            self.save_hyperparameters()

        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = {"score": torch.tensor(0.25).numpy()[()]}

    pl.seed_everything(3, verbose=False)
    module = Saved()
    strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding={"item": "row_wise", "user": "table_wise"})
    keep = ModelCheckpoint(dirpath=folder, filename="one")
    runner = trainer(strategy, folder, enable_checkpointing=True, callbacks=[keep])
    runner.fit(module, loader(6))
    return {key: value.clone() for key, value in plain_module(module).state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return folder / "one.ckpt", run_ranks(save, 2, folder)[0]


def test_inspect_names_what_was_saved(saved):
    path, weights = saved
    found = describe(path)
    assert (found.format, found.epoch, found.step, found.world_size, found.resumable) == (1, 0, 6, 2, True)
    tables = {table.name: table for table in found.tables}
    assert [(table.rows, table.dim, table.dtype) for table in tables.values()] == [
        (ITEMS, DIM, "float32"),
        (USERS, DIM, "float32"),
    ]
    assert [table.sharding for table in tables.values()] == ["row_wise", "table_wise"]
    assert tables["item"].optimizer == repr(RowWiseAdagrad(lr=0.1))
    assert tables["item"].state == {"sum": [ITEMS]}
    assert tables["item"].bytes > 4 * ITEMS * (DIM + 1)
    dense = {key: list(value.shape) for key, value in weights.items() if key.startswith("tower")}
    assert found.dense == dense
    assert found.bytes == sum(file.stat().st_size for file in path.iterdir())
    assert "mine" in found.other


def test_inspect_prints_a_table_or_json(saved, capsys):
    path, _ = saved
    assert main(["checkpoint", "inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "epoch 0, step 6, written by 2 processes; a fit can go on from it" in text
    assert f"item   {ITEMS}    {DIM}    float32  row_wise    RowWiseAdagrad(lr=0.1, eps=1e-08)  sum {ITEMS}" in text
    assert main(["checkpoint", "inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["world_size"] == 2


def test_inspect_without_a_plan_still_finds_the_tables(saved, tmp_path):
    path, _ = saved
    target = tmp_path / "old.ckpt"
    target.mkdir()
    for file in path.iterdir():
        if file.name != "plan.json":
            (target / file.name).write_bytes(file.read_bytes())
    assert [(table.name, table.sharding) for table in describe(target).tables] == [("item", None), ("user", None)]
    assert "?" in str(describe(target))


def test_the_plan_beside_the_weights_is_readable_json(saved):
    plan = json.loads((saved[0] / "plan.json").read_text())
    assert plan["world_size"] == 2
    assert {line["table"]: line["rows_on_rank"] for line in plan["tables"]}["item"] == [ITEMS // 2, ITEMS // 2]


def test_the_consolidated_file_loads_into_the_unsharded_module(saved, tmp_path):
    path, weights = saved
    out = tmp_path / "one.pt"
    assert main(["checkpoint", "consolidate", str(path), str(out)]) == 0
    content = torch.load(out, weights_only=True)
    assert content["epoch"] == 0
    assert content["hyper_parameters"] == {"width": 3}
    assert content["mine"] == {"score": 0.25}
    assert "optimizer_states" not in content
    module = InInit()
    module.load_state_dict(content["state_dict"], strict=True)
    for key, value in module.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert [file.name for file in tmp_path.iterdir()] == ["one.pt"]


def test_an_existing_file_is_only_replaced_by_force(saved, tmp_path, capsys):
    out = tmp_path / "one.pt"
    out.write_text("mine")
    words = ["checkpoint", "consolidate", str(saved[0]), str(out)]
    assert main(words) == 1
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*words, "--force"]) == 0
    assert torch.load(out, weights_only=True)["global_step"] == 6
    assert main(["checkpoint", "consolidate", str(saved[0]), str(tmp_path), "--force"]) == 1
    assert "is a directory" in capsys.readouterr().err


def test_a_folder_that_is_no_checkpoint_is_one_line(tmp_path, capsys):
    assert main(["checkpoint", "inspect", str(tmp_path)]) == 1
    assert "meta.pt is missing" in capsys.readouterr().err


def test_neither_torchrec_nor_lightning_is_imported(saved):
    code = (
        "import sys; from lightning_mvrec.cli.main import main; main(['checkpoint', 'inspect', sys.argv[1]]); "
        "print([m for m in ('torchrec', 'lightning', 'fbgemm_gpu') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(saved[0])], capture_output=True, text=True)
    assert run.stdout.endswith("\n[]\n"), run.stdout + run.stderr


def test_lightnings_own_consolidate_command_works(saved, tmp_path):
    path, weights = saved
    out = tmp_path / "lightning.pt"
    module = "lightning.pytorch.utilities.consolidate_checkpoint"
    run = subprocess.run(
        [sys.executable, "-m", module, str(path), "--output_file", str(out)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    loaded = torch.load(out, weights_only=True)["state_dict"]
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_training_on_from_a_consolidated_file_is_refused_but_testing_works(saved, tmp_path):
    path, _ = saved
    out = tmp_path / "one.ckpt"
    assert main(["checkpoint", "consolidate", str(path), str(out)]) == 0

    def run():
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise"))
        measure = [
            runner.test(InConfigureModel(), loader(2), ckpt_path=source, verbose=False)[0]["val_loss"]
            for source in (path, out)
        ]
        try:
            runner.fit(InConfigureModel(), loader(BATCH), ckpt_path=out)
        except KeyError as error:
            return measure, str(error)
        return measure, None

    (directory, file), message = run_ranks(run, 2)[0]
    assert directory == file
    assert "contains only the model" in message


@pytest.mark.parametrize("files", [1, 3])
def test_resharding_changes_the_files_and_no_number(saved, tmp_path, files):
    path, weights = saved
    out = tmp_path / "again.ckpt"
    assert main(["checkpoint", "reshard", str(path), str(out), "--files", str(files)]) == 0
    assert len(list(out.glob("*.distcp"))) == files
    before, after = describe(path), describe(out)
    assert [(t.name, t.rows, t.state, t.sharding) for t in after.tables] == [
        (t.name, t.rows, t.state, t.sharding) for t in before.tables
    ]
    again = plain_module(out, InConfigureModel()).state_dict()
    assert all(torch.equal(again[key], value) for key, value in weights.items())

    def state(source):
        module = InConfigureModel()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="table_wise"), max_steps=6, max_epochs=None)
        runner.fit(module, loader(6), ckpt_path=source)
        return {key: value.local_tensor() for key, value in runner.optimizers[0].table_state().items()}

    (was,), (now,) = run_ranks(state, 1, path), run_ranks(state, 1, out)
    assert was.keys() == now.keys() == {"item/sum", "user/sum"}
    assert all(torch.equal(now[key], value) for key, value in was.items())


def test_resharding_does_not_replace_anything(saved, tmp_path, capsys):
    assert main(["checkpoint", "reshard", str(saved[0]), str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["checkpoint", "reshard", str(saved[0]), str(tmp_path / "new"), "--files", "0"]) == 1
    assert "files must be above 0, got 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
