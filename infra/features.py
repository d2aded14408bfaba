"""Holds the packages that are deployed and those that are tested to the same features of everything below them.

Cargo compiles a dependency once for each set of features that a selection of packages asks of it. A development
dependency that asks for more than the product does has `make test` compile what is above it, all of the AWS SDKs in
the worst case, a second time: and then what is tested is not what is deployed.
"""

import shlex
import subprocess
import sys

# What runs on its own, and also what runs while others are compiled: their features are resolved apart, and a package
# may stand in a tree once with each.
KINDS = ("normal,no-proc-macro", "normal,build")


def features(selection: str, kinds: str) -> dict[str, set[str]]:
    """By package and version, the features it has: one set of them, or two."""
    tree = ["cargo", "tree", "--prefix", "none", "--format", "{p}|{f}", "--edges", kinds]
    run = subprocess.run(tree + shlex.split(selection), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, set[str]] = {}
    for line in run.stdout.splitlines():
        package, _, rest = line.partition("|")
        found.setdefault(" ".join(package.split()[:2]), set()).add(rest.removesuffix(" (*)"))
    return found


def main(deployed: str, *tested: str) -> int:
    differ = set()
    for kinds in KINDS:
        product = features(deployed, kinds)
        for selection in tested:
            tests = features(selection, f"{kinds},dev")
            for package, sets in product.items():
                differ.update(
                    f"{package}: deployed with [{has}], in `{selection}` with "
                    + " or ".join(f"[{other}]" for other in sorted(tests.get(package, ())))
                    for has in sets - tests.get(package, set())
                )
    if differ:
        print(*sorted(differ), sep="\n", file=sys.stderr)
        print("Ask for the missing features in a crate that is deployed, or move the tests that ask.", file=sys.stderr)
        return 1
    print(f"the {len(product)} packages that are deployed have the same features in tests")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
