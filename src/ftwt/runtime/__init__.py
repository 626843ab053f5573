"""Compiled networks: programs, files of them, and engines that run them. Needs numpy alone."""
