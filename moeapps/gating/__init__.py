"""The shared gating core: decisions, gates, experts, losses and statistics; needs torch only."""

from moeapps.gating.balance import BalanceBias, step
from moeapps.gating.gates import Gate
from moeapps.gating.losses import LOSSES
from moeapps.gating.perturbations import (
    GateDropout,
    Gaussian,
    Gumbel,
    Jitter,
    Learned,
    MonteCarlo,
    Perturbation,
)
from moeapps.gating.routing import Routing, mask_rows
from moeapps.gating.scores import (
    MLP,
    Confidence,
    Constant,
    Conv,
    Fixed,
    Hash,
    Linear,
    PooledLinear,
    TaskConditioned,
    Tasks,
)
from moeapps.gating.selections import (
    ExpertChoice,
    Random,
    Select,
    capacity,
    expert_choice,
    hard,
    random,
    scheduled_top_k,
    soft_slots,
    softmax,
    topk,
    topp,
)
from moeapps.gating.similarity_scores import Cosine, Prototype, Recurrent, SimilarityAware, Slots
from moeapps.gating.stats import DeadExperts, routing_stats

__all__ = [
    "LOSSES",
    "MLP",
    "BalanceBias",
    "Confidence",
    "Constant",
    "Conv",
    "Cosine",
    "DeadExperts",
    "ExpertChoice",
    "Fixed",
    "Gate",
    "GateDropout",
    "Gaussian",
    "Gumbel",
    "Hash",
    "Jitter",
    "Learned",
    "Linear",
    "MonteCarlo",
    "Perturbation",
    "PooledLinear",
    "Prototype",
    "Random",
    "Recurrent",
    "Routing",
    "Select",
    "SimilarityAware",
    "Slots",
    "TaskConditioned",
    "Tasks",
    "capacity",
    "expert_choice",
    "hard",
    "mask_rows",
    "random",
    "routing_stats",
    "scheduled_top_k",
    "soft_slots",
    "softmax",
    "step",
    "topk",
    "topp",
]
