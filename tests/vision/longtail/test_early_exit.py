import math

import pytest
import torch
from torch import nn

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.vision.longtail.aggregate import (
    Dempster,
    MeanLogits,
    MeanProb,
    PriorCorrected,
    TLCSoft,
)
from moeapps.vision.longtail.early_exit import Doubt, MaxProb, Sequential
from moeapps.vision.longtail.expert_assignment import ExpertAssignment
from moeapps.vision.longtail.ldam import LDAM


def _model(num_experts=3, seed=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LDAM(
            4,
            backbone="resnet8",
            num_experts=num_experts,
            scale=6.0,
            backbone_args={"widths": [4, 6, 8]},
        )
        model.train()(torch.randn(16, 3, 16, 16))
        return model.eval(), torch.randn(40, 3, 16, 16)


def _rules(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assignment = ExpertAssignment(8, num_experts=model.num_experts, num_classes=4)
    return {"max_prob": MaxProb(0.6), "doubt": Doubt(0.44), "assignment": assignment}


def _rows(model):
    """How many rows each branch gets, by hooks."""
    seen = {}
    for k, body in enumerate(model.backbone.bodies):
        body.register_forward_pre_hook(
            lambda _, args, k=k: seen.__setitem__(k, seen.get(k, 0) + len(args[0]))
        )
    return seen


@pytest.mark.parametrize("rule", ["max_prob", "doubt", "assignment"])
@pytest.mark.parametrize("inner", [MeanLogits(), MeanProb(), Dempster(), TLCSoft()])
def test_skipping_equals_masking(rule, inner):
    model, images = _model()
    model.aggregate = Sequential(_rules(model)[rule], inner)
    with torch.no_grad():
        logits, features = model.backbone(images)
        masked = model.aggregate(logits, features)
        with gating.record(model) as record:
            skipped = model(images)
    torch.testing.assert_close(skipped, masked)
    used = (record.routings["aggregate.inner"][0].weights > 0).sum(1)
    assert 1 < used.double().mean() < 3


def _less_sure_half(logits, features):
    sure = logits.mean(1).amax(-1)
    return sure <= sure.median()


def test_each_branch_gets_only_the_rows_that_need_it():
    model, images = _model()
    model.aggregate = Sequential(_less_sure_half)
    seen = _rows(model)
    with gating.record(model) as record, torch.no_grad():
        model(images)
    assert seen == {0: 40, 1: 20, 2: 10}
    (routing,) = record.routings["aggregate.inner"]
    assert (routing.weights > 0).sum(0).tolist() == [40, 20, 10]
    assert float(routing.mean_active()) == pytest.approx(70 / 40)


def test_no_branch_runs_once_nobody_needs_it():
    model, images = _model()
    model.aggregate = Sequential(MaxProb(0.0))
    seen = _rows(model)
    output = model(images)
    assert seen == {0: 40}
    torch.testing.assert_close(output, model.branch(0, model.trunk(images))[0])


def test_all_branches_run_if_all_images_need_them():
    model, images = _model()
    full = model(images)
    model.aggregate = Sequential(MaxProb(1.1))
    torch.testing.assert_close(model(images), full)


def test_images_do_not_depend_on_each_other():
    model, images = _model()
    model.aggregate = Sequential(MaxProb(0.6))
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(alone, model(images))
        assert model(images[:0]).shape == (0, 4)


def test_one_expert():
    model, images = _model(num_experts=1)
    full = model(images)
    model.aggregate = Sequential(MaxProb(0.6))
    torch.testing.assert_close(model(images), full)


def test_aux_and_training_compute_all_experts():
    model, images = _model()
    model.aggregate = Sequential(MaxProb(0.0))
    seen = _rows(model)
    _, aux = model(images, return_aux=True)
    assert aux["logits"].isfinite().all()
    model.train()(images).sum().backward()
    assert seen == {0: 80, 1: 80, 2: 80}


def test_an_expert_that_is_not_finite_hands_its_images_on():
    model, images = _model()
    expected = model.branch(1, model.trunk(images))[0]
    nn.init.constant_(model.backbone.heads[0].weight, math.nan)
    model.aggregate = Sequential(MaxProb(0.0))
    torch.testing.assert_close(model(images), expected)
    logits, features = model.backbone(images)
    torch.testing.assert_close(model.aggregate(logits, features), expected)


def test_an_image_that_no_expert_answers_is_nan():
    model, images = _model()
    for head in model.backbone.heads:
        nn.init.constant_(head.weight, math.nan)
    model.aggregate = Sequential(MaxProb(0.5))
    assert model(images).isnan().all()


def test_a_corrected_prior_keeps_the_early_exit():
    model, images = _model()
    plain = Sequential(MaxProb(0.6))
    model.aggregate = plain
    output = model(images)
    model.aggregate = PriorCorrected(plain, [8, 4, 2, 1])
    seen = _rows(model)
    torch.testing.assert_close(model(images), output + model.aggregate.shift)
    assert seen[2] < 40


def test_an_early_exit_exports_as_the_masked_form():
    model, images = _model()
    model.aggregate = Sequential(MaxProb(0.6))
    dims = ({0: torch.export.Dim("images", min=2)},)
    program = torch.export.export(model, (images,), dynamic_shapes=dims).module()
    torch.testing.assert_close(program(images[:7]), model(images[:7]))


def test_two_early_exits_do_not_nest():
    with pytest.raises(ArgumentError, match="itself an early exit"):
        Sequential(MaxProb(), Sequential(Doubt()))


def test_doubt_is_that_of_the_joint_opinion():
    logits = torch.tensor([[[6.0, 2.0], [1.0, 1.0]]]).log()  # joint doubt 0.125 by hand
    assert Doubt(0.12)(logits).tolist() == [True]
    assert Doubt(0.13)(logits).tolist() == [False]
