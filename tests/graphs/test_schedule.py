"""The turn schedule, without torch."""

import json
import math
import subprocess
import sys

import pytest

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.graphs.schedule import EarlyStopping, TurnSchedule


def play(schedule, scores):
    """Step through scores; phases before each step and the answers."""
    phases, steps = [], []
    for score in scores:
        phases.append(schedule.phase)
        steps.append(schedule.step(score))
    return phases, steps


def run_to_end(schedule, score):
    phases = []
    while schedule.phase != "done":
        phases.append(schedule.phase)
        schedule.step(score(schedule))
    return phases


@pytest.mark.parametrize(
    ("pretrain", "first"),
    [
        ("none", ["weak:1"]),
        ("weak", ["pretrain_weak", "weak:1"]),
        ("strong", ["pretrain_strong", "weak:1"]),
        ("both", ["pretrain_weak", "pretrain_strong", "weak:1"]),
    ],
)
def test_pretraining_comes_first(pretrain, first):
    schedule = TurnSchedule(pretrain=pretrain, epochs=1, rounds=1)
    assert run_to_end(schedule, lambda s: 0.5) == [*first, "strong:1"]


def test_single_phase_follows_pretraining():
    schedule = TurnSchedule(single="joint", pretrain="both", epochs=1)
    assert run_to_end(schedule, lambda s: 0.5) == ["pretrain_weak", "pretrain_strong", "joint"]
    schedule = TurnSchedule(single="gate", pretrain="none", epochs=1)
    assert run_to_end(schedule, lambda s: 0.5) == ["gate"]


def test_turn_ends_when_patience_runs_out():
    schedule = TurnSchedule(pretrain="none", epochs=100, patience=2)
    _, steps = play(schedule, [0.1, 0.3, 0.2, 0.3])
    assert [s.improved for s in steps] == [True, True, False, False]
    assert [s.ended for s in steps] == [False, False, False, True]
    assert steps[-1].accepted
    assert schedule.phase == "strong:1"


def test_turn_ends_after_its_longest_time():
    schedule = TurnSchedule(pretrain="none", epochs=3, patience=50)
    _, steps = play(schedule, [0.1, 0.2, 0.3])
    assert steps[-1] == (True, True, True)


def test_turn_that_does_not_beat_the_best_is_rolled_back():
    schedule = TurnSchedule(pretrain="none", epochs=2, patience=9)
    _, steps = play(schedule, [0.5, 0.6, 0.4, 0.6])
    assert steps[1].accepted
    assert steps[3].ended
    assert not steps[3].accepted
    assert schedule.best == 0.6
    assert [turn.accepted for turn in schedule.history] == [True, False, False]


def test_pretraining_scores_do_not_compete_with_the_mixture():
    schedule = TurnSchedule(pretrain="strong", epochs=1)
    schedule.step(0.99)
    assert schedule.step(0.2).accepted


def test_stops_after_barren_rounds():
    schedule = TurnSchedule(pretrain="none", epochs=1, rounds=50, round_patience=2)
    scores = iter([0.5, 0.4, 0.45, 0.6, 0.1, 0.1, 0.1, 0.1])
    phases = run_to_end(schedule, lambda s: next(scores))
    assert phases[-1] == "strong:4"  # rounds 3 and 4 brought nothing
    assert next(scores, None) is None


def test_one_good_turn_saves_a_round():
    schedule = TurnSchedule(pretrain="none", epochs=1, rounds=3, round_patience=1)
    scores = iter([0.5, 0.4, 0.1, 0.6, 0.1, 0.7])
    assert run_to_end(schedule, lambda s: next(scores))[-1] == "strong:3"


def test_stops_after_the_last_round():
    schedule = TurnSchedule(pretrain="none", epochs=1, rounds=2, round_patience=9)
    assert run_to_end(schedule, lambda s: 0.1 + s.total_epochs)[-1] == "strong:2"


def test_nan_never_improves():
    schedule = TurnSchedule(pretrain="none", epochs=9, patience=2)
    _, steps = play(schedule, [math.nan, math.nan])
    assert not any(s.improved for s in steps)
    assert steps[-1].ended
    assert not steps[-1].accepted


def test_finish_keeps_a_leading_turn_only():
    leading = TurnSchedule(pretrain="none", epochs=9, patience=9)
    leading.step(0.5)
    assert leading.finish()
    assert leading.phase == "done"
    behind = TurnSchedule(pretrain="none", epochs=1)
    behind.step(0.5)
    behind.turn.max_epochs = 9
    behind.step(0.4)
    assert not behind.finish()
    untouched = TurnSchedule(pretrain="none")
    assert not untouched.finish()


def test_history_adds_up():
    schedule = TurnSchedule(pretrain="both", epochs=3, rounds=2)
    phases = run_to_end(schedule, lambda s: -s.total_epochs)
    assert sum(turn.epochs for turn in schedule.history) == schedule.total_epochs == len(phases)
    assert [turn.start for turn in schedule.history] == [
        phases.index(turn.phase) for turn in schedule.history
    ]


@pytest.mark.parametrize("single", [None, "joint"])
def test_resumes_at_any_epoch_as_if_never_stopped(single):
    def make():
        return TurnSchedule(single=single, pretrain="both", epochs=5, patience=2, rounds=3)

    def score(number):
        return math.sin(number * 1.7) + number / 20

    whole = make()
    numbers = iter(range(1000))
    phases = run_to_end(whole, lambda s: score(next(numbers)))
    for cut in range(len(phases)):
        first = make()
        for number in range(cut):
            first.step(score(number))
        second = make()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        numbers = iter(range(cut, 1000))
        assert run_to_end(second, lambda s, n=numbers: score(next(n))) == phases[cut:]
        assert second.state_dict() == whole.state_dict()


def test_stepping_a_finished_schedule_is_an_error():
    schedule = TurnSchedule(pretrain="none")
    schedule.finish()
    with pytest.raises(ArgumentError, match="done"):
        schedule.step(0.5)


def test_bad_arguments_are_named():
    with pytest.raises(UnknownNameError, match="strong"):
        TurnSchedule(pretrain="stronk")
    for name in ("epochs", "patience", "rounds", "round_patience"):
        with pytest.raises(ArgumentError, match="too small"):
            TurnSchedule(**{name: 0})
    with pytest.raises(ArgumentError, match="patience=0"):
        EarlyStopping(1, 0)


def test_needs_neither_torch_nor_lightning():
    code = (
        "import sys, moeapps.graphs.schedule;"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
