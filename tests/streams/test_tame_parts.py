import math

import numpy as np
import pytest
import torch
from torch import nn

from moeapps.errors import ArgumentError
from moeapps.streams.tame_experts import Batch, TorchExperts, default_module, widen
from moeapps.streams.tame_rows import RowEncoder
from moeapps.streams.tame_selector import Reservoir
from moeapps.streams.tame_switching import LossWatch, Switcher

# ------------------------------------------------------------------------------------- switching


def watch_of(losses, **options):
    watch = LossWatch(**{"window": 10, "least": 5, **options})
    for loss in losses:
        watch.record(loss)
    return watch


def test_no_alarm_before_enough_losses():
    assert not watch_of([0.1] * 4).alarms(100.0)
    assert watch_of([0.1] * 5).alarms(100.0)
    assert watch_of([]).alarms(math.nan)  # a diverged expert is left at once


def test_losses_of_the_first_descent_do_not_lift_the_threshold():
    losses = [5.0, 4.0, 3.0] + [0.1] * 6
    assert watch_of(losses).threshold > 5
    assert watch_of(losses, burn_in=3).threshold == pytest.approx(0.115)
    assert watch_of(losses, burn_in=3).smooth == pytest.approx(0.1)


def test_only_recorded_losses_count():
    watch = watch_of([0.1] * 10)
    before = watch.state()
    assert watch.after(1.0) == pytest.approx(0.2 * 1.0 + 0.8 * 0.1)
    assert watch.state() == before


class Scripted:
    """Experts whose losses are written in the batches; remembers who learned what."""

    def __init__(self):
        self.count = 0
        self.learned = []

    def __len__(self):
        return self.count

    def add(self, shape, num_classes, seed):
        self.count += 1

    def loss(self, expert, batch):
        return float(batch.x[0, expert])

    def learn(self, expert, batch, seed):
        self.learned.append((expert, int(batch.y)))


def switcher_on(pool, losses, hold=8, max_experts=None):
    """A switcher after batches 0, 1, ... with these losses of experts 0, 1 and 2."""
    switcher = Switcher(
        pool, lambda: LossWatch(window=10, least=5), hold=hold, max_experts=max_experts,
        rng=np.random.default_rng(0), learned=lambda expert, batch: None,
    )  # fmt: skip
    switcher.create((3,), 2)
    for number, row in enumerate(losses):
        switcher.observe(Batch(torch.tensor([row]), torch.tensor([number]), torch.ones(1)), 2)
    return switcher


CALM = [(0.1, 0.1, 9.0)] * 10  # the threshold is 0.115, and above 0.105 batches wait


def test_the_winner_learns_the_batches_that_waited():
    pool = Scripted()
    # s: 0.108, 0.1144, 0.11952
    switcher = switcher_on(pool, [*CALM, *[(0.14, 0.7, 9.0)] * 3])
    assert switcher.active == 1
    assert pool.learned[10:] == [(1, 10), (1, 11), (1, 12)]  # expert 0 learned none of them


def test_without_a_change_the_old_expert_learns_the_batches_that_waited():
    pool = Scripted()
    switcher = switcher_on(pool, [*CALM, (0.14, 0.7, 9.0)])
    assert len(switcher.held) == 1
    switcher = switcher_on(pool := Scripted(), [*CALM, (0.14, 0.7, 9.0), (0.05, 0.7, 9.0)])
    assert switcher.held == []
    assert pool.learned[10:] == [(0, 10), (0, 11)]


def test_a_full_queue_is_learned():
    pool = Scripted()
    losses = [*CALM, *[(0.13, 0.7, 9.0)] * 3]
    assert len(switcher_on(Scripted(), losses, hold=8).held) == 3
    assert switcher_on(pool, losses, hold=2).held == []
    assert pool.learned[10:] == [(0, 10), (0, 11), (0, 12)]


def test_the_first_expert_that_fits_takes_over():
    away = [(9.0, 0.1, 9.0)] * 10
    back = switcher_on(Scripted(), [*CALM, *away, *[(0.1, 9.0, 9.0)] * 2])
    assert (len(back.watches), back.active) == (2, 0)
    new = switcher_on(Scripted(), [*CALM, *away, *[(9.0, 9.0, 0.1)] * 2])
    assert (len(new.watches), new.active) == (3, 2)


def test_at_the_limit_the_lowest_loss_wins_and_its_window_starts_anew():
    losses = [*CALM, *[(9.0, 0.1, 9.0)] * 10, (5.0, 9.0, 9.0)]
    switcher = switcher_on(Scripted(), losses, max_experts=2)
    assert (len(switcher.watches), switcher.active) == (2, 0)
    assert list(switcher.watches[0].losses) == [5.0]
    lost = switcher_on(Scripted(), [*losses[:-1], (math.nan, math.nan, 0.1)], max_experts=2)
    assert lost.active in (0, 1)


def test_new_classes_and_features_change_no_old_answer():
    experts = TorchExperts(default_module)
    experts.add((3,), 2, seed=0)
    module = experts.modules[0]
    x = torch.randn(5, 3)
    before = module(x)
    experts.widen((5,), 4)
    after = module(torch.cat([x, torch.randn(5, 2)], 1))
    torch.testing.assert_close(after[:, :2], before)
    assert after.shape == (5, 4)


def test_the_optimiser_keeps_its_memory_when_the_module_grows():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    memory = optimizer.state[net[0].weight]["exp_avg"].clone()
    widen(net, optimizer, num_features=5, num_outputs=3)
    grown = optimizer.state[net[0].weight]["exp_avg"]
    assert torch.equal(grown[:, :3], memory)
    assert not grown[:, 3:].any()
    net(torch.ones(2, 5)).sum().backward()
    optimizer.step()


def test_a_module_that_cannot_grow_says_so():
    with pytest.raises(ArgumentError, match=r"no nn\.Linear that could grow"):
        widen(nn.Conv2d(1, 1, 1), None, num_features=None, num_outputs=3)


# ------------------------------------------------------------------------------------- the parts


def test_reservoir_is_a_uniform_sample():
    rng = np.random.default_rng(0)
    counts = np.zeros(60)
    for _ in range(1000):
        reservoir = Reservoir(10)
        for part in torch.arange(60).split(7):
            reservoir.add(part[:, None].float(), part, rng.random(len(part)))
        assert len(set(reservoir.y.tolist())) == 10
        assert torch.equal(reservoir.x[:, 0].long(), reservoir.y)
        counts[reservoir.y] += 1
    # each row is kept with chance 1/6: 167 of 1000, standard deviation 12
    assert np.abs(counts - 1000 / 6).max() < 5 * 12


def test_rows_keep_their_places_when_columns_come():
    encoder = RowEncoder()
    encoder.grow(1, [2])
    old = encoder(np.array([[1.5, 1.0], [np.nan, np.nan], [1e300, -1.0]]))
    assert old.tolist() == [[1.5, 0, 1], [0, 0, 0], [1e6, 0, 0]]
    rows = encoder.laid_out(np.array([[1.5, 1.0]]), 2, 2)
    np.testing.assert_array_equal(rows, [[1.5, np.nan, 1.0, np.nan]])
    encoder.grow(2, [3, 1])
    assert encoder(rows).tolist() == [[1.5, 0, 1, 0, 0, 0]]
    assert encoder(np.array([[1.0, 2.0, 2.0, 0.0]])).tolist() == [[1, 0, 0, 2, 1, 1]]
