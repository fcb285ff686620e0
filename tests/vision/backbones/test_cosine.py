import pytest
import torch

from moeapps.vision.backbones.cosine import CosineClassifier


def test_logits_are_scaled_cosines_by_hand():
    classifier = CosineClassifier(2, 3, scale=30.0)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 5.0, 2.0]]))
    logits = classifier(torch.tensor([[3.0, 4.0]]))
    assert logits[0].tolist() == pytest.approx([18.0, 24.0, 30 * 7 / 50**0.5], rel=1e-6)


def test_columns_start_as_directions_and_there_is_no_bias():
    classifier = CosineClassifier(16, 5)
    torch.testing.assert_close(classifier.weight.norm(dim=0), torch.ones(5))
    assert [name for name, _ in classifier.named_parameters()] == ["weight"]


def test_length_of_features_does_not_matter():
    classifier, features = CosineClassifier(8, 4), torch.randn(3, 8)
    torch.testing.assert_close(classifier(1e3 * features), classifier(features))


def test_stays_exact_under_autocast():
    classifier, features = CosineClassifier(64, 10), torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, classifier(features))


def test_zero_features_give_zero_logits_and_finite_gradients():
    classifier = CosineClassifier(4, 3)
    features = torch.zeros(2, 4, requires_grad=True)
    classifier(features).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
