import pytest
import torch

from metabook import data
from metabook.data.users import ASKS, DETAILS, FORMAL, KINDS, MIDDLE, PLAYFUL, TRAITS, WARM


@pytest.fixture(scope="module")
def pool():
    return data.replies("train", requests=40, choices=4)


@pytest.fixture(scope="module")
def users(pool):
    return data.Users(pool, torch.arange(len(pool.texts)).unsqueeze(1).float(), people=30, shots=6, queries=3)


def test_a_reply_has_the_traits_that_its_style_says(pool):
    phrases = {"warm": WARM, "formal": FORMAL, "detailed": DETAILS, "playful": PLAYFUL, "asks back": ASKS}
    for number, (text, style) in enumerate(zip(pool.texts, pool.styles.tolist())):
        for trait, those in phrases.items():
            assert any(phrase in text for phrase in those) == (style[TRAITS.index(trait)] > 0)
        message = pool.requests[number // pool.choices].rstrip(".?! ")
        assert (message in text) == (style[TRAITS.index("repeats")] > 0)


def test_replies_to_one_message_differ_in_style_and_are_the_same_each_time(pool):
    by_message = pool.styles.unflatten(0, (-1, pool.choices))
    assert all(len(styles.unique(dim=0)) == pool.choices for styles in by_message)
    assert data.replies("train", requests=40, choices=4).texts == pool.texts
    assert data.replies("train", requests=40, choices=4, seed=1).texts != pool.texts
    assert not set(data.replies("test", requests=40).requests) & set(pool.requests)


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"requests": 10**6}, {"choices": 0}, {"choices": 65}])
def test_impossible_numbers_of_replies_are_refused(wrong):
    with pytest.raises(ValueError):
        data.replies(**wrong)


def test_stars_follow_the_taste(pool):
    quiet = data.Users(pool, pool.styles, people=50, noise=0.0)
    felt = MIDDLE + quiet.tastes[:, :1] + quiet.tastes[:, 1:] @ pool.styles.T
    assert torch.equal(quiet.stars, felt.round().clamp(1, 5))
    centres = torch.tensor(list(KINDS.values()))
    nearest = torch.cdist(quiet.tastes[:, 1:], centres).argmin(1)
    assert (nearest == quiet.kinds).float().mean() > 0.9


def test_tasks_are_people_and_no_message_is_both_in_support_and_queries(users):
    persons, support, query = users.rows(30)
    assert sorted(persons.tolist()) == list(range(30))
    for rows, asked in zip((support // 4).tolist(), (query // 4).tolist()):
        assert len(set(rows)) == 6
        assert len(set(asked)) == 3
        assert not set(rows) & set(asked)
    episodes = users.sample(30)
    assert episodes.support_x.shape == (30, 6, 1)
    assert episodes.query_y.shape == (30, 12, 1)
    assert torch.equal(episodes.query_x[..., 0].long(), query)
    stars = users.stars[persons[7], query[7]]
    assert torch.equal(episodes.query_y[7, :, 0] + MIDDLE, stars)
    assert torch.equal(users.sample(30).support_y, episodes.support_y)
    assert not torch.equal(users.sample(30, 1).support_x, episodes.support_x)


def test_without_a_person_all_other_tasks_stay_as_they_are(users):
    persons, support, query = users.rows(20)
    gone = int(persons[3])
    others, their_support, their_query = users.without(gone).rows(20)
    assert gone not in others
    assert torch.equal(others[:19], torch.cat([persons[:3], persons[4:]]))
    for before, after in ((support, their_support), (query, their_query)):
        assert torch.equal(after[:19], torch.cat([before[:3], before[4:]]))
    assert gone in users.rows(20)[0]  # the population itself is not changed
    with pytest.raises(ValueError, match="only 29 people"):
        users.without(gone).sample(30)


def test_varied_support_has_every_number_of_messages(users):
    varied = users.varied()
    sizes = {varied.sample(2, step).support_x.shape[1] for step in range(60)}
    assert sizes == set(range(1, 7))
    assert users.sample(2).support_x.shape[1] == 6


def test_the_same_people_seen_by_their_styles(users, pool):
    seen = users.seen_as(pool.styles)
    assert torch.equal(seen.sample(5).query_y, users.sample(5).query_y)
    assert seen.sample(5).query_x.shape[-1] == len(TRAITS)


@pytest.mark.parametrize("wrong", [{"people": 0}, {"shots": 0}, {"queries": 0}, {"shots": 38, "queries": 3}])
def test_settings_that_make_no_tasks_are_refused(pool, wrong):
    with pytest.raises(ValueError):
        data.Users(pool, pool.styles, **wrong)
    with pytest.raises(ValueError, match="inputs"):
        data.Users(pool, pool.styles[:5])
