"""Write the golden values again: python -m tests.golden [NAME ...]; `make golden` writes all."""

from __future__ import annotations

import sys

from tests.golden import values


def main(names: list[str]) -> None:
    """Compute and store the files with these names, all without one."""
    unknown = set(names) - set(values.FILES)
    if unknown:
        sys.exit(f"no golden file {sorted(unknown)}: choose from {', '.join(values.FILES)}")
    for name in names or values.FILES:
        print(values.write(name, values.compute(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
