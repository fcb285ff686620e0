"""PEPNet: who scales what, and where gradients stop."""

import pytest
import torch
from sample_rankers import batch_of, build

from moeapps.errors import ArgumentError, UnknownNameError


def test_equals_the_formulas():
    model, batch = build("pepnet").double().eval(), batch_of(8, dtype=torch.float64)
    v = model.inputs(batch)
    part = model.schema.flat_slice
    domain = v[:, part("hour")]
    scaled = v * model.scale_inputs(torch.cat([domain, v], 1))
    seen = torch.cat([v[:, part("user")], v[:, part("item")], scaled], 1)
    logits = []
    for t in range(3):
        h = scaled
        for layer, scale in zip(model.layers, model.scales, strict=True):
            h = layer.to_expert_list()[t](h)
            h = h * scale(seen).chunk(3, 1)[t]
        logits.append(h @ model.towers.out.w[t].T + model.towers.out.b[t])
    torch.testing.assert_close(model(batch), torch.cat(logits, 1))


def test_gates_teach_only_the_embeddings_of_their_prior():
    model = build("pepnet")
    v = model.inputs(batch_of(8)).detach().requires_grad_()
    domain = v[:, model.schema.flat_slice("hour")]
    model.scale_inputs(torch.cat([domain, v.detach()], 1)).sum().backward()
    touched = v.grad.any(0)
    place = model.schema.flat_slice("hour")
    assert touched[place].all()
    assert int(touched.sum()) == place.stop - place.start


def test_gates_scale_between_zero_and_two():
    model = build("pepnet")
    factors = model.scale_inputs(100 * torch.randn(50, model.schema.flat_width + 6))
    assert factors.min() >= 0
    assert 1.5 < factors.max() <= 2


def test_unknown_features_and_missing_priors_are_refused():
    with pytest.raises(UnknownNameError, match="houre"):
        build("pepnet", domain=["houre"])
    with pytest.raises(ArgumentError, match="person"):
        build("pepnet", person=[])
