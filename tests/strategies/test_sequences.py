"""Sequence collections on CPU go another way than TorchRec's, to the same numbers."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, PoolingMode
from torch.utils.data import DataLoader
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import Adagrad, TorchRecStrategy, lookups, plain_module, sharding
from lightning_mvrec.strategies.joined import kernels
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import trainer

ROWS, DIM = 7, 4


def batch(number: int) -> KeyedJaggedTensor:
    """Two users; ids come several times, features have different numbers of ids, ``c`` none at first."""
    generator = torch.Generator().manual_seed(10 * number + dist.get_rank())
    lengths = torch.tensor([3, 2, 0, 4, 0, number])  # users within a, b, c
    values = torch.randint(0, ROWS, (int(lengths.sum()),), generator=generator)
    return KeyedJaggedTensor(["a", "b", "c"], values, lengths=lengths)


class Sequences(pl.LightningModule):
    """Two tables, one of them with two features; each event weighs differently."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        features = {"one": ["a", "c"], "two": ["b"]}
        self.vectors = EmbeddingCollection(
            [EmbeddingConfig(ROWS, DIM, name, feature_names=features[name]) for name in features]
        )
        self.scale = torch.nn.Parameter(torch.ones(DIM))

    def training_step(self, ids, batch_idx):
        found = self.vectors(ids)
        weighted = [jagged.values() * torch.arange(1.0, len(jagged.values()) + 1)[:, None] for jagged in found.values()]
        return (torch.cat(weighted) * self.scale).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([self.scale], lr=0.1)


def trained(**plan):
    runner = trainer(TorchRecStrategy(Adagrad(lr=0.1), **plan))
    runner.fit(Sequences(), DataLoader([batch(number) for number in range(3)], batch_size=None))
    return runner, torch.cat([table.weight for table in plain_module(runner).vectors.embeddings.values()])


@pytest.mark.parametrize("kind", ["row_wise", "table_wise", "column_wise"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_bags_of_one_train_as_torchrecs_own_lookup(ranks, kind, monkeypatch):
    ours = run_ranks(lambda: trained(sharding=kind)[1], ranks)[0]
    monkeypatch.setattr(sharding, "speed_up", lambda collection: None)
    torchrecs = run_ranks(lambda: trained(sharding=kind)[1], ranks)[0]
    torch.testing.assert_close(ours, torchrecs, rtol=0, atol=1e-6)


def test_kernels_sum_over_one_row_and_leave_ids_unchecked_that_were_checked_before():
    def run(check_ids):
        runner, _ = trained(sharding="row_wise", check_ids=check_ids)
        (kernel,) = kernels(runner.lightning_module.vectors)
        return kernel.emb_module.pooling_mode, BoundsCheckMode(kernel.emb_module.bounds_check_mode_int)

    assert run_ranks(run, 1, True) == [(PoolingMode.SUM, BoundsCheckMode.NONE)]
    assert run_ranks(run, 1, False) == [(PoolingMode.SUM, BoundsCheckMode.WARNING)]


def test_on_one_rank_no_id_is_asked_for_its_rank(monkeypatch):
    def run():
        from torchrec.distributed.sharding import rw_sharding

        monkeypatch.setattr(rw_sharding, "bucketize_kjt_before_all2all", None)
        runner, _ = trained(sharding="row_wise")
        return [table.sharding for table in runner.strategy.plan_report.tables]

    assert run_ranks(run, 1) == [["row_wise", "row_wise"]]


class Alone(Sequences):
    """One feature, whose vectors are all that a lookup gives."""

    def __init__(self):
        super().__init__()
        self.vectors = EmbeddingCollection([EmbeddingConfig(ROWS, DIM, "one", feature_names=["a"])])
        self.steps = []

    def training_step(self, ids, batch_idx):
        jagged = self.vectors(ids)["a"]
        self.steps.append((type(jagged.values().grad_fn).__name__, jagged.lengths().tolist(), jagged.values().shape))
        return (jagged.values() * self.scale).square().mean()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("in_step", [False, True])
def test_vectors_of_one_feature_are_given_as_they_came_and_not_cut(ranks, in_step):
    def run(whole):
        def fit():
            module = Alone()
            runner = trainer(TorchRecStrategy(Adagrad(lr=0.1), sharding="row_wise", update_in_step=in_step))
            data = [KeyedJaggedTensor(["a"], torch.tensor([3, 1, 3]), lengths=torch.tensor([2, 0, 1]))] * 3
            runner.fit(module, DataLoader(data, batch_size=None))
            made, lengths, shape = module.steps[-1]
            assert (lengths, shape) == ([2, 0, 1], (3, DIM))
            return made, plain_module(runner).vectors.embeddings["one"].weight.detach()

        if whole:
            return fit()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lookups, "uncut", lambda output: output)
            return fit()

    (made, found), (cut, expected) = (run_ranks(run, ranks, whole)[0] for whole in (True, False))
    assert ("Split" in made, "Split" in cut) == (False, True)
    assert torch.equal(found, expected)
