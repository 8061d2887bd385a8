"""Element-wise Adagrad of sharded tables on CPU: fbgemm's numbers, but for the last digit."""

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from lightning_mvrec.strategies import Adagrad, TorchRecStrategy, adagrad_rows, plain_module, sharding
from lightning_mvrec.strategies.adagrad_rows import speed_up_adagrad, update_rows
from lightning_mvrec.strategies.joined import kernels
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InInit, loader, trainer

#: Rows and columns of two tables; the first is read by two features.
TABLES, FEATURES = [(13, 4), (7, 8)], [0, 0, 1]


def kernel(mode=PoolingMode.SUM, optimizer=EmbOptimType.EXACT_ADAGRAD, dim=None, **settings):
    torch.manual_seed(0)
    made = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim or width, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, width in TABLES],
        feature_table_map=FEATURES,
        optimizer=optimizer,
        learning_rate=0.1,
        eps=1e-3,
        pooling_mode=mode,
        **settings,
    )
    made.init_embedding_weights_uniform(-1, 1)
    return made


def bags(number, one=False):
    """Five bags a feature, some empty, with ids that come several times; or bags of one."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(0, 4, (3, 5), generator=generator)
    lengths = torch.ones_like(lengths) if one else lengths
    ids = [
        torch.randint(0, TABLES[t][0], (int(n.sum()),), generator=generator)
        for t, n in zip(FEATURES, lengths, strict=True)
    ]
    return torch.cat(ids), torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))


def train(made, steps=4, one=False):
    """Return all weights and sums of squares after some steps on a loss that is not linear."""
    for number in range(steps):
        output = made(*bags(number, one))
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).exp().sum().backward()
    states = [state for table in made.split_optimizer_states() for state in table]
    return [tensor.clone() for tensor in (*made.split_embedding_weights(), *states)]


@pytest.mark.parametrize("block", [3, 1024])
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("mode", [PoolingMode.SUM, PoolingMode.MEAN])
def test_tables_train_as_by_fbgemms_kernel(mode, one, block, monkeypatch):
    monkeypatch.setattr(adagrad_rows, "BLOCK", block)
    ours = kernel(mode)
    speed_up_adagrad(ours)
    assert "forward" in vars(ours)
    for found, expected in zip(train(ours, one=one), train(kernel(mode), one=one), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_the_learning_rate_is_that_of_the_lookup():
    ours, theirs = kernel(), kernel()
    speed_up_adagrad(ours)
    for made in (ours, theirs):
        output = made(*bags(0))
        made.set_learning_rate(0.0)
        output.sum().backward()
    torch.testing.assert_close(ours.weights_host, theirs.weights_host)


def test_one_update_is_that_of_a_replicated_table():
    weight, total = torch.arange(12.0).view(3, 4), torch.full((3, 4), 0.5)
    plain, plain_sum = weight.clone(), {"sum": total.clone()}
    gradient = torch.linspace(-1, 1, 12).view(3, 4)
    update_rows(Adagrad(0.1), weight, total, torch.tensor([2, 0, 2]), None, gradient)
    whole = torch.stack([gradient[1], torch.zeros(4), gradient[0] + gradient[2]])
    Adagrad(0.1).update(plain, whole, plain_sum, 0.1, 1)
    assert torch.equal(weight, plain)
    assert torch.equal(total, plain_sum["sum"])


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": PoolingMode.NONE, "dim": 4},
        {"optimizer": EmbOptimType.EXACT_SGD},
        {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD},
        {"gradient_clipping": True, "max_gradient": 0.1},
        {"weights_precision": SparseType.FP16},
        {"output_dtype": SparseType.BF16},
    ],
)
def test_other_kernels_stay_as_they_are(settings):
    made = kernel(**settings)
    speed_up_adagrad(made)
    assert "forward" not in vars(made)


def test_lookups_with_weights_or_without_gradient_are_the_kernels_own(monkeypatch):
    monkeypatch.setattr(adagrad_rows, "update_rows", None)
    made, ids, offsets = kernel(), *bags(0)
    speed_up_adagrad(made)
    made(indices=ids, offsets=offsets, per_sample_weights=torch.rand(len(ids))).sum().backward()
    with torch.no_grad():
        assert not made(ids, offsets).requires_grad


def test_a_lookup_without_ids_changes_nothing():
    made = kernel()
    speed_up_adagrad(made)
    before = made.weights_host.clone()
    made(torch.empty(0, dtype=torch.long), torch.zeros(7, dtype=torch.long)).sum().backward()
    assert torch.equal(made.weights_host, before)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_strategy_trains_tables_here(ranks):
    """As by fbgemm's kernel, and not by it."""

    def run(alone):
        if not alone:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sharding, "speed_up_adagrad", lambda kernel: None)
                return trained()
        return trained()

    def trained():
        torch.manual_seed(0)
        runner = trainer(TorchRecStrategy(Adagrad(lr=0.1), sharding="row_wise"))
        module = InInit()
        runner.fit(module, loader())
        ours = ["forward" in vars(kernel.emb_module) for kernel in kernels(module.embeddings)]
        weights = plain_module(runner).embeddings.embedding_bags
        return ours, torch.cat([table.weight.detach() for table in weights.values()])

    (ours, found), (theirs, expected) = (run_ranks(run, ranks, alone)[0] for alone in (True, False))
    assert (all(ours), any(theirs)) == (True, False)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
