"""Every adapter on a few lines in the published layout, and its messages."""

import pytest

from lightning_mvrec.data.sources import (
    AmazonSequences,
    LogSource,
    MovieLens1M,
    MovieLens1MSequence,
    MovieLens100K,
    RetailRocket,
    SequenceFile,
    TableSource,
    Taobao,
)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="latin-1")
    return str(folder)


ML_100K = {
    "u__data": "1\t10\t4\t100\n1\t11\t3\t200\n2\t10\t5\t300\n",
    "u__genre": "unknown|0\nAction|1\nDrama|2\n\n",
    "u__item": "10|A film (1995)|01-Jan-1995||url|0|1|1\n11|Caf\xe9|||url|1|0|0\n",
    "u__user": "1|24|M|writer|85711\n2|53|F|other|T8H1N\n",
}
ML_1M = {
    "ratings__dat": "1::10::4::100\n2::11::3::200\n",
    "movies__dat": "10::A film (1995)::Action|Drama\n11::B::Drama\n",
    "users__dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
}


def test_movielens_100k_reads_views_genres_and_people(tmp_path):
    raw = MovieLens100K().load(write(tmp_path, **ML_100K))
    assert {name: frame["item"].tolist() for name, frame in raw.views.items()} == {
        "rating": [10, 11, 10],
        "click": [10, 10],
        "browse": [10, 11, 10],
    }
    assert raw.views["rating"]["rating"].tolist() == [4, 3, 5]
    assert "rating" not in raw.views["browse"].columns
    assert raw.items["genres"].tolist() == [["Action", "Drama"], ["unknown"]]
    assert raw.items["year"].tolist()[0] == 1995
    assert raw.users["age"].tolist() == [24, 53]


def test_movielens_1m_reads_views_genres_and_people(tmp_path):
    raw = MovieLens1M().load(write(tmp_path, **ML_1M))
    assert raw.views["click"]["user"].tolist() == [1]
    assert raw.items["genres"].tolist() == [["Action", "Drama"], ["Drama"]]
    assert raw.users["occupation"].tolist() == ["10", "16"]


def test_the_sequence_file_takes_titles_through_the_maps_and_does_without_them(tmp_path):
    lines = "1 1\n1 2\n2 1\n"
    alone = MovieLens1MSequence().load(write(tmp_path / "alone", **{"ml-1m__txt": lines}))
    assert alone.items is None
    assert alone.users is None
    maps = {"sas_to_original_items__txt": "1 11\n2 10\n", "sas_to_original_users__txt": "1 2\n2 1\n"}
    raw = MovieLens1MSequence().load(write(tmp_path / "both", **{"ml-1m__txt": lines}, **ML_1M, **maps))
    assert dict(zip(raw.items["item"], raw.items["title"], strict=True)) == {1: "B", 2: "A film (1995)"}
    assert dict(zip(raw.users["user"], raw.users["gender"], strict=True)) == {1: "M", 2: "F"}
    assert not raw.has_times
    assert "time" not in raw.views["rating"].columns


def test_taobao_has_a_view_for_each_behaviour(tmp_path):
    lines = "user_id,item_id,behavior_type,timestamp\n1,5,fav,100\n1,6,buy,200\n2,5,cart,300\n"
    raw = Taobao().load(write(tmp_path / "taobao", events__csv=lines))
    assert {name: frame["time"].tolist() for name, frame in raw.views.items()} == {
        "fav": [100],
        "cart": [300],
        "buy": [200],
    }
    assert Taobao().load(str(tmp_path)).views["buy"].equals(raw.views["buy"])  # root may be the folder above


def test_retailrocket_reads_milliseconds_and_held_out_pairs(tmp_path):
    lines = (
        "timestamp,visitorid,event,itemid,transactionid\n1500,1,view,5,\n2500,1,addtocart,5,\n3500,2,transaction,6,77\n"
    )
    raw = RetailRocket().load(write(tmp_path, events__csv=lines))
    assert [frame["time"].tolist() for frame in raw.views.values()] == [[1], [2], [3]]
    assert raw.held_out is None
    write(tmp_path, test_buy__csv="visitorid,itemid\n1,6\n")
    raw = RetailRocket().load(str(tmp_path))
    assert raw.held_out.values.tolist() == [[1, 6, "transaction"]]
    assert len(RetailRocket().files(str(tmp_path))) == 2


