"""APEM-style: fields as a set, patterns per task."""

import pytest
import torch
from sample_rankers import FIELDS, SCHEMA, batch_of, build
from torch.nn import functional as F

from moeapps.errors import ArgumentError
from moeapps.recsys.models.apem import Attention, SetBlock


def test_attention_equals_torchs():
    ours = Attention(8, 2)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, keys = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(query, keys), theirs(query, keys, keys)[0])


def test_group_attention_treats_fields_as_a_set():
    block, x = SetBlock(8, 2, 3), torch.randn(2, 5, 8)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_equals_the_formulas():
    model, batch = build("apem").eval(), batch_of(5, schema=FIELDS)
    x = model.inputs.fields(batch)
    first, _, second = model.excite
    x = x * torch.sigmoid(second(F.relu(first(x.mean(2))))).unsqueeze(2)
    for block in model.blocks:
        x = block.spread(x, block.gather(block.groups.repeat(5, 1, 1), x))
    logits = []
    for t in range(3):
        patterns = model.select(model.indicators[t].repeat(5, 1, 1), x).flatten(1)
        hidden = model.towers.hidden.to_expert_list()[t](patterns)
        logits.append(hidden @ model.towers.out.w[t].T + model.towers.out.b[t])
    torch.testing.assert_close(model(batch), torch.cat(logits, 1))


def test_fields_of_different_width_are_refused():
    with pytest.raises(ArgumentError, match="needs one"):
        build("apem", schema=SCHEMA)


def test_heads_must_divide_the_width():
    with pytest.raises(ArgumentError, match="heads=4"):
        build("apem", heads=4)
