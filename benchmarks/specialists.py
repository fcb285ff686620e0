"""Students of specialists, customised networks, and seen against unseen classes.

    python benchmarks/specialists.py --suite concentration [--seeds 5]
    MOEAPPS_DATA=DIR python benchmarks/specialists.py --suite customization
    python benchmarks/specialists.py --suite cosmo
    python benchmarks/specialists.py --render                  # tables of what is there

Every run is one line of ``specialists.jsonl``; a run that is there is not repeated, so an
interrupted benchmark continues. Test images choose nothing.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeapps.training.optim import build_schedule
from moeapps.vision import (
    COSMO,
    DAP,
    ESZSL,
    CalibratedStacking,
    ConfidenceGate,
    ExpertCustomization,
    KnowledgeConcentration,
    LeNet5,
    SpecialistPool,
    WriterStyle,
    datasets,
    personalise,
)
from moeapps.vision.specialists.cost import count_weights
from moeapps.vision.specialists.expert_customization import accuracies
from moeapps.vision.specialists.knowledge_concentration import (
    sigmoid_cross_entropy,
    vertical_precision,
)
from moeapps.vision.zeroshot.protocol import phases
from runs import Runs
from specialists_tables import render

RESULTS = Path(__file__).parent / "results"
BACKBONE: dict[str, Any] = {"backbone": "resnet8", "backbone_args": {"widths": [8, 16, 32]},
                            "in_channels": 1}  # fmt: skip
Loss = Callable[[Tensor, Tensor], Tensor]


def fit(network: nn.Module, images: Tensor, loss: Loss, *, steps: int, seed: int) -> nn.Module:
    """Adam with a short warm-up and a cosine, 128 images a step; ``loss`` takes logits and rows."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = build_schedule(optimizer, "cosine", total_steps=steps, warmup_steps=steps // 20)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,), generator=generator)
        value = loss(network(images[chosen]), chosen)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


# ------------------------------------------------------------------------ knowledge concentration

STUDENTS: dict[str, dict[str, Any]] = {
    "generalist": {"connect": ("fc", "fc"), "self_paced": None, "teach": False},
    "generalist, SC head": {"self_paced": None, "teach": False},
    "student, FC head": {"connect": ("fc", "fc"), "self_paced": None},
    "student, SC head": {"self_paced": None},
    "student, SC head, self-paced": {},
    "student, SC head, 8 of 16 shared, self-paced": {"shared": 8},
    "student, self-paced per class": {"self_paced": "class"},
    "student, fixed scale": {"self_paced": "fixed"},
}


@lru_cache(1)
def pairs(seed: int, per_class: int) -> tuple[Any, list[int]]:
    """Pairs of digits, and the left digit of every class."""
    splits = datasets.pair_digits(seed, imbalance=1, largest=per_class)
    return splits, [int(name[0]) for name in splits.class_names]


@lru_cache(1)
def specialists(seed: int, steps: int) -> SpecialistPool:
    """One per left digit, each a whole network."""
    splits, groups = pairs(seed, 20)
    images, labels = splits.train.tensor(), torch.from_numpy(splits.train.labels)
    teachers = []
    for vertical in range(10):
        members = torch.tensor([c for c, v in enumerate(groups) if v == vertical])
        rows = torch.isin(labels, members).nonzero().squeeze(1)
        places = torch.searchsorted(members, labels[rows])
        torch.manual_seed(seed)
        network = KnowledgeConcentration(10, s1=64, s2=16, self_paced=None, **BACKBONE)
        loss = hard_loss(places, 10)
        teachers.append(fit(network, images[rows], loss, steps=steps, seed=seed))
    return SpecialistPool(teachers, groups)


def hard_loss(labels: Tensor, num_classes: int) -> Loss:
    """Sigmoid cross-entropy to labels."""
    targets = F.one_hot(labels, num_classes).float()
    return lambda logits, rows: sigmoid_cross_entropy(logits, targets[rows])


