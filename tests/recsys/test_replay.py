"""Recorded code gives what the computation gives, and knows when it must not be used."""

import copy
import io

import pytest
import torch
from torch import nn

from moeapps.errors import IdRangeError
from moeapps.recsys import Categorical, Dense, FeatureSchema, MultiHot
from moeapps.recsys.batch import take
from moeapps.recsys.replay import MAX_ROWS, Replay, record
from moeapps.registry import create_model

SCHEMA = FeatureSchema([Categorical("user", 9, 4), Categorical("item", 7, 4), Dense("age", 2)])
BAGS = FeatureSchema([Categorical("user", 9, 4), MultiHot("tags", 9, 4)])


def served(schema=SCHEMA, name="ple", **arguments):
    torch.manual_seed(0)
    options = {"expert_dims": [[8], [8]], "norm": "batch", "tower_dims": [4], **arguments}
    return create_model(name, schema=schema, tasks=["a", "b"], **options).fuse_for_inference()


def batch_of(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cat = torch.stack([torch.randint(n, (rows,), generator=generator) for n in (9, 7)], 1)
    return {"cat": cat, "dense": torch.randn(rows, 2, generator=generator)}


def recordings(model):
    return len(model.replay._codes)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_other_batches_of_a_recorded_shape_get_their_own_logits(rows):
    model = served()
    for seed in range(3):
        batch = batch_of(rows, seed)
        with torch.inference_mode():
            found = model(batch)
        torch.testing.assert_close(found, model.logits(batch), rtol=1e-6, atol=1e-6)
    assert recordings(model) == 1


def test_rows_from_the_middle_of_a_batch_are_read_where_they_are():
    model, batch = served(), batch_of(9)
    whole = model.logits(batch)
    with torch.inference_mode():
        for row in (0, 4, 8):
            part = take(batch, slice(row, row + 1))
            torch.testing.assert_close(model(part), whole[row : row + 1], rtol=1e-6, atol=1e-6)
        turned = {"cat": batch["cat"].t().contiguous().t(), "dense": batch["dense"]}
        torch.testing.assert_close(model(turned), whole, rtol=1e-6, atol=1e-6)


def test_bags_of_any_length_share_a_recording():
    model = served(BAGS)
    for lengths in ([0, 3], [2, 1], [5, 0]):
        offsets = torch.tensor([0, lengths[0]])
        bag = {"values": torch.arange(sum(lengths)) % 9, "offsets": offsets}
        batch = {"cat": torch.tensor([[1], [2]]), "bag/tags": bag}
        with torch.inference_mode():
            found = model(batch)
        torch.testing.assert_close(found, model.logits(batch), rtol=1e-6, atol=1e-6)
    assert recordings(model) == 1


def test_ids_beyond_the_vocabulary_are_refused_by_recorded_code_too():
    model, batch = served(), batch_of(1)
    with torch.inference_mode():
        model(batch)
        with pytest.raises(IdRangeError, match="'item' holds id 8"):
            model({**batch, "cat": torch.tensor([[1, 8]])})  # a row of the table, of no feature


@torch.no_grad()
def test_a_change_of_the_weights_is_seen():
    model, batch = served(), batch_of(2)

    def change_in_place():
        for parameter in (*model.parameters(), *model.buffers()):
            if parameter.is_floating_point():
                parameter.mul_(0.5)

    def load():
        state = {k: 2 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
        model.load_state_dict(state, assign=True)

    def cast():
        model.double()
        batch["dense"] = batch["dense"].double()

    def grow():
        model.resize_vocab("user", 30)
        batch["cat"] = torch.tensor([[29, 6], [9, 0]])

    for change in (lambda: None, change_in_place, load, cast, grow):
        model(batch)
        change()
        torch.testing.assert_close(model(batch), model.logits(batch), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_copies_record_anew():
    model, batch = served(), batch_of(2)
    before = model(batch)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert recordings(other) == 0
        other.inputs.store.tables["4"].zero_()
        assert not torch.equal(other(batch), before)
    assert torch.equal(model(batch), before)


def test_large_batches_and_batches_with_gradients_are_not_recorded():
    model = served()
    model(batch_of(2))
    with torch.inference_mode():
        model(batch_of(MAX_ROWS + 1))
        model(batch_of(0))
    assert recordings(model) == 0


def test_the_number_of_recordings_is_bounded(monkeypatch):
    monkeypatch.setattr("moeapps.recsys.replay.MAX_SHAPES", 2)
    model = served()
    with torch.inference_mode():
        for rows in (1, 2, 3):
            torch.testing.assert_close(model(batch_of(rows)), model.logits(batch_of(rows)))
    assert recordings(model) == 2


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.relu() if bool(x.sum() > 0) else x.sigmoid(),
        lambda x: torch.zeros_like(x).add_(x),
    ],
    ids=["looks at numbers", "changes in place"],
)
def test_what_cannot_be_recorded_is_computed_as_it_is(compute):
    assert record(compute, torch.ones(2)) is compute


def test_views_of_inputs_weights_and_results_are_followed():
    weight = nn.Parameter(torch.randn(3, 4))

    def compute(x):
        first, second = (x.t().unsqueeze(0) + weight[:, 1:3].reshape(3, 2)[:2].t()).split(1, 1)
        return torch.cat([first.expand(2, 1, 2), second.flip(2).expand(2, 1, 2)], 1).transpose(0, 2)

    x = torch.randn(6, 2)[1:6:2][:2]
    replay = Replay()
    with torch.no_grad():
        torch.testing.assert_close(record(compute, x)(x), compute(x))
        for part in (x, torch.randn(2, 2), torch.randn(5, 2)[3:]):
            torch.testing.assert_close(replay(compute, part), compute(part))
