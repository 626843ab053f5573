"""Run thousands of altered programs on every instruction set of this machine, and write what came.

    python tools/fuzz.py    # writes results/fuzz/native.json
    python tools/fuzz.py --count 3000 --output results/fuzz/sanitized.json   # of a sanitized build

The programs are those of `tests/helpers/mutations.py`: random networks of float32 and of eight
bits, most with a field altered to another possible value, and the digests made anew. Each is
refused by a ValueError, or gives what the reference gives. One that crashes, differs, or takes more
than its time or memory ends the process with its number, and nothing is written.

For a sanitized build: `make sanitize`, then copy its module from build/sanitized/site/ftwt/runtime
to src/ftwt/runtime, and set LD_PRELOAD and the options of the sanitizers as the Makefile does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import mutations
from ftwt.files.json import write_json
from ftwt.files.provenance import Start, provenance
from ftwt.runtime import _native


def main() -> None:
    """Run them, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--output", default="results/fuzz/native.json")
    options = parser.parse_args()
    sanitized = "libasan" in Path("/proc/self/maps").read_text()
    memory = None if sanitized else mutations.BYTES
    began = Start()
    with tempfile.TemporaryDirectory() as folder:
        found = mutations.fuzz_within_limits(
            Path(folder), options.first, options.count, memory=memory
        )
    result = {
        "programs": options.count,
        "first": options.first,
        "instruction_sets": _native.isas(),
        "sanitized": sanitized,
        "seconds_allowed": mutations.SECONDS,
        "bytes_allowed": memory,
        "outcomes": found,
        "provenance": provenance(seed=options.first, since=began),
    }
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)
    print(result["outcomes"])


if __name__ == "__main__":
    main()
