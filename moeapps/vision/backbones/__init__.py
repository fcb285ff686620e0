"""Networks with one shared trunk and a branch per expert."""
