import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from moeapps import gating
from moeapps.errors import ArgumentError
from moeapps.vision import KnowledgeConcentration, SCHead, SelfPacedScale, SpecialistPool
from moeapps.vision.specialists.knowledge_concentration import (
    average_precision,
    sigmoid_cross_entropy,
    vertical_precision,
)
from moeapps.vision.specialists.verticals import Verticals

GROUPS = [2, 0, 0, 1, 2, 0, 2]  # verticals of 3, 1 and 3 classes


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("connect", "shared", "expected"),
    [
        (("fc", "fc"), 0, 10 * 6 + 6 * 4 + 4 * 7),
        (("fc", "sc"), 0, 10 * 6 + 3 * 6 * 4 + 4 * 7),
        (("fc", "sc"), 1, 10 * 6 + 6 * 1 + 3 * 6 * 3 + 4 * 7),
        (("sc", "sc"), 0, 3 * 10 * 6 + 3 * 6 * 4 + 4 * 7),
    ],
)
def test_numbers_of_weights_are_those_of_the_paper(connect, shared, expected):
    head = SCHead(6, 4, GROUPS, shared, in_features=10, connect=connect, bias=False)
    assert size(head) == expected


@pytest.mark.parametrize(
    ("connect", "shared"),
    [(("fc", "fc"), 0), (("fc", "sc"), 0), (("fc", "sc"), 2), (("sc", "sc"), 0)],
)
def test_the_batched_head_is_the_loop_over_verticals(connect, shared):
    head = SCHead(6, 4, GROUPS, shared, in_features=10, connect=connect)
    nn.init.normal_(head.bias)
    x = torch.randn(5, 10)
    logits = torch.empty(5, 7)
    for vertical, members in enumerate([[1, 2, 5], [3], [0, 4, 6]]):
        first, second = (vertical if kind == "sc" else 0 for kind in connect)
        h = (x @ head.first.weight[first] + head.first.bias[first]).relu()
        own = (h @ head.second.weight[second] + head.second.bias[second]).relu()
        if shared:
            own = torch.cat([(h @ head.shared.weight[0] + head.shared.bias[0]).relu(), own], 1)
        for c in members:
            logits[:, c] = own @ head.weight[c] + head.bias[c]
    torch.testing.assert_close(head(x), logits)


def test_a_class_reads_only_the_units_of_its_vertical():
    head = SCHead(6, 4, GROUPS, in_features=10)
    logits = head(torch.randn(5, 10))
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), head.second.weight)
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()


def test_self_pacing_gives_each_vertical_its_length():
    scale = SelfPacedScale(GROUPS)
    assert scale.gamma.detach() == pytest.approx([3**0.5, 1, 3**0.5], abs=0.01)
    y = scale(torch.randn(5, 7))
    for vertical, members in enumerate([[1, 2, 5], [3], [0, 4, 6]]):
        torch.testing.assert_close(y[:, members].norm(dim=1), scale.gamma[vertical].expand(5))


@pytest.mark.parametrize(("per", "weights"), [("vertical", 3), ("class", 7), ("fixed", 0)])
def test_self_pacing_learns_so_many_numbers(per, weights):
    scale = SelfPacedScale(GROUPS, per)
    assert size(scale) == weights
    zeros = scale(torch.zeros(2, 7, requires_grad=True))
    assert zeros.isfinite().all()


def test_sigmoid_cross_entropy_by_hand():
    logits, targets = torch.tensor([[0.5, -1.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.2], [0, 0.5]])
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(sigmoid_cross_entropy(logits, targets), expected)


