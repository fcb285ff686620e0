"""Small models of every kind and batches for them."""

import importlib

import torch

from moeapps.recsys.schema import Categorical, Dense, FeatureSchema, MultiHot, Task

SCHEMA = FeatureSchema(
    [
        Categorical("user", 30, 6),
        Categorical("item", 20, 6),
        Dense("age"),
        MultiHot("tags", 12, 6, pooling="mean"),
        Categorical("hour", 25, 6),
        Dense("counts", width=3),
    ],
    group_key="user",
)
FIELDS = FeatureSchema(  # every feature of one width
    [
        Categorical("user", 30, 6),
        Categorical("item", 20, 6),
        MultiHot("tags", 12, 6, pooling="mean"),
        Dense("age", project=6),
        Dense("counts", width=3, project=6),
    ]
)
TASKS = [
    Task("click", group="watch"),
    Task("finish", group="watch"),
    Task("like", group="interact"),
]
TWO = [Task("click"), Task("buy")]
SMALL = {"tower_dims": [8]}

# module, class, arguments, schema, tasks
KINDS = {
    "shared_bottom": ("shared_bottom", "SharedBottom", {"bottom_dims": [12, 8]}, SCHEMA, TASKS),
    "omoe": ("mmoe", "OMoE", {"num_experts": 3, "expert_dims": [12, 8]}, SCHEMA, TASKS),
    "mmoe": ("mmoe", "MMoE", {"num_experts": 3, "expert_dims": [12, 8]}, SCHEMA, TASKS),
    "cgc": ("ple", "CGC", {"expert_dims": [12, 8], "num_specific": 2}, SCHEMA, TASKS),
    "ple": ("ple", "PLE", {"expert_dims": [[12, 8], [7], [6]]}, SCHEMA, TASKS),
    "home": (
        "home",
        "HoME",
        {"expert_dims": [[12, 8], [7]], "rank": 3, "num_meta": 2, "num_shared": 2},
        SCHEMA,
        TASKS,
    ),
    "adatt": (
        "adatt",
        "AdaTT",
        {"expert_dims": [[12, 8], [7], [6]], "num_native": 2},
        SCHEMA,
        TASKS,
    ),
    "adatt_sp": (
        "adatt",
        "AdaTT",
        {"expert_dims": [[12, 8], [7]], "num_shared": 0},
        SCHEMA,
        TASKS,
    ),
    "stem": (
        "stem",
        "STEM",
        {"expert_dims": [[12, 8]], "gate": {"hidden": [5, 4]}},
        SCHEMA,
        TASKS,
    ),
    "stem_deep": (
        "stem",
        "STEM",
        {"expert_dims": [[12, 8], [7]], "num_specific": 2, "gate": {"hidden": [5]}},
        SCHEMA,
        TASKS,
    ),
    "esmm": ("esmm", "ESMM", {"tower_dims": [12, 8]}, SCHEMA, TWO),
    "aitm": ("aitm", "AITM", {"expert_dims": [12, 8], "tower_dims": []}, SCHEMA, TASKS),
    "snr_trans": ("snr", "SNR", {"num_subnets": 3, "subnet_dims": [[12], [8]]}, SCHEMA, TASKS),
    "snr_aver": (
        "snr",
        "SNR",
        {"num_subnets": 3, "subnet_dims": [[12], [8]], "connection": "aver"},
        SCHEMA,
        TASKS,
    ),
    "pepnet": (
        "pepnet",
        "PEPNet",
        {"domain": ["hour"], "person": ["user", "item"], "expert_dims": [12, 8]},
        SCHEMA,
        TASKS,
    ),
    "apem": ("apem", "APEM", {"num_groups": 3, "num_indicators": 2, "reduction": 1}, FIELDS, TASKS),
    "smes": ("smes", "SMES", {"num_experts": 6, "expert_dims": [12, 8]}, SCHEMA, TASKS),
}


def build(name, *, seed=0, tasks=None, schema=None, **more):
    module, cls, arguments, own_schema, own_tasks = KINDS[name]
    kind = getattr(importlib.import_module(f"moeapps.recsys.models.{module}"), cls)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arguments = {**SMALL, **arguments, **more}
        return kind(schema or own_schema, tasks or own_tasks, **arguments)


def batch_of(rows, *, seed=0, dtype=torch.float32, schema=SCHEMA, num_tasks=3):
    g = torch.Generator().manual_seed(seed)

    def ids(feature, n):
        return torch.randint(feature.vocab_size, (n,), generator=g)

    batch = {"cat": torch.stack([ids(f, rows) for f in schema.categorical], 1)}
    if schema.dense:
        batch["dense"] = torch.randn(rows, schema.dense_width, generator=g).to(dtype)
    for bag in schema.bags:
        count = torch.randint(0, 4, (rows,), generator=g)
        values = ids(bag, int(count.sum()))
        batch[f"bag/{bag.name}"] = {"values": values, "offsets": count.cumsum(0) - count}
    # Each step of a path only after the one before.
    batch["labels"] = (torch.rand(rows, num_tasks, generator=g) < 0.6).to(dtype).cumprod(1)
    return batch


def batch_for(name, rows, **options):
    _, _, _, schema, tasks = KINDS[name]
    return batch_of(rows, schema=schema, num_tasks=len(tasks), **options)


def bce(logits, batch):
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])


def warmed(model, batch):
    """The model in evaluation mode, its running statistics no longer the initial ones."""
    model.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(batch)
    return model.eval()
