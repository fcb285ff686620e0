"""The schedules on the classes are those of the configurations."""

import inspect
from pathlib import Path

import pytest
import yaml

from moeapps.vision.longtail.balpoe import BalPoE
from moeapps.vision.longtail.mdcs import MDCS
from moeapps.vision.longtail.modules import LongTailClassifier
from moeapps.vision.longtail.sade import SADE
from moeapps.vision.longtail.tlc import TLC

CONFIGS = Path(__file__).parents[3] / "examples" / "configs" / "vision"
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(LongTailClassifier).parameters.items()
} | {"milestones": [160, 180]}


@pytest.mark.parametrize(
    ("method", "config", "kind"),
    [
        (SADE, "sade_cifar100_lt", "cifar"),
        (SADE, "sade_cifar10_lt", "cifar10"),
        (SADE, "sade_imagenet_lt", "imagenet"),
        (BalPoE, "balpoe_cifar100_lt", "cifar"),
        (MDCS, "mdcs_cifar100_lt", "cifar"),
        (MDCS, "mdcs_cifar10_lt", "cifar"),
        (MDCS, "mdcs_imagenet_lt", "imagenet"),
        (MDCS, "mdcs_inaturalist_2018", "inaturalist"),
        (MDCS, "mdcs_places_lt", "places"),
        (TLC, "tlc_cifar100_lt", "cifar"),
        (TLC, "tlc_cifar10_lt", "cifar10"),
        (TLC, "tlc_imagenet_lt", "imagenet"),
    ],
)
def test_configuration_follows_the_schedule(method, config, kind):
    read = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    given = DEFAULTS | read["model"]["init_args"]
    given["epochs"] = read["trainer"]["max_epochs"]
    given["batch_size"] = read["data"]["init_args"].get("batch_size", 128)
    schedule = method.schedules[kind]
    assert {name: given[name] for name in schedule} == schedule


@pytest.mark.parametrize("method", [SADE, BalPoE, MDCS, TLC])
def test_every_schedule_says_how_the_rate_falls(method):
    assert method.schedule == method.schedules["cifar"]
    for schedule in method.schedules.values():
        assert ("cosine" in schedule) != ("milestones" in schedule)
