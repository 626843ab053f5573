"""From a torch network to a `Program`."""

from .lower import lower as lower
