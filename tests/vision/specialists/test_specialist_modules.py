from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from moeapps.cli.main import main
from moeapps.errors import ArgumentError, ConfigError, RunFolderError
from moeapps.training.export import load_model, save_model
from moeapps.vision import KnowledgeConcentrationModule, datasets
from moeapps.vision.export import Classifier
from moeapps.vision.figures import CAPTIONS, figures
from moeapps.vision.longtail.datamodules import LongTailData
from moeapps.vision.sections import sections
from moeapps.vision.specialists.knowledge_concentration import vertical_precision
from moeapps.vision.specialists.modules import specialist_network

ARGUMENTS = {
    "s1": 16,
    "s2": 8,
    "backbone": "resnet8",
    "backbone_args": {"widths": [8, 12, 16]},
}


@pytest.fixture(scope="module")
def data():
    """Nine classes of the hundred: three right digits for each of three left ones."""
    splits = datasets.pair_digits(0, imbalance=1, largest=40)
    kept = [i for i, name in enumerate(splits.class_names) if name[0] in "012" and name[1] in "567"]

    def few(part):
        part = part.take(np.flatnonzero(np.isin(part.labels, kept)))
        names = tuple(splits.class_names[label] for label in kept)
        return datasets.ImageSet(part.images, np.searchsorted(kept, part.labels), names)

    parts = [few(part) for part in (splits.train, splits.val, splits.test)]
    found = LongTailData.from_splits(
        datasets.Splits(*parts, "part"), "pair-digits-lt", batch_size=32, weak="none"
    )
    found.setup()
    return found