class Counting(nn.Module):
    """A teacher that answers with fixed numbers and counts its images."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.images = torch.tensor(answer), 0

    def forward(self, x):
        self.images += len(x)
        return self.answer.expand(len(x), -1)


def pool(top_k=2):
    answers = ([0.0, 1.0, 2.0], [3.0], [-1.0, 5.0, 4.0])
    return SpecialistPool([Counting(a) for a in answers], GROUPS, top_k=top_k)


def test_soft_targets_are_the_top_of_the_teacher_of_the_label():
    found = pool()(torch.zeros(3, 1), torch.tensor([5, 3, 0]))
    expected = torch.zeros(3, 7)
    expected[0, [2, 5]] = torch.tensor([1.0, 2.0]).sigmoid()  # classes 1, 2, 5; the least is cut
    expected[1, 3] = torch.tensor(3.0).sigmoid()
    expected[2, [4, 6]] = torch.tensor([5.0, 4.0]).sigmoid()
    torch.testing.assert_close(found, expected)


def test_a_teacher_runs_on_the_images_of_its_vertical_only():
    teachers = pool()
    with gating.record(teachers) as recording:
        teachers(torch.zeros(4, 1), torch.tensor([0, 6, 1, 4]))
    assert [teacher.images for teacher in teachers.teachers] == [1, 0, 3]
    ((routing,),) = recording.routings.values()
    assert routing.check().counts().tolist() == [1, 0, 3]


def test_all_teachers_together_keep_the_order_of_classes():
    assert pool().logits(torch.zeros(1, 1)).tolist() == [[-1, 0, 1, 3, 5, 2, 4]]


def test_teachers_are_frozen_and_stay_in_eval_mode():
    teachers = SpecialistPool([nn.Sequential(nn.Linear(2, 2), nn.Dropout())], [0, 0]).train()
    assert not any(module.training for module in teachers.modules())
    assert not any(p.requires_grad for p in teachers.parameters())


def test_average_precision_agrees_with_scikit_learn():
    scores, labels = torch.randn(80, 7), torch.arange(80) % 7
    expected = [average_precision_score(labels == c, scores[:, c]) for c in (1, 4)]
    assert average_precision(scores, labels, [1, 4]) == pytest.approx(sum(expected) / 2)


def test_precision_of_a_vertical_ranks_its_own_images():
    scores, labels = torch.randn(60, 7), torch.arange(60) % 6
    found = vertical_precision(scores, labels, [[1, 2], [6]])
    inside = (labels == 1) | (labels == 2)
    assert found[0] == pytest.approx(average_precision(scores[inside], labels[inside], [1, 2]))
    assert found[1] != found[1]  # no image: NaN


def test_a_student_learns_from_the_pool():
    images, labels = torch.randn(70, 1, 8, 8), torch.arange(70) % 7
    student = KnowledgeConcentration(
        7, GROUPS, s1=16, s2=8, backbone="resnet8", in_channels=1,
        backbone_args={"widths": [4, 6, 8]},
    )  # fmt: skip
    targets = pool(top_k=1)(images, labels)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = sigmoid_cross_entropy(student(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ([0, None, 1], "class 1 has vertical None"),
        ([0, -1], "class 1 has vertical -1"),
        ([0, 2], "vertical 1 of 3 has no class"),
        ([], "empty"),
    ],
)
def test_verticals_that_cannot_be_are_refused(groups, says):
    with pytest.raises(ArgumentError, match=says):
        Verticals(groups)


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="2 teachers for 3 verticals"):
        SpecialistPool([nn.Linear(1, 3), nn.Linear(1, 1)], GROUPS)
    wrong = SpecialistPool([nn.Linear(1, 3), nn.Linear(1, 2), nn.Linear(1, 3)], GROUPS)
    with pytest.raises(ArgumentError, match=r"vertical 1 gave \[1, 2\], expected \[1, 1\]"):
        wrong(torch.zeros(1, 1), torch.tensor([3]))
    with pytest.raises(ArgumentError, match="labels reach from 0 to 7"):
        pool()(torch.zeros(2, 1), torch.tensor([0, 7]))
    diverged = SpecialistPool([Counting([float("nan"), 0.0])], [0, 0])
    with pytest.raises(ArgumentError, match="NaN or infinite"):
        diverged(torch.zeros(1, 1), torch.tensor([0]))
    with pytest.raises(ArgumentError, match="3 entries for 4 classes"):
        KnowledgeConcentration(4, [0, 0, 1])
    with pytest.raises(ArgumentError, match="shared=4"):
        SCHead(6, 4, GROUPS, 4, in_features=10)
    with pytest.raises(ArgumentError, match=r"expected \[B, 7\]"):
        SelfPacedScale(GROUPS)(torch.zeros(2, 6))
