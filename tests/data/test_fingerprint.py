import pandas as pd

from lightning_mvrec.data.fingerprint import fingerprint, hash_file
from lightning_mvrec.data.split import LeaveOneOut


def test_the_fingerprint_follows_settings_and_content_not_names_of_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.csv").write_text("1")
    one = fingerprint([LeaveOneOut()], [tmp_path / "a" / "events.csv"])
    assert one == fingerprint([LeaveOneOut()], [tmp_path / "b" / "events.csv"])
    assert one != fingerprint([LeaveOneOut(min_targets=2)], [tmp_path / "a" / "events.csv"])
    (tmp_path / "b" / "events.csv").write_text("2")
    assert one != fingerprint([LeaveOneOut()], [tmp_path / "b" / "events.csv"])


def test_a_frame_is_told_from_one_with_another_value_name_or_list():
    frames = [
        pd.DataFrame({"a": [1, 2]}),
        pd.DataFrame({"a": [1, 3]}),
        pd.DataFrame({"b": [1, 2]}),
        pd.DataFrame({"a": [[1], [2]]}),
        pd.DataFrame({"a": [[1], [2, 3]]}),
    ]
    assert len({fingerprint(frame, []) for frame in frames}) == 5
    assert fingerprint(frames[3], []) == fingerprint(frames[3].copy(), [])


def test_a_remembered_hash_is_used_until_the_file_changes(tmp_path):
    file, cache = tmp_path / "events.csv", tmp_path / "cache" / "hashes.json"
    file.write_text("one")
    first = hash_file(file, cache)
    assert first == hash_file(file, cache) == hash_file(file)
    cache.write_text(cache.read_text().replace(first, "remembered"))
    assert hash_file(file, cache) == "remembered"
    file.write_text("another")
    assert hash_file(file, cache) == hash_file(file) != first
    cache.write_text("{ not json")
    assert hash_file(file, cache) == hash_file(file)