def fit(module, data, epochs=2):
    trainer = pl.Trainer(
        max_epochs=epochs, check_val_every_n_epoch=epochs, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(module, datamodule=data)
    (measures,) = trainer.test(module, datamodule=data, verbose=False)
    return measures


def make(**options):
    return KnowledgeConcentrationModule(model_args=ARGUMENTS, prefix=1, **options)


@pytest.fixture(scope="module")
def specialists(data, tmp_path_factory):
    """One exported folder per vertical."""
    folders = []
    for vertical in range(3):
        module = make(vertical=vertical)
        measures = fit(module, data, epochs=14)
        assert set(measures) == {
            "test/average_precision", f"test/average_precision/{vertical}", "test/accuracy",
        }  # fmt: skip
        assert measures["test/average_precision"] > 0.45
        folders.append(str(tmp_path_factory.mktemp("specialist")))
        save_model(module, folders[-1])
    return folders


def test_a_generalist_learns_all_verticals(data):
    module = make()
    measures = fit(module, data, epochs=14)
    assert module.hparams["class_to_vertical"] == [int(name[0]) for name in data.splits.class_names]
    each = [measures[f"test/average_precision/{v}"] for v in range(3)]
    assert measures["test/average_precision"] == pytest.approx(np.mean(each))
    assert measures["test/average_precision"] > 0.45
    assert measures["test/accuracy"] > 0.3


def test_a_student_learns_from_exported_specialists(specialists, data):
    module = make(teachers=specialists)
    measures = fit(module, data, epochs=14)
    assert measures["test/average_precision"] > 0.45
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        targets = module._pool[0](batch["image"], batch["label"])
    verticals = torch.tensor(module.hparams["class_to_vertical"])
    assert not targets[verticals != verticals[batch["label"]].unsqueeze(1)].any()
    assert all("_pool" not in name for name in module.state_dict())

    logits, labels = _test_answers(module._pool[0], data)
    bound = vertical_precision(logits, labels, module.verticals.members)
    assert measures["test/teachers/average_precision"] == pytest.approx(np.mean(bound))
    results = module.results()
    np.testing.assert_allclose(results["vertical_precision/teachers"], bound)
    (section,) = sections(results)
    assert section.table.header == ("", "classes", "student", "teachers")
    assert [row[3] for row in section.table.rows] == [f"{value:.3f}" for value in bound]
    gain = 100 * (measures["test/average_precision"] - np.mean(bound))
    assert f"{gain:+.1f} points against" in section.text
    (dots,) = figures(results, {})["student_teachers"].axes[0].collections
    assert len(dots.get_offsets()) == 3


def _test_answers(pool, data):
    """All teachers on all test images."""
    batches = [(pool.logits(b["image"]), b["label"]) for b in data.test_dataloader()]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_a_network_without_teachers_is_compared_with_nobody(data):
    module = make(vertical=1)
    fit(module, data, epochs=1)
    (section,) = sections(module.results())
    assert section.table.rows[0][:2] == ("vertical 1", "3")
    assert section.table.header == ("", "classes", "network")
    assert "teacher" not in section.text
    epochs = {"epoch": np.arange(2.0), "val/average_precision": np.array([0.2, 0.3])}
    assert set(figures(module.results(), epochs)) == {"curves_precision"} <= set(CAPTIONS)


def test_an_exported_specialist_is_the_trained_one(specialists):
    images = torch.rand(3, 1, 8, 14)
    one, two = load_model(specialists[2]), specialist_network(specialists[2])
    assert torch.equal(one(images), two(images))
    assert one(images).shape == (3, 3)


def test_a_teacher_is_a_run_folder_or_a_checkpoint_too(tmp_path):
    config = Path(__file__).parents[3] / "examples/configs/vision"
    assert main([
        "fit", "--config", str(config / "knowledge_concentration_pair_digits.yaml"),
        "--runs", str(tmp_path), "--model.vertical", "3", "--trainer.max_epochs", "1",
    ]) == 0  # fmt: skip
    (run,) = tmp_path.glob("vision/*/*")
    images = torch.rand(3, 1, 8, 14)
    one, two = specialist_network(run), specialist_network(run / "checkpoints" / "best.ckpt")
    assert torch.equal(one(images), two(images))
    assert one(images).shape == (3, 10)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        specialist_network(tmp_path)
    with pytest.raises(FileNotFoundError):
        specialist_network(tmp_path / "none.ckpt")


def test_predictions_have_a_sigmoid_per_class(data):
    module = make(num_classes=None)
    fit(module, data, epochs=1)
    batch = next(iter(data.test_dataloader()))
    found = module.eval().predict_step(batch, 0)
    assert found["probability"].shape == (len(batch["label"]), 9)
    assert (found["label"] == found["probability"].argmax(1)).all()


def test_options_that_do_not_fit_are_refused(data):
    with pytest.raises(ConfigError, match="either class_to_vertical= or prefix="):
        KnowledgeConcentrationModule()
    with pytest.raises(ConfigError, match="Choose one"):
        make(vertical=0, teachers=["x"])
    with pytest.raises(ConfigError, match="2 entries, the data 9 classes"):
        fit(KnowledgeConcentrationModule(model_args=ARGUMENTS, class_to_vertical=[0, 1]), data)
    with pytest.raises(ConfigError, match="vertical=3: there are 3"):
        fit(make(vertical=3), data)
    with pytest.raises(ConfigError, match="prefix=3"):
        fit(KnowledgeConcentrationModule(prefix=3), data)


def test_an_exported_program_gives_sigmoids(specialists):
    network = load_model(specialists[0])
    images = torch.rand(4, 1, 8, 14)
    found = Classifier(network)(images)["probability"]
    assert torch.equal(found, network(images).sigmoid())


def test_labels_out_of_range_are_named():
    module = KnowledgeConcentrationModule(
        model_args=ARGUMENTS, class_to_vertical=[0, 0, 1], num_classes=3, in_channels=1
    )
    batch = {"image": torch.rand(2, 1, 8, 14), "label": torch.tensor([0, 3])}
    with pytest.raises(ArgumentError, match="label 3 is out of range: expected 0 to 2"):
        module.training_step(batch, 0)
