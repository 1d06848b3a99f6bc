"""`make bench`: speed as ratios against a baseline in the same run, since machines differ and are noisy.

Each figure runs its two sides in turn and compares their medians. docs/architecture.md holds the budgets.
"""

import sys

from tests.bench import cold_start, warm_handler


def main() -> int:
    rows = [*cold_start.measure(), *warm_handler.measure()]
    width = max(len(row.name) for row in rows)
    for row in rows:
        ratio = f"{row.ratio:.2f} x (budget {row.budget:.2f} x)"
        print(f"{row.name:<{width}}  {ratio}  {row.ours:.1f} / {row.theirs:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
