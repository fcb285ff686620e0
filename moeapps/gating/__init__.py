"""The shared gating core: decisions, gates, experts, losses and statistics; needs torch only."""

from moeapps.gating.losses import LOSSES
from moeapps.gating.routing import Routing, mask_rows
from moeapps.gating.stats import DeadExperts, routing_stats

__all__ = ["LOSSES", "DeadExperts", "Routing", "mask_rows", "routing_stats"]
