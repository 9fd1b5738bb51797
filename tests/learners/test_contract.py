"""What every learner owes to fit, evaluate and its readers."""

from dataclasses import replace

import pytest
import torch

from metabook import EpisodeSampler, evaluate, fit, load, save
from metabook.learners import (
    ANIL,
    MAML,
    FineTune,
    GaussianPrototypes,
    LearnedOptimiser,
    MatchingNet,
    MetaSGD,
    NearestNeighbour,
    NeuralProcess,
    PretrainedLinearProbe,
    PretrainedNearestMean,
    ProtoNet,
    RelationNet,
    Reptile,
)
from metabook.nets import Conv4, ConvMaps, RelationHead

LEARNERS = {
    "MAML": lambda: MAML(Conv4(3, 8, "stride"), inner_lr=0.4, steps=2),
    "FOMAML": lambda: MAML(Conv4(3, 8, "stride"), inner_lr=0.4, first_order=True),
    "MAML++": lambda: MAML(Conv4(3, 8, "stride"), inner_lr=0.4, steps=2, learn_rates=True, multi_step=30),
    "MetaSGD": lambda: MetaSGD(Conv4(3, 8, "stride"), inner_lr=0.4),
    "ANIL": lambda: ANIL(Conv4(3, 8, "stride"), inner_lr=0.4, steps=2),
    "Reptile": lambda: Reptile(Conv4(3, 8, "stride"), inner_lr=1e-2, steps=3, batch=None),
    "ProtoNet": lambda: ProtoNet(Conv4(channels=8, norm="running")),
    "ProtoNet in turn": lambda: ProtoNet(Conv4(channels=8, norm="running"), in_turn=True),
    "ProtoNet of several views": lambda: ProtoNet(Conv4(channels=8, norm="running"), views=3),
    "transductive ProtoNet": lambda: ProtoNet(Conv4(channels=8, norm="batch")),
    "FineTune": lambda: FineTune(Conv4(3, 8, "stride", norm="none"), inner_lr=0.1, steps=3),
    "PretrainedNearestMean": lambda: PretrainedNearestMean(Conv4(channels=8, norm="running"), classes=6),
    "centred PretrainedNearestMean": lambda: PretrainedNearestMean(Conv4(channels=8, norm="running"), 6, centre=True),
    "PretrainedLinearProbe": lambda: PretrainedLinearProbe(Conv4(channels=8, norm="running"), classes=6),
    "MatchingNet": lambda: MatchingNet(Conv4(channels=8, norm="running")),
    "RelationNet": lambda: RelationNet(ConvMaps(8), RelationHead(8)),
    "transductive RelationNet": lambda: RelationNet(ConvMaps(8, "batch"), RelationHead(8, norm="batch")),
    "GaussianPrototypes": lambda: GaussianPrototypes(Conv4(channels=8, norm="running"), features=8),
    "LearnedOptimiser": lambda: LearnedOptimiser(
        Conv4(3, 4, "stride", norm="none"), steps=3, hidden=4, learn_init=True
    ),
    "NeuralProcess": lambda: NeuralProcess(
        8, 3, 16, attention=True, embed=Conv4(channels=8, norm="running"), regression=False
    ),
    "NearestNeighbour": NearestNeighbour,
}
TRAINABLE = sorted(set(LEARNERS) - {"NearestNeighbour"})


@pytest.fixture
def source(make_pool):
    return EpisodeSampler(make_pool(classes=6, instances=8), ways=3, shots=2, queries=4)


@pytest.mark.parametrize("name", LEARNERS)
def test_predictions_are_logits_for_each_query(name, source):
    learner, episodes = LEARNERS[name]().eval(), source.sample(5)
    with torch.no_grad():
        assert learner.predict(episodes).shape == (5, 12, 3)


@pytest.mark.parametrize("name", LEARNERS)
def test_tasks_do_not_see_each_other(name, source):
    learner, episodes = LEARNERS[name]().eval(), source.sample(4)
    with torch.no_grad():
        together, alone = learner.predict(episodes), learner.predict(episodes[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
def test_transductive_says_whether_queries_see_each_other(name, source):
    learner, episodes = LEARNERS[name]().eval(), source.sample(3)
    with torch.no_grad():
        together = learner.predict(episodes)
        first = torch.ones(12, dtype=torch.bool)
        first[6:] = False  # half of the queries leave
        fewer = replace(episodes, query_x=episodes.query_x[:, first], query_y=episodes.query_y[:, first])
        alone = learner.predict(fewer)
    assert torch.allclose(together[:, first], alone, atol=1e-4) is not learner.transductive


@pytest.mark.parametrize("name", LEARNERS)
def test_query_labels_do_not_reach_the_prediction(name, source):
    learner, episodes = LEARNERS[name]().eval(), source.sample(3)
    blind = replace(episodes, query_y=torch.zeros_like(episodes.query_y), classes=torch.zeros_like(episodes.classes))
    with torch.no_grad():
        assert torch.equal(learner.predict(episodes), learner.predict(blind))


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_loss_is_a_mean_over_tasks_and_reaches_every_parameter(name, source):
    learner = LEARNERS[name]().eval()  # evaluation mode: the mean must not depend on shared batch statistics
    episodes = source.sample(4)
    loss = learner.loss(episodes)
    assert loss.shape == ()
    each = torch.stack([learner.loss(episodes[t : t + 1]) for t in range(4)])
    assert torch.allclose(loss, each.mean(), atol=1e-4)
    learner.train()
    learner.accumulate_gradients(episodes)
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in learner.named_parameters() if not n.endswith("bias")
    )


# Not FineTune: labels that mean another class in each task cannot be learned jointly. Black boxes do learn what labels
# mean, but not in so few steps: their own tests train them.
@pytest.mark.parametrize("name", sorted(set(TRAINABLE) - {"FineTune", "LearnedOptimiser", "NeuralProcess"}))
def test_training_lowers_the_loss(name, source):
    torch.manual_seed(0)
    history = fit(LEARNERS[name](), source, steps=40, tasks=8, lr=1e-2, progress=False)
    assert sum(history.losses[-5:]) < 0.9 * sum(history.losses[:5])


@pytest.mark.parametrize("name", LEARNERS)
def test_a_saved_learner_predicts_the_same(name, source, tmp_path):
    learner, episodes = LEARNERS[name]().eval(), source.sample(2)
    save(learner, tmp_path / "learner.safetensors")
    again = load(tmp_path / "learner.safetensors")
    assert type(again) is type(learner)
    with torch.no_grad():
        assert torch.equal(learner.predict(episodes), again.predict(episodes))


@pytest.mark.parametrize("name", ["MAML", "ProtoNet"])
def test_asking_one_by_one_is_inductive(name, source):
    learner = LEARNERS[name]()
    together, alone = evaluate(learner, source, tasks=4), evaluate(learner, source, tasks=4, one_by_one=True)
    assert together.transductive is (name == "MAML")
    assert not alone.transductive
    if name == "ProtoNet":
        assert (together.scores == alone.scores).all()
