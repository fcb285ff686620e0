"""Convolutional mixtures trained against attacks, the attacks, and what they leave."""