def test_amazon_sequences_keep_the_order_and_the_names_of_categories(tmp_path):
    items = '{"item": 0, "title": "Soap", "categories": [["Beauty", "Bath"], ["Beauty", "Gifts"]]}\n{"item": 7}\n'
    folder = write(tmp_path, sequences__txt="1 7 0\n2 0\n", items__jsonl=items)
    raw = AmazonSequences().load(folder)
    assert raw.views["review"].values.tolist() == [[1, 7], [1, 0], [2, 0]]
    assert raw.items["categories"].tolist() == [["Bath", "Beauty", "Gifts"], []]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz", "parquet"])
def test_own_tables_of_every_kind_give_the_same_frame(tmp_path, ending):
    import pandas as pd

    frame = pd.DataFrame({"who": ["a", "b"], "what": [5, 6], "at": [1000, 2000], "stars": [1.0, 2.0]})
    path = tmp_path / f"log.{ending}"
    if ending == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    elif ending == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    columns = {"user": "who", "item": "what", "time": "at", "stars": "stars"}
    raw = TableSource({"rating": path.name}, columns=columns, time_unit="ms").load(str(tmp_path))
    assert raw.views["rating"].values.tolist() == [["a", 5, 1, 1.0], ["b", 6, 2, 2.0]]


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        (Taobao(), {"events__csv": ""}, r"events.csv must have at least one event, it is empty"),
        (Taobao(), {"events__csv": "user_id,item_id\n1,2\n"}, r"events.csv must have column.*behavior_type is missing"),
        (
            Taobao(),
            {"events__csv": "user_id,item_id,behavior_type,timestamp\n1,2,fav,3\n"},
            r"column 'behavior_type' must have rows 'cart'",
        ),
        (SequenceFile("s.txt"), {"s__txt": "1 2\n1 x\n"}, r"s.txt, line 2, column 'item': must be an integer, got 'x'"),
        (SequenceFile("s.txt"), {"s__txt": ""}, r"s.txt must have at least one event, it is empty"),
        (AmazonSequences(), {"sequences__txt": "1 2\n1 b\n"}, r"sequences.txt, line 2: must be integers"),
        (
            AmazonSequences(),
            {"sequences__txt": "1 2\n", "items__jsonl": '{"title": "x"}\n'},
            r"items.jsonl, line 1: must be a JSON object with an item number",
        ),
        (MovieLens100K(), {**ML_100K, "u__data": "1\t2\n"}, r"u.data, line 1: must have 4 columns, got 2"),
        (
            MovieLens100K(),
            {**ML_100K, "u__data": "1\t2\tgood\t3\n"},
            r"u.data, line 1, column 'rating': must be a number, got 'good'",
        ),
        (MovieLens1M(), {**ML_1M, "movies__dat": ""}, r"movies.dat must have at least one line, it is empty"),
        (TableSource({"a": "log.xml"}), {"log__xml": "<a/>"}, r"log.xml must end in .parquet"),
        (
            LogSource("log.csv", "kind", {"a": "a"}, {"user": "u", "item": "i", "time": "t"}),
            {"log__csv": "u,i,t,kind\n"},
            r"log.csv must have at least one event",
        ),
    ],
)
def test_a_faulty_file_is_named_with_the_place(tmp_path, source, files, message):
    with pytest.raises(ValueError, match=message):
        source.load(write(tmp_path, **files))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (MovieLens100K(), "MovieLens 100K"),
        (MovieLens1M(), "MovieLens 1M"),
        (MovieLens1MSequence(), "SASRec"),
        (Taobao(), "Tianchi"),
        (RetailRocket(), "Kaggle"),
        (AmazonSequences(), "McAuley"),
    ],
)
@pytest.mark.parametrize("root", [None, "nowhere"])
def test_an_absent_file_says_what_to_download_and_how_to_lay_it_out(source, name, root):
    with pytest.raises(ValueError, match=rf"root must .*(None|nowhere).*{name}.*<root>/{source.folder}/"):
        source.files(root)


def test_two_views_of_one_file_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"'view' and 'buy' both have 'log.csv'. LogSource\(file"):
        TableSource({"view": "log.csv", "cart": "cart.csv", "buy": "log.csv"})
