"""`scripts/check-hostile`: so many hostile cases, and a table of what became of them."""

from __future__ import annotations

import argparse
import sys

from hostile.runner import SECONDS, cases, run, table


def main() -> int:
    parser = argparse.ArgumentParser(description="Takes hostile files and requests through the product and counts.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a kind, or a kind and a number, such as clips/17")
    asked = parser.parse_args()
    kind, _, index = asked.only.partition("/")
    chosen = [(kind, int(index))] if index else [one for one in cases(asked.cases) if kind in ("", one[0])]
    found = []
    for told in run(chosen, asked.seed):
        found.append(told)
        if told.cpu > SECONDS:  # by the processor: the clock tells of the machine's other work too
            told.wrong = told.wrong or f"it took {told.cpu:.1f} s of the processor"
        if told.wrong or index:
            print(f"{told.kind}/{told.index} {told.shape}: {told.became}: {told.wrong or told.said}", flush=True)
    print(table(found))
    return int(any(one.wrong for one in found))


if __name__ == "__main__":
    sys.exit(main())
