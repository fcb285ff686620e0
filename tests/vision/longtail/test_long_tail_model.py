import copy
import io

import pytest
import torch

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.registry import MODELS, create_model
from moeapps.vision.longtail.aggregate import WeightedLogits
from moeapps.vision.longtail.base import LongTailModel
from moeapps.vision.longtail.cross_entropy import CrossEntropy
from moeapps.vision.longtail.logit_adjustment import LogitAdjustment
from moeapps.vision.longtail.ride import RIDE

SMALL = {"backbone": "resnet8", "backbone_args": {"widths": [4, 6, 8]}}
OWN = ["cross_entropy", "logit_adjustment", "balanced_softmax", "ldam", "ride"]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("num_experts", [1, 3])
def test_every_method_trains_a_step(name, num_experts):
    options = {"lam": 1.0} if name == "logit_adjustment" else {}
    model = create_model(
        name,
        num_classes=4,
        class_counts=[40, 20, 8, 2],
        num_experts=num_experts,
        **options,
        **SMALL,
    )
    target = torch.tensor([0, 3])
    for epoch in (1, 200):
        output, aux = model(torch.randn(2, 3, 16, 16), return_aux=True)
        assert output.shape == (2, 4)
        assert aux["logits"].shape == (2, num_experts, 4)
        loss = model.loss(aux, target, epoch)
        assert loss.shape == ()
        loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", OWN)
def test_one_image_trains_and_predicts(name):
    model = create_model(name, **MODELS[name].example)
    _, aux = model(torch.randn(1, 3, 16, 16), return_aux=True)
    model.loss(aux, torch.tensor([3]), 1).backward()
    assert model.eval()(torch.randn(1, 3, 16, 16)).isfinite().all()


def test_uniform_weights_are_reported():
    model = RIDE(4, **SMALL)
    with gating.record(model) as record:
        model(torch.randn(5, 3, 16, 16))
    torch.testing.assert_close(record.routings["aggregate"][0].weights, torch.full((5, 3), 1 / 3))


def test_an_expert_of_nan_leaves_the_others():
    model, images = RIDE(4, **SMALL).eval(), torch.randn(5, 3, 16, 16)
    logits, _ = model.backbone(images)
    torch.nn.init.constant_(model.backbone.heads[1].weight, float("nan"))
    with gating.record(model) as record:
        output = model(images)
    torch.testing.assert_close(output, logits[:, [0, 2]].mean(1))
    assert record.routings["aggregate"][0].check().weights[0].tolist() == [0.5, 0.0, 0.5]


def test_aggregators_can_be_exchanged():
    model, images = RIDE(4, **SMALL).eval(), torch.randn(5, 3, 16, 16)
    model.aggregate = WeightedLogits([1, 0.0001, 0.0001])
    logits, _ = model.backbone(images)
    torch.testing.assert_close(model(images), logits[:, 0], atol=0.02, rtol=0)


def test_counts_are_a_buffer_only_if_given():
    assert "class_counts" in RIDE(3, [3, 2, 1], **SMALL).state_dict()
    without = RIDE(3, **SMALL)
    assert "class_counts" not in without.state_dict()
    _, aux = without(torch.randn(2, 3, 16, 16), return_aux=True)
    with pytest.raises(ArgumentError, match=r"RIDE has no class_counts.*bincount|class_counts="):
        without.loss(aux, torch.tensor([0, 1]), 1)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([5, 0, 2], "class 1 has no training image"),
        ([5, 0, 0], "classes 1, 2 have no training image"),
        ([5, 4], r"shape \[2\], expected \[3\]"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, says):
    with pytest.raises(ArgumentError, match=says):
        RIDE(3, counts, **SMALL)


def test_classes_with_one_image_are_fine():
    model = RIDE(3, [5, 1, 1], **SMALL)
    _, aux = model(torch.randn(2, 3, 16, 16), return_aux=True)
    assert model.loss(aux, torch.tensor([1, 2]), 200).isfinite()


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_named(label):
    model = CrossEntropy(3, **SMALL)
    _, aux = model(torch.randn(2, 3, 16, 16), return_aux=True)
    with pytest.raises(ArgumentError, match=f"label {label} is out of range"):
        model.loss(aux, torch.tensor([0, label]), 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_experts": 0}, "at least one"),
        ({"classifier": "euclid"}, "cosine or linear"),
    ],
)
def test_impossible_models_are_refused(arguments, says):
    with pytest.raises(ArgumentError, match=says):
        LongTailModel(3, **arguments, **SMALL)


def test_one_lambda_per_expert():
    with pytest.raises(ArgumentError, match="2 values for 3 experts"):
        LogitAdjustment(3, [3, 2, 1], lam=[0, 1], num_experts=3, **SMALL)


def test_post_hoc_adjustment_needs_counts():
    with pytest.raises(ArgumentError, match="class_counts"):
        CrossEntropy(3, tau=1.0, **SMALL)


def test_a_base_model_has_no_loss():
    model = LongTailModel(3, [3, 2, 1], **SMALL)
    _, aux = model(torch.randn(2, 3, 16, 16), return_aux=True)
    with pytest.raises(TypeError, match="a method must"):
        model.loss(aux, torch.tensor([0, 1]), 1)


def test_a_teacher_speaks_in_training_and_is_not_saved():
    teacher, student = RIDE(4, [9, 4, 2, 1], num_experts=6, **SMALL), RIDE(4, [9, 4, 2, 1], **SMALL)
    keys = set(student.state_dict())
    student.distill_from(teacher)
    images, target = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0, 1])
    _, aux = student(images, return_aux=True)
    torch.testing.assert_close(aux["teacher"], teacher(images))
    parts = student.loss_parts(aux, target, 1)
    assert set(parts) == {"ldam", "diversity", "distillation"}
    student.loss(aux, target, 1).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert set(student.state_dict()) == keys
    assert "teacher" not in student.eval()(images, return_aux=True)[1]
    torch.save(student.state_dict(), io.BytesIO())
    assert copy.deepcopy(student)(images).shape == (6, 4)


def test_unknown_direction_of_distillation():
    with pytest.raises(ArgumentError, match="student"):
        RIDE(4, distill_mean="both", **SMALL)


def test_weights_bring_their_counts():
    trained = RIDE(4, [40, 20, 8, 2], **SMALL)
    model = RIDE(4, **SMALL)
    model.load_state_dict(trained.state_dict())
    assert model.counts.tolist() == [40, 20, 8, 2]
    model.counts[0] = 1
    assert trained.counts[0] == 40
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(images), trained.eval()(images))
