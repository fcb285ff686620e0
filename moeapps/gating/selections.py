"""Who serves which row: every selection, from logits to a routing.

Each function has two readings. With logits first it computes: ``topk(logits, 2)``. Without logits
it binds its options for a gate: ``topk(2, score="sigmoid")`` is a :class:`Select`.
"""

from moeapps.gating.group_selections import ExpertChoice, expert_choice, soft_slots
from moeapps.gating.limits import Limited, capacity
from moeapps.gating.row_selections import Random, hard, random, scheduled_top_k, softmax, topk, topp
from moeapps.gating.select import Select, masked_softmax, selection

__all__ = [
    "ExpertChoice",
    "Limited",
    "Random",
    "Select",
    "capacity",
    "expert_choice",
    "hard",
    "masked_softmax",
    "random",
    "scheduled_top_k",
    "selection",
    "soft_slots",
    "softmax",
    "topk",
    "topp",
]
