"""Weather removal: restoration networks, their data, training and figures."""
