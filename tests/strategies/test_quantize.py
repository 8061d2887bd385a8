import pytest
import torch
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantizedBags
from torchrec.quant.embedding_modules import EmbeddingCollection as QuantizedSequences

from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy, plain_module, quantize_tables
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import loader, trainer
from tests.strategies.test_clipping import Everything


def trained():
    runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise"))
    runner.fit(Everything(), loader(3))
    return plain_module(runner)


def test_every_table_is_int8_and_off_by_less_than_a_hundredth():
    def run():
        plain = trained()
        small = quantize_tables(plain)
        kinds = {path: type(small.get_submodule(path)) for path in ("embeddings", "sequence", "small")}
        assert kinds == {"embeddings": QuantizedBags, "sequence": QuantizedSequences, "small": QuantizedBags}
        for path in kinds:
            for config in (
                small.get_submodule(path).__dict__.get("_embedding_bag_configs") or small.sequence._embedding_configs
            ):
                assert config.data_type.name == "INT8", config.name
        ids = KeyedJaggedTensor(["history"], torch.arange(50), lengths=torch.ones(50, dtype=torch.long))
        found, expected = (module.sequence(ids)["history"].values() for module in (small, plain))
        assert 0 < ((found - expected).norm() / expected.norm()).item() < 0.01
        wide = KeyedJaggedTensor(
            ["history", "reversed"], torch.arange(50).repeat(2), lengths=torch.ones(100, dtype=torch.long)
        )
        found, expected = (module.embeddings(wide)["history@item"] for module in (small, plain))
        assert 0 < ((found - expected).norm() / expected.norm()).item() < 0.01
        batch = next(iter(loader(1)))
        with torch.no_grad():
            assert torch.allclose(small(batch), plain(batch), atol=0.02)
        assert type(plain.sequence) is EmbeddingCollection  # a copy was made

    run_ranks(run, 2)


def test_sharded_tables_and_modules_without_any_are_refused():
    def run():
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1)))
        runner.fit(Everything(), loader(1))
        with pytest.raises(ValueError, match=r"give plain_module\(trainer\)"):
            quantize_tables(runner.lightning_module)

    run_ranks(run, 1)
    with pytest.raises(ValueError, match="Linear has no EmbeddingBagCollection"):
        quantize_tables(nn.Linear(1, 1))
    config = EmbeddingConfig(name="t", num_embeddings=3, embedding_dim=4, feature_names=["a"])
    with pytest.raises(ValueError, match="not the collection itself"):
        quantize_tables(EmbeddingCollection(tables=[config]))
