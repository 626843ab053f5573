"""Flags that several verbs have."""

from __future__ import annotations

from typing import Annotated

import tyro

Json = Annotated[
    bool, tyro.conf.arg(name="json", help="Print JSON, and nothing else, to standard output.")
]
Network = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
