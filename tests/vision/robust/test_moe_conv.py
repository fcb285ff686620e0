import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.vision.robust.moe_conv import MoEConv2d, choose, follow


def masked(x, scores, kernels, stride=1):
    """The published form: all filters, then a mask of the chosen expert's."""
    outputs = torch.stack([F.conv2d(x, w, None, stride, 1) for w in kernels], 1)
    chosen = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores)
    mask = chosen * (1 + scores - scores.detach())
    return (mask.view(*mask.shape, 1, 1, 1) * outputs).sum(1)


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_masked_form_with_all_gradients(stride):
    torch.manual_seed(0)
    conv = MoEConv2d(4, 5, num_experts=3, stride=stride).double()
    x = torch.randn(7, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, scores, conv.experts.w)
    y = conv(x, choose(scores))
    other = masked(x, scores, conv.experts.w, stride)
    torch.testing.assert_close(y, other)
    cotangent = torch.randn_like(y)
    ours = torch.autograd.grad(y, inputs, cotangent)
    theirs = torch.autograd.grad(other, inputs, cotangent)
    for mine, published in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, published)
    chosen = scores.argmax(-1, keepdim=True)
    assert ours[1].gather(1, chosen).ne(0).all()
    assert ours[1].ne(0).sum() == 7  # nobody else learns


def test_one_expert_is_an_ordinary_convolution():
    torch.manual_seed(0)
    conv, plain = MoEConv2d(3, 4, num_experts=1), nn.Conv2d(3, 4, 3, 1, 1, bias=False)
    plain.weight.data = conv.experts.w.data[0].clone()
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(conv(x, choose(torch.randn(5, 1))), plain(x))


def test_ties_go_to_the_first_expert():
    assert choose(torch.zeros(3, 4)).indices.flatten().tolist() == [0, 0, 0]


def test_ways_to_follow_a_decision():
    scores = torch.tensor([[0.0, 1.0], [2.0, 0.0]], requires_grad=True)
    routing = choose(scores)
    assert follow(routing, "hard").weights.requires_grad
    assert not follow(routing, "detached").weights.requires_grad
    torch.testing.assert_close(follow(routing, "soft").weights, scores.softmax(-1))
    assert follow(routing, 1).indices.flatten().tolist() == [1, 1]
    assert follow(routing, torch.tensor([0, 1])).indices.flatten().tolist() == [0, 1]
    with pytest.raises(UnknownNameError, match="Did you mean 'hard'"):
        follow(routing, "hart")
    with pytest.raises(ArgumentError, match="Choose 0 to 1"):
        follow(routing, 2)


def test_soft_route_is_the_weighted_sum_of_all_experts():
    torch.manual_seed(0)
    conv, scores = MoEConv2d(2, 3, num_experts=2), torch.randn(4, 2)
    x = torch.randn(4, 2, 5, 5)
    each = torch.stack([conv(x, follow(choose(scores), e)) for e in range(2)], 1)
    expected = (scores.softmax(-1).view(4, 2, 1, 1, 1) * each).sum(1)
    torch.testing.assert_close(conv(x, follow(choose(scores), "soft")), expected)


def test_a_layer_without_a_gate_wants_a_routing():
    with pytest.raises(ArgumentError, match="got no routing"):
        MoEConv2d(2, 2, num_experts=2)(torch.randn(1, 2, 4, 4))
    assert MoEConv2d(2, 2, num_experts=2, own_gate=True)(torch.randn(1, 2, 4, 4)).shape[1] == 2