def concentration(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """One row of the table."""
    steps = 20 if quick else 400
    splits, groups = pairs(seed, 20)
    images, labels = splits.train.tensor(), torch.from_numpy(splits.train.labels)
    network: nn.Module
    if name == "specialists":
        network = specialists(seed, steps // 2)
        scores = network.logits(splits.test.tensor())
    else:
        options = dict(STUDENTS[name])
        loss = hard_loss(labels, 100)
        if options.pop("teach", True):
            soft = specialists(seed, steps // 2)(images, labels)

            def loss(logits: Tensor, rows: Tensor) -> Tensor:
                return sigmoid_cross_entropy(logits, soft[rows])

        torch.manual_seed(seed)
        network = KnowledgeConcentration(100, groups, s1=64, s2=16, **options, **BACKBONE)
        fit(network, images, loss, steps=steps, seed=seed)
        with torch.no_grad():
            scores = network(splits.test.tensor())
    truth = torch.from_numpy(splits.test.labels)
    members = [[c for c, v in enumerate(groups) if v == m] for m in range(10)]
    return {
        "weights": count_weights(network),
        "precision": vertical_precision(scores, truth, members),
        "accuracy": float((scores.argmax(1) == truth).double().mean()),
    }


# ---------------------------------------------------------------------------------- customisation


@lru_cache(1)
def generic(seed: int, quick: bool) -> tuple[LeNet5, Any, Tensor]:
    """LeNet-5 trained on 10,000 MNIST digits, the set, and a shuffled order of its images."""
    splits = datasets.load("mnist-lt", imbalance=None)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(splits.train)))
    images, labels = take(splits.train, order[:10_000])
    torch.manual_seed(seed)
    network = LeNet5(10)
    fit(network, images, lambda logits, rows: F.cross_entropy(logits, labels[rows]),
        steps=60 if quick else 400, seed=seed)  # fmt: skip
    return network, splits, order


def take(part: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels of some rows."""
    return part.tensor(rows.numpy()), torch.from_numpy(part.labels[rows.numpy()])


def customization(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """One user: 300 images in their style, 3,000 generic ones to replay."""
    user = int(name.removeprefix("user "))
    network, splits, order = generic(seed, quick)
    style = WriterStyle.draw(100 * seed + user)
    start = 20_000 + 300 * user
    images, labels = take(splits.train, order[start : start + 300])
    replay = take(splits.train, order[10_000:13_000])
    torch.manual_seed(seed)
    model = ExpertCustomization(network)
    begin = time.process_time()
    personalise(model, style(images), labels, replay, seed=seed)
    seconds = time.process_time() - begin
    rows = torch.arange(0, 10_000, 2)
    generic_images, generic_labels = take(splits.test, rows)
    user_images, user_labels = take(splits.test, rows + 1)
    model.eval()
    return {
        "user": accuracies(model, style(user_images), user_labels),
        "generic": accuracies(model, generic_images, generic_labels),
        "overhead": model.overhead(generic_images[:8]),
        "seconds": seconds,
    }


# ------------------------------------------------------------------------------------------ COSMO

EXPERTS: dict[str, Callable[[], Any]] = {"DAP": DAP, "ESZSL": ESZSL}
METHODS: dict[str, Callable[[Any], Any]] = {
    "adaptive smoothing": lambda e: COSMO(zero_shot_expert=e),
    "adaptive, balanced gate": lambda e: COSMO(
        zero_shot_expert=e, gate=ConfidenceGate(balanced=True)
    ),
    "adaptive, normalised": lambda e: COSMO(zero_shot_expert=e, normalise=True),
    "adaptive, gate without zero-shot": lambda e: COSMO(
        zero_shot_expert=e, gate=ConfidenceGate("seen_confidence")
    ),
    "adaptive, largest probability": lambda e: COSMO(
        zero_shot_expert=e, gate=ConfidenceGate("max_prob")
    ),
    "constant smoothing": lambda e: COSMO(zero_shot_expert=e, smoothing="const"),
    "no smoothing": lambda e: COSMO(zero_shot_expert=e, smoothing="none"),
    "hard gate": lambda e: COSMO(zero_shot_expert=e, smoothing="hard"),
    "calibrated stacking": lambda e: CalibratedStacking(e),
    "zero-shot expert alone": lambda e: CalibratedStacking(e, gamma=0.0),
}


@lru_cache(1)
def zero_shot(seed: int, quick: bool) -> dict[str, Any]:
    """80 seen pairs of digits, 20 of them to tune on, and 20 unseen; attributes: the digits.

    Features are those of a network that knows only what may be learned from in the first phase.
    """
    splits, left = pairs(seed, 60)
    right = [int(name[1]) for name in splits.class_names]
    order = np.random.default_rng(seed).permutation(100)
    unseen, held_out = order[:20], order[20:40]
    train = splits.train.take(np.flatnonzero(~np.isin(splits.train.labels, unseen)))
    tuning, _ = phases(train.labels, 100, [*held_out], 0.2, seed)
    rows = torch.from_numpy(tuning.train)
    images, labels = train.tensor(), torch.from_numpy(train.labels)
    torch.manual_seed(seed)
    backbone = KnowledgeConcentration(100, s1=64, s2=16, self_paced=None, **BACKBONE).backbone
    body = nn.Sequential(backbone.trunk, backbone.bodies[0])
    fit(nn.Sequential(body, nn.Linear(backbone.features, 100)), images[rows],
        lambda logits, chosen: F.cross_entropy(logits, labels[rows][chosen]),
        steps=30 if quick else 400, seed=seed)  # fmt: skip
    with torch.no_grad():
        features = {"train": body(images).numpy(), "test": body(splits.test.tensor()).numpy()}
    return {
        "attributes": np.concatenate([np.eye(10)[left], np.eye(10)[right]], 1),
        "held_out": held_out,
        "train": (features["train"], train.labels),
        "test": (features["test"], splits.test.labels),
    }


def cosmo(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """One row of the table."""
    expert, method = name.split(": ")
    data = zero_shot(seed, quick)
    model = METHODS[method](EXPERTS[expert]())
    model.fit(*data["train"], data["attributes"], held_out=data["held_out"], seed=seed)
    found: dict[str, Any] = model.report(*data["test"])
    return found


FEW = ("adaptive smoothing", "no smoothing", "hard gate", "calibrated stacking",
       "zero-shot expert alone")  # fmt: skip
PACED = ("student, self-paced per class", "student, fixed scale")
SUITES: dict[str, tuple[Callable[[str, int, bool], dict[str, Any]], list[str]]] = {
    "cosmo": (cosmo, [*(f"DAP: {name}" for name in METHODS), *(f"ESZSL: {name}" for name in FEW)]),
    "customization": (customization, [f"user {user}" for user in range(4)]),
    "concentration": (concentration, ["specialists", *(n for n in STUDENTS if n not in PACED)]),
    "pacing": (concentration, [*PACED]),
}


def wanted(suite: str, seeds: int) -> Iterator[tuple[str, str, int]]:
    """All runs, seed by seed."""
    for seed in range(seeds):
        for name in SUITES[suite][1]:
            yield suite, name, seed


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--render", action="store_true", help="only the tables")
    parser.add_argument("--quick", action="store_true", help="few steps; writes nothing")
    options = parser.parse_args()
    if options.quick:
        for suite in options.suite:
            run, names = SUITES[suite]
            print(suite, {name: run(name, 0, True) for name in names[:2]})
        return
    runs = Runs(RESULTS / "specialists.jsonl", itemgetter("suite", "name", "seed"))
    suites = [] if options.render else options.suite
    for suite, name, seed in (run for each in suites for run in wanted(each, options.seeds)):
        if (suite, name, seed) in runs.rows:
            continue
        begin = time.perf_counter()
        found = SUITES[suite][0](name, seed, False)
        row = {"suite": suite, "name": name, "seed": seed, **found}
        runs.add(row, f"{suite}: {name}, seed {seed}, {time.perf_counter() - begin:.0f} s")
    (RESULTS / "specialists.md").write_text(render(list(runs.rows.values())))


if __name__ == "__main__":
    main()
