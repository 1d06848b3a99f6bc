"""`make bench`: speed and memory as ratios against a baseline in the same run, since machines differ and are noisy.

Each figure compares the medians of its two sides. docs/architecture.md lists the budgets.
"""

import sys

from tests.bench import cold_start, memory, polling, waiting, warm_handler


def main() -> int:
    parts = (cold_start, warm_handler, memory, waiting, polling)
    rows = [row for part in parts for row in part.measure()]
    width = max(len(row.name) for row in rows)
    for row in rows:
        budget = "" if row.budget is None else f"(budget {row.budget:.2f} x)"
        print(f"{row.name:<{width}}  {row.ratio:.2f} x {budget:<15}  {row.product:.1f} / {row.baseline:.1f} {row.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
