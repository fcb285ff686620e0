"""Fast paths of the gating core on plain tensors, each checked against `reference`; torch only."""

from moeapps.kernels.autograd import touch
from moeapps.kernels.conv import CONV_STRATEGIES, routed_conv2d
from moeapps.kernels.dense import ALL_STRATEGIES, all_experts, batched, folded
from moeapps.kernels.film import FILM_FORMS, film_mix
from moeapps.kernels.networks import Networks
from moeapps.kernels.plan import Plan, make_plan
from moeapps.kernels.select import STRATEGIES, Choice, choose, explain, use
from moeapps.kernels.token import routed, routed_linear, routed_mlp, sorted_rows

__all__ = [
    "ALL_STRATEGIES",
    "CONV_STRATEGIES",
    "FILM_FORMS",
    "STRATEGIES",
    "Choice",
    "Networks",
    "Plan",
    "all_experts",
    "batched",
    "choose",
    "explain",
    "film_mix",
    "folded",
    "make_plan",
    "routed",
    "routed_conv2d",
    "routed_linear",
    "routed_mlp",
    "sorted_rows",
    "touch",
    "use",
]
