import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from scipy import stats

from metabook import EpisodeSampler, choose_device, evaluate, fit, seed_everything
from metabook.data import Sinusoids
from metabook.learners import MAML, NearestNeighbour, ProtoNet
from metabook.nets import MLP, Conv4
from metabook.storage import StorageError
from metabook.training import Evaluation, ci95, seconds_per_step

SETTINGS = dict(steps=12, tasks=4, lr=1e-2, anneal="cosine", weight_decay=0.1, average=0.9, clip=1.0, progress=False)


@pytest.fixture
def named(monkeypatch):
    """A learner with dropout, so that the resumed run must find its place in the random stream."""
    from metabook import nets

    class Noisy(MLP):
        def __init__(self):
            super().__init__(1, (8,), 1)
            self.append(torch.nn.Dropout(0.1))

    monkeypatch.setattr(nets, "Noisy", Noisy, raising=False)
    monkeypatch.setattr(nets, "__all__", [*nets.__all__, "Noisy"])

    def make():
        seed_everything(0)
        return MAML(Noisy(), 0.01)

    return make


def weights(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


class Interrupted(Sinusoids):
    """A source that fails at a step, as a killed run would stop there."""

    def __init__(self, at, **arguments):
        super().__init__(**arguments)
        self.at = at

    def sample(self, tasks, step=0):
        if step == self.at:
            raise KeyboardInterrupt
        return super().sample(tasks, step)


@pytest.mark.parametrize("at", [1, 5, 11])
def test_an_interrupted_run_resumes_to_the_same_bits(at, named, tmp_path):
    whole = named()
    history = fit(whole, Sinusoids(), **SETTINGS)
    resumed = named()
    with pytest.raises(KeyboardInterrupt):
        fit(resumed, Interrupted(at), **SETTINGS, checkpoint=tmp_path / "c", save_seconds=0)
    resumed = named()
    resumed_history = fit(resumed, Sinusoids(), **SETTINGS, checkpoint=tmp_path / "c")
    assert torch.equal(weights(whole), weights(resumed))
    assert history.losses == resumed_history.losses
    finished = named()
    fit(finished, Interrupted(at), **SETTINGS, checkpoint=tmp_path / "c")  # nothing is left to do
    assert torch.equal(weights(whole), weights(finished))


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import sys, torch
        from metabook import fit, seed_everything, save
        from metabook.data import Sinusoids
        from metabook.learners import MAML
        from metabook.nets import MLP
        torch.set_num_threads(1)
        seed_everything(0)
        learner = MAML(MLP(), 0.01)
        settings = dict(steps=400, tasks=4, average=0.9, save_seconds=0, progress=False)
        fit(learner, Sinusoids(), **settings, checkpoint=sys.argv[1])
        save(learner, sys.argv[2])
        """)
    )

    def start(name):
        return subprocess.Popen(
            [sys.executable, script, tmp_path / f"{name}.checkpoint", tmp_path / f"{name}.safetensors"]
        )

    assert start("whole").wait() == 0
    killed = start("killed")
    checkpoint = tmp_path / "killed.checkpoint"
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == _first_seen(checkpoint):
        assert killed.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.safetensors").exists()
    assert start("killed").wait() == 0
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "killed.safetensors").read_bytes()


_SEEN: dict[str, int] = {}


def _first_seen(path):
    return _SEEN.setdefault(os.fspath(path), path.stat().st_mtime_ns)


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "c"
    same = dict(steps=2, tasks=2, progress=False, checkpoint=path, origin={"data": "sinusoids"})
    fit(MAML(MLP()), Sinusoids(), **same)
    before = path.read_bytes()
    for learner, other, named in (
        (MAML(MLP(), steps=2), dict(steps=2), "learner"),
        (MAML(MLP()), dict(steps=3), "steps"),
        (MAML(MLP()), dict(steps=2, lr=0.1), "lr"),
    ):
        with pytest.raises(StorageError, match=f"another run.*{named}"):
            fit(
                learner,
                Sinusoids(),
                **{"tasks": 2, **other},
                progress=False,
                checkpoint=path,
                origin={"data": "sinusoids"},
            )
    with pytest.raises(StorageError, match="origin"):
        fit(MAML(MLP()), Sinusoids(), steps=2, tasks=2, progress=False, checkpoint=path, origin={"data": "other"})
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_found_out_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        fit(MAML(MLP()), Interrupted(0), steps=2, checkpoint=tmp_path / "file" / "c", progress=False)


def test_training_follows_the_seed_and_leaves_the_callers_generator_alone(named):
    seed_everything(3)
    expected = torch.rand(3)
    runs = []
    for seed in (0, 0, 1):
        learner = named()
        seed_everything(3)
        fit(learner, Sinusoids(), **{**SETTINGS, "seed": seed})
        assert torch.equal(torch.rand(3), expected)
        runs.append(weights(learner))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2]), "the dropout follows the seed"


def test_averaged_weights_are_the_moving_average():
    plain, averaged, path = MAML(MLP()), MAML(MLP()), []
    averaged.load_state_dict(plain.state_dict())

    class Watched(Sinusoids):
        def sample(self, tasks, step=0):
            path.append(weights(plain))
            return super().sample(tasks, step)

    fit(plain, Watched(), steps=4, progress=False)
    path.append(weights(plain))
    fit(averaged, Sinusoids(), steps=4, average=0.5, progress=False)
    expected = path[1]
    for after in path[2:]:
        expected = 0.5 * expected + 0.5 * after
    assert torch.allclose(weights(averaged), expected, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_the_run_in_words():
    with pytest.raises(FloatingPointError, match=r"at step .*lower the learning rate"):
        fit(MAML(MLP(), inner_lr=1e30), Sinusoids(), steps=5, progress=False)


def test_the_bar_counts_the_steps_and_goes_on_where_a_run_was(capsys, tmp_path):
    fit(MAML(MLP()), Sinusoids(), steps=4, tasks=1)
    assert "4/4" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        fit(MAML(MLP()), Interrupted(3), steps=4, tasks=1, checkpoint=tmp_path / "c", save_seconds=0, progress=False)
    fit(MAML(MLP()), Sinusoids(), steps=4, tasks=1, checkpoint=tmp_path / "c")
    shown = capsys.readouterr().err
    assert "3/4" in shown
    assert "4/4" in shown
    assert "0/4" not in shown


def test_a_learner_without_parameters_is_refused():
    with pytest.raises(ValueError, match="NearestNeighbour has no parameters"):
        fit(NearestNeighbour(), Sinusoids(), steps=1)


def test_confidence_intervals_are_students():
    values = np.array([0.2, 0.5, 0.9, 0.4])
    low, high = stats.t.interval(0.95, 3, values.mean(), values.std(ddof=1) / 2)
    assert ci95(values) == pytest.approx((high - low) / 2)
    scores = np.array([[0.2, 0.4], [0.6, 1.0], [0.1, 0.1]])
    result = Evaluation(scores, "accuracy", False)
    assert result.mean == pytest.approx(0.4)
    assert result.ci95 == pytest.approx(ci95(np.array([0.3, 0.5])))
    assert result.seeds_ci95 == pytest.approx(ci95(np.array([0.3, 0.8, 0.1])))
    assert Evaluation(scores[:1], "accuracy", False).seeds_ci95 is None
    assert str(Evaluation(np.array([[0.9, 0.95, 1.0]]), "accuracy", True)) == "95.0 ± 12.4 %"


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = [abs(sample.mean() - 0.5) <= ci95(sample) for sample in generator.normal(0.5, 1, (4000, 10))]
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 4000) ** 0.5)


def test_evaluation_counts_correct_answers(make_pool):
    class Knows(NearestNeighbour):
        def predict(self, episodes):
            right = torch.nn.functional.one_hot(episodes.query_y, episodes.ways).float()
            right[:, 0] = -right[:, 0]  # wrong about the first query of each task
            return right

    result = evaluate(Knows(), EpisodeSampler(make_pool(), 3, 1, 2), tasks=7, chunk=3)
    assert result.scores.shape == (1, 7)
    assert np.allclose(result.scores, 5 / 6)
    assert result.metric == "accuracy"


def test_evaluation_of_a_regression_is_the_squared_error():
    source, learner = Sinusoids(queries=20), MAML(MLP(), inner_lr=1e-9)
    episodes = source.sample(5, 0)
    expected = (learner.net(episodes.query_x) - episodes.query_y).square().mean((1, 2))
    result = evaluate(learner, source, tasks=5, chunk=5)
    assert result.metric == "mse"
    assert np.allclose(result.scores[0], expected.detach(), rtol=1e-4)


def test_several_seeds_see_the_same_tasks(make_pool):
    source = EpisodeSampler(make_pool(classes=20), 5, 1, 3)
    learner = ProtoNet(Conv4(channels=4, norm="running"))
    result = evaluate([learner, learner], source, tasks=10, chunk=4)
    assert (result.scores[0] == result.scores[1]).all()
    assert result.seeds_ci95 == 0
    assert learner.training, "evaluation gives the learner back in the mode in which it came"


def test_devices_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device must be auto"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no cuda device"):
            choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "make", [lambda: MAML(Conv4(3, 8, "stride")), lambda: ProtoNet(Conv4(channels=8, norm="running"))]
)
def test_everything_runs_on_a_gpu(make, make_pool):
    source = EpisodeSampler(make_pool(), 3, 1, 2, device="cuda")
    learner = make().cuda()
    fit(learner, source, steps=20, progress=False)
    assert evaluate(learner, source, tasks=20).mean > 0.8


def test_a_pilot_run_times_steps_and_leaves_the_learner_alone():
    learner, source, ticks = MAML(MLP(), 0.01), Sinusoids(5, 5), iter([10.0, 14.0])
    before = [p.detach().clone() for p in learner.parameters()]
    assert seconds_per_step(learner, source, steps=8, clock=lambda: next(ticks), tasks=2) == 0.5
    assert all(torch.equal(p, q) for p, q in zip(learner.parameters(), before, strict=True))
    assert seconds_per_step(learner, source, steps=2, tasks=2) > 0
