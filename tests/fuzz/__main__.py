"""Read damaged files for an hour, other ones than `make test` does, and count what became of them.

Every failure is printed with its seed; `python -m tests.fuzz --target NAME --seed N` runs that case alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.fuzz.runner import GOOD, Outcome, run
from tests.fuzz.targets import TARGETS

PER_TURN = 200


def main() -> None:
    """Run the cases that the command line asks for; exit with 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="how long to run (default: 60)")
    parser.add_argument(
        "--target", choices=list(TARGETS), metavar="NAME", help=f"only this one of: {', '.join(TARGETS)}"
    )
    parser.add_argument("--seed", type=int, help="only this case of the target")
    options = parser.parse_args()
    if options.seed is not None and options.target is None:
        parser.error("--seed needs --target")
    names = [options.target] if options.target else list(TARGETS)
    counts: Counter[str] = Counter()
    first, ends = 10**6, time.monotonic() + 60 * options.minutes
    while True:
        seeds = [options.seed] if options.seed is not None else range(first, first + PER_TURN)
        for name in names:
            for outcome in run(name, seeds):
                counts[outcome.verdict] += 1
                if outcome.verdict not in GOOD or options.seed is not None:
                    _show(outcome)
            if time.monotonic() > ends or options.seed is not None:
                break
        else:
            first += PER_TURN
            continue
        break
    print(f"{sum(counts.values())} cases: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}")
    sys.exit(any(verdict not in GOOD for verdict in counts))


def _show(outcome: Outcome) -> None:
    print(f"{outcome.target}, seed {outcome.seed}, {outcome.mutator}: {outcome.verdict}: {outcome.detail}", flush=True)


if __name__ == "__main__":
    main()
