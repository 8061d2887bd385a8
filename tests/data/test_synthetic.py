import numpy as np
import pytest

from lightning_mvrec.data import SyntheticEvents


def ndcg_of_oracle(known_PF, mood_P3, factors_I3, items_P, chance_L, k=10):
    """Mean NDCG@k of ranking by the chance of an item, given the factors that are known of each mood.

    ``known_PF`` lists the known factors. Unknown factors are ranked by how common their levels are.
    """
    prior_I = np.log(chance_L[factors_I3]).sum(1)
    score_PI = np.tile(prior_I, (len(mood_P3), 1))
    for factor in known_PF:
        score_PI += 1e3 * (factors_I3[:, factor] == mood_P3[:, factor, None])
    rank_P = (score_PI >= np.take_along_axis(score_PI, items_P[:, None], 1)).sum(1)
    return float(((rank_P <= k) / np.log2(rank_P + 1)).mean())


def test_one_factor_is_worth_something_and_all_of_them_far_more():
    """Each view shows one factor: what a reader of one view, of two and of all can reach at best."""
    source = SyntheticEvents(num_users=400)
    raw, truth = source.generate()
    chance = 1 / (np.arange(source.levels) + 4.0)
    items = raw.views["buy"]["item"].to_numpy()
    best = {
        known: ndcg_of_oracle(known, truth.mood, truth.factors, items, chance)
        for known in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    }
    for one in [(0,), (1,), (2,)]:
        assert best[one] > 2 * best[()]
    assert best[0, 1, 2] > 0.85
    assert best[0, 1, 2] > 1.5 * max(value for known, value in best.items() if len(known) < 3)


def test_each_view_shows_its_own_factor_and_no_other():
    source = SyntheticEvents(num_users=300, noise=0.0)
    raw, truth = source.generate()
    factors = truth.factors
    buys = raw.views["buy"]
    assert (factors[buys["item"]] == truth.mood).all()
    for name, shown in (("click", 0), ("cart", 1)):
        # Events of a visit lie within ten minutes before its purchase; visits of one user may overlap: most do not.
        events = raw.views[name].merge(buys, on="user", suffixes=("", "_buy"))
        gap = events["time_buy"] - events["time"]
        events = events[(gap > 0) & (gap <= 600)]
        agree = (factors[events["item"]] == factors[events["item_buy"]]).mean(0)
        assert agree[shown] > 0.98
        assert all(share < 0.2 for factor, share in enumerate(agree) if factor != shown)


def test_the_band_is_the_users_own():
    raw, truth = SyntheticEvents(num_users=50, noise=0.0).generate()
    assert raw.views["buy"].assign(band=truth.mood[:, 2]).groupby("user")["band"].nunique().max() == 1


def test_events_depend_on_the_seed_only():
    one, same, other = (SyntheticEvents(num_users=20, seed=seed).load().views["click"] for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_users": 0}, "num_users must be at least 1"),
        ({"visits": 1}, "visits must be at least 2"),
        ({"levels": 1}, "levels must be at least 2"),
        ({"clicks": 0}, "clicks must be at least 1"),
        ({"noise": 1.0}, r"noise must be in \[0, 1\)"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticEvents(**settings)
