"""The shared gating core: decisions, gates, experts, losses and statistics; needs torch only."""

from moeapps.gating.routing import Routing, mask_rows

__all__ = ["Routing", "mask_rows"]
