"""The table of everything moeapps can build by name. One line per model; imports nothing heavy."""

import fnmatch
import importlib
from dataclasses import dataclass, field
from typing import Any

from moeapps.errors import UnknownNameError
from moeapps.lazy import needs_extra


@dataclass(frozen=True)
class ModelEntry:
    """One registered model.

    Args:
        domain: Subpackage and name of the extra that installs what it needs.
        target: ``"module:callable"`` that builds it from plain keyword arguments.
        task: What it predicts, in the field's words.
        summary: One line for ``moeapps list``.
        paper: Reference of the method.
        example: Small arguments with which the generic checks build it.
        tags: Free words for searching.
        cannot: Generic checks (:data:`moeapps.testing.MODEL_CHECKS`) it cannot pass, with reasons.
    """

    domain: str
    target: str
    task: str
    summary: str
    paper: str
    example: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    cannot: dict[str, str] = field(default_factory=dict)


_NODE = "node classification"
_STREAM = "online classification"
_SMALL = {"in_channels": 8, "hidden_channels": 16, "num_layers": 2, "out_channels": 3}
_EXPERTS = "moeapps.graphs.models.experts"
_RANKING = "multi-task ranking"
_LOG = {
    "schema": {
        "features": [
            {"kind": "categorical", "name": "user", "vocab_size": 30, "dim": 6},
            {"kind": "categorical", "name": "item", "vocab_size": 20, "dim": 6},
            {"kind": "dense", "name": "age", "width": 2, "project": 6},
        ]
    },
    "tasks": [{"name": "click", "group": "watch"}, {"name": "like", "group": "interact"}],
    "tower_dims": [8],
}


def _ranker(
    module: str, name: str, summary: str, paper: str, *tags: str, **more: Any
) -> ModelEntry:
    target = f"moeapps.recsys.models.{module}:{name}"
    return ModelEntry("recsys", target, _RANKING, summary, paper, {**_LOG, **more}, tags)


_IMAGES = {
    "num_classes": 4,
    "class_counts": [40, 20, 8, 2],
    "backbone": "resnet8",
    "backbone_args": {"widths": [4, 6, 8]},
}


def _long_tailed(
    module: str, name: str, summary: str, paper: str, *tags: str, **more: Any
) -> ModelEntry:
    target = f"moeapps.vision.longtail.{module}:{name}"
    tags = ("long tail", *tags)
    return ModelEntry(
        "vision", target, "image classification", summary, paper, {**_IMAGES, **more}, tags
    )


_PHOTOS = {
    "embed_dim": 16,
    "depth": 1,
    "patch_size": 4,
    "num_heads": 2,
    "head_dim": 8,
    "dropout": 0.0,
    "head_channels": 4,
    "tail_channels": [8, 8],
}


def _restorer(
    module: str, name: str, summary: str, paper: str, *tags: str, **more: Any
) -> ModelEntry:
    target = f"moeapps.vision.restoration.{module}:{name}"
    return ModelEntry(
        "vision", target, "image restoration", summary, paper, {**_PHOTOS, **more}, tags
    )


_CROWDS = {
    "backbone": "plain",
    "backbone_args": {"widths": [6, 8, 8], "first_stride": 1, "depth": 1},
    "strides": [1, 2, 4],
    "decoder_width": 6,
    "expert_width": 8,
}


def _counter(name: str, summary: str, paper: str, *tags: str, **more: Any) -> ModelEntry:
    target = f"moeapps.vision.counting.hmode:{name}"
    return ModelEntry("vision", target, "crowd counting", summary, paper, {**_CROWDS, **more}, tags)


