"""Several ways of running one network, timed against each other."""
