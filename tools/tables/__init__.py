"""The tables of README and docs, one function each, from result files."""
