from hypothesis import given, settings

from lightning_mvrec.data.filters import NovelTargets
from lightning_mvrec.data.histories import build_history
from tests.data.frames import logs, sorted_events


@settings(max_examples=60, deadline=None)
@given(logs())
def test_a_novel_target_is_new_to_its_user_in_every_view(frames):
    names = list(frames)
    histories = [
        build_history(*(frame[column].to_numpy() for column in ("user", "item", "time")), {}, num_users=5)
        for frame in frames.values()
    ]
    eligible = NovelTargets().eligible(histories, [0, 1])
    for number, name in enumerate(names):
        other = names[1 - number]
        expected = []
        for user in range(5):
            own = sorted_events(frames, name, user)
            for place, (time, _, item) in enumerate(own):
                before = {i for _, _, i in own[:place]} | {
                    i for t, _, i in sorted_events(frames, other, user) if t < time
                }
                expected.append(item not in before)
        assert eligible[number].tolist() == expected
