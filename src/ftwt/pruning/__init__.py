"""The method, put into a network: gates, the dynamic network, and what its masks cost."""