MODELS: dict[str, ModelEntry] = {
    "mlp": ModelEntry(
        "graphs", f"{_EXPERTS}:mlp", _NODE, "MLP on a node's own features", "-", _SMALL, ("weak",)
    ),
    "gcn": ModelEntry(
        "graphs",
        f"{_EXPERTS}:gcn",
        _NODE,
        "Graph convolutional network",
        "Kipf & Welling, ICLR 2017",
        _SMALL,
        ("strong",),
    ),
    "graphsage": ModelEntry(
        "graphs",
        f"{_EXPERTS}:graphsage",
        _NODE,
        "GraphSAGE with mean aggregation",
        "Hamilton et al., NeurIPS 2017",
        _SMALL,
        ("strong",),
    ),
    "gat": ModelEntry(
        "graphs",
        f"{_EXPERTS}:gat",
        _NODE,
        "Graph attention network",
        "Velickovic et al., ICLR 2018",
        {**_SMALL, "heads": 2},
        ("strong",),
    ),
    "gin": ModelEntry(
        "graphs",
        f"{_EXPERTS}:gin",
        _NODE,
        "Graph isomorphism network",
        "Xu et al., ICLR 2019",
        _SMALL,
        ("strong",),
    ),
    "gin_skip": ModelEntry(
        "graphs",
        "moeapps.graphs.models.gin_skip:GINSkip",
        _NODE,
        "GIN with a linear skip per layer",
        "Zeng et al., ICLR 2024 (as a Mowst expert)",
        _SMALL,
        ("strong",),
    ),
    "h2gcn": ModelEntry(
        "graphs",
        "moeapps.graphs.models.h2gcn:H2GCN",
        _NODE,
        "Ego, one-hop and two-hop features kept apart",
        "Zhu et al., NeurIPS 2020",
        _SMALL,
        ("strong",),
    ),
    "mowst": ModelEntry(
        "graphs",
        "moeapps.graphs.models.mowst:mowst",
        _NODE,
        "Weak MLP and strong GNN mixed by the weak expert's confidence",
        "Zeng et al., Mixture of Weak and Strong Experts on Graphs, ICLR 2024",
        {**_SMALL, "strong": "gcn"},
        ("mixture",),
    ),
    "shared_bottom": _ranker(
        "shared_bottom",
        "SharedBottom",
        "One network below, a tower per task",
        "Caruana, Machine Learning 1997",
        bottom_dims=[12, 8],
    ),
    "omoe": _ranker(
        "mmoe",
        "OMoE",
        "Experts under one gate for all tasks",
        "Ma et al., KDD 2018",
        "mixture",
        num_experts=3,
        expert_dims=[12, 8],
    ),
    "mmoe": _ranker(
        "mmoe",
        "MMoE",
        "Experts under a gate per task",
        "Ma et al., KDD 2018",
        "mixture",
        num_experts=3,
        expert_dims=[12, 8],
    ),
    "cgc": _ranker(
        "ple",
        "CGC",
        "Experts of each task and shared ones, one level",
        "Tang et al., RecSys 2020",
        "mixture",
        expert_dims=[12, 8],
    ),
    "ple": _ranker(
        "ple",
        "PLE",
        "Experts of each task and shared ones, in levels",
        "Tang et al., RecSys 2020",
        "mixture",
        expert_dims=[[12, 8], [7]],
    ),
    "home": _ranker(
        "home",
        "HoME",
        "Experts by task group, feature gates, self gates",
        "Wang et al., HoME, arXiv 2408.05430",
        "mixture",
        expert_dims=[[12, 8], [7]],
        rank=3,
    ),
    "adatt": _ranker(
        "adatt",
        "AdaTT",
        "Experts of every task for all, with a residual to one's own",
        "Li et al., KDD 2023",
        "mixture",
        expert_dims=[[12, 8], [7]],
    ),
    "stem": _ranker(
        "stem",
        "STEM",
        "Embeddings of each task and shared ones",
        "Su et al., AAAI 2024",
        "mixture",
        expert_dims=[[12, 8]],
        gate={"hidden": [5]},
    ),
    "esmm": _ranker(
        "esmm",
        "ESMM",
        "Conversion learned over all impressions through click",
        "Ma et al., SIGIR 2018",
    ),
    "aitm": _ranker(
        "aitm",
        "AITM",
        "Steps of a conversion path hand on what they know",
        "Xi et al., KDD 2021",
        expert_dims=[12, 8],
    ),
    "snr": _ranker(
        "snr",
        "SNR",
        "Sub-networks whose connections are learned on or off",
        "Ma et al., AAAI 2019",
        num_subnets=3,
        subnet_dims=[[12], [8]],
    ),
    "pepnet": _ranker(
        "pepnet",
        "PEPNet",
        "Embeddings and towers scaled per domain and person",
        "Chang et al., KDD 2023",
        domain=["item"],
        person=["user"],
        expert_dims=[12, 8],
    ),
    "apem": _ranker(
        "apem",
        "APEM",
        "Attention over fields and task indicators (APEM-style)",
        "arXiv 2301.02494",
        num_groups=3,
        num_indicators=2,
        reduction=1,
    ),
    "smes": _ranker(
        "smes",
        "SMES",
        "Sparse experts: some shared by the tasks, some per task (SMES-style)",
        "arXiv 2602.09386",
        "mixture",
        num_experts=6,
        expert_dims=[12, 8],
    ),
    "cross_entropy": _long_tailed(
        "cross_entropy",
        "CrossEntropy",
        "Cross-entropy; logits adjusted after training on request",
        "Menon et al., ICLR 2021",
        tau=1.0,
    ),
    "logit_adjustment": _long_tailed(
        "logit_adjustment",
        "LogitAdjustment",
        "Cross-entropy on logits moved by the log prior",
        "Menon et al., ICLR 2021",
        "mixture",
        num_experts=2,
        lam=[0.0, 2.0],
    ),
    "balanced_softmax": _long_tailed(
        "logit_adjustment",
        "BalancedSoftmax",
        "Logit adjustment for a uniform test prior",
        "Ren et al., NeurIPS 2020",
    ),
    "ldam": _long_tailed(
        "ldam",
        "LDAM",
        "Margins by class size, class weights late in training",
        "Cao et al., NeurIPS 2019",
    ),
    "ride": _long_tailed(
        "ride",
        "RIDE",
        "LDAM experts pushed apart; easy images leave early",
        "Wang et al., RIDE, ICLR 2021",
        "mixture",
    ),
    "sade": _long_tailed(
        "sade",
        "SADE",
        "Experts for a long-tailed, a uniform and an inverse test set; weighed at test time",
        "Zhang et al., NeurIPS 2022",
        "mixture",
    ),
    "balpoe": _long_tailed(
        "balpoe",
        "BalPoE",
        "Experts with growing logit adjustment whose mean is balanced",
        "Sanchez Aimar et al., CVPR 2023",
        "mixture",
    ),
    "mdcs": _long_tailed(
        "mdcs",
        "MDCS",
        "Diverse experts that distil a weak view into a strong one",
        "Zhao et al., ICCV 2023",
        "mixture",
    ),
    "tlc": _long_tailed(
        "tlc",
        "TLC",
        "Evidential experts, each engaged for what those before it leave in doubt",
        "Li et al., CVPR 2022",
        "mixture",
        num_experts=2,
    ),
    "backdoor": ModelEntry(
        "vision",
        "moeapps.vision.longtail.backdoor:BackdoorAdjustment",
        "image classification",
        "Mean over fine-tuned models of timm that were pretrained in different ways",
        "arXiv 2501.15955, ICML 2025",
        {
            "num_classes": 4,
            "class_counts": [40, 20, 8, 2],
            "models": ["test_efficientnet", {"name": "test_vit", "img_size": 16}],
        },
        ("long tail", "mixture"),
    ),
    "advmoe": ModelEntry(
        "vision",
        "moeapps.vision.robust.advmoe:AdvMoE",
        "image classification",
        "Convolutions with experts: each image takes one pathway, trained against attacks",
        "Zhang et al., ICCV 2023",
        {
            "num_classes": 3,
            "backbone": "small_cnn",
            "in_channels": 3,
            "router_depth": 8,
            "router_widths": [4, 8, 8],
        },
        ("mixture", "robust"),
    ),
    "dense_cnn": ModelEntry(
        "vision",
        "moeapps.vision.robust.dense_cnn:DenseCNN",
        "image classification",
        "The dense network beside AdvMoE, at full width or at the cost of a pathway",
        "He et al., CVPR 2016",
        {"num_classes": 3, "backbone": "small_cnn", "ratio": 0.5, "in_channels": 3},
        ("robust",),
    ),
    "knowledge_concentration": ModelEntry(
        "vision",
        "moeapps.vision.specialists.knowledge_concentration:KnowledgeConcentration",
        "image classification",
        "Student of many specialists, its head split by group of classes",
        "Gao et al., arXiv 1711.07607",
        {
            "num_classes": 5,
            "class_to_vertical": [0, 1, 0, 1, 0],
            "s1": 16,
            "s2": 8,
            "shared": 2,
            "backbone": "resnet8",
            "backbone_args": {"widths": [4, 6, 8]},
        },
        ("distillation",),
    ),
    "mofme": _restorer(
        "mofme",
        "MoFME",
        "Weather removal by one network behind a mixture of feature modulations",
        "Zhang et al., AAAI 2024",
        "mixture",
        num_experts=3,
    ),
    "moe_vit": _restorer(
        "moe_vit",
        "MoEViT",
        "Weather removal by a transformer with parallel feed-forward experts",
        "Zhang et al., AAAI 2024 (its baseline)",
        "mixture",
        num_experts=3,
    ),
    "restoration_vit": _restorer(
        "restoration_vit",
        "RestorationViT",
        "Weather removal by a plain transformer",
        "Zhang et al., AAAI 2024 (its baseline)",
    ),
    "hoeffding_tree": ModelEntry(
        "streams",
        "moeapps.streams.hoeffding_tree:HoeffdingTree",
        _STREAM,
        "Very fast decision tree with naive Bayes leaves, compiled",
        "Domingos & Hulten, KDD 2000",
        {"grace_period": 50, "delta": 0.01},
        ("tree",),
    ),
    "driftmoe": ModelEntry(
        "streams",
        "moeapps.streams.driftmoe:DriftMoE",
        _STREAM,
        "Hoeffding trees behind a router that learns which will be right",
        "Aspis et al., DriftMoE, SYNDAiTE at ECML-PKDD 2025",
        {"hidden": 16, "batch_size": 32, "num_experts": 4, "top_k": 2, "seed": 1},
        ("mixture",),
    ),
    "routed_bagging": ModelEntry(
        "streams",
        "moeapps.streams.routed_bagging:RoutedBagging",
        _STREAM,
        "Bagged trees that watch themselves for drift; vote by recent accuracy",
        "-",
        {"num_experts": 4, "seed": 1},
        ("mixture",),
    ),
    "tame": ModelEntry(
        "streams",
        "moeapps.streams.tame:TAME",
        _STREAM,
        "An expert per task, switched when the loss jumps",
        "Zhu et al., TAME, CVPR workshop on continual learning 2024",
        {"seed": 1},
        ("mixture",),
    ),
    "hmode": _counter(
        "HMoDE",
        "Density experts of several scales, mixed in overlapping groups, and the groups mixed",
        "Du et al., IEEE TIP 2023",
        "mixture",
        gate_widths=[8],
        second_widths=[8],
        attention_widths=[8],
    ),
    "flat_density_mixture": _counter(
        "FlatDensityCounter",
        "The same density experts under one softmax per pixel",
        "-",
        "mixture",
        gate_widths=[8],
    ),
    "single_density": _counter(
        "SingleDensityCounter", "The encoder and decoder of HMoDE with one density head", "-"
    ),
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models as ``domain/name``, sorted.

    Args:
        pattern: Shell pattern matched against ``domain/name`` and against ``name``.

    Example:
        >>> list_models("mow*")
        ['graphs/mowst']
    """
    return sorted(
        f"{entry.domain}/{name}"
        for name, entry in MODELS.items()
        if fnmatch.fnmatch(f"{entry.domain}/{name}", pattern) or fnmatch.fnmatch(name, pattern)
    )


def model_info(name: str) -> ModelEntry:
    """The table's entry for ``name`` or ``domain/name``.

    Raises:
        UnknownNameError: With the closest names.

    Example:
        >>> model_info("graphs/gcn").paper
        'Kipf & Welling, ICLR 2017'
    """
    short = name.rpartition("/")[2]
    entry = MODELS.get(short)
    if entry is None or name not in (short, f"{entry.domain}/{short}"):
        raise UnknownNameError("model", name, MODELS, hint="See: moeapps list")
    return entry


def create_model(name: str, **arguments: Any) -> Any:
    """Build a registered model from plain keyword arguments.

    Args:
        name: ``name`` or ``domain/name``, as :func:`list_models` prints them.
        **arguments: Passed on to the model's constructor.

    Raises:
        UnknownNameError: With the closest names.
        MissingExtraError: When the domain's packages are not installed.

    Example:
        >>> model = create_model("gcn", **model_info("gcn").example)
        >>> type(model).__name__
        'GCN'
    """
    entry = model_info(name)
    module_name, _, attribute = entry.target.partition(":")
    with needs_extra(entry.domain):
        return getattr(importlib.import_module(module_name), attribute)(**arguments)
