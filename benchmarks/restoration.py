"""Restoration networks side by side.

    python benchmarks/restoration.py --suite patches [--seeds 5]
    MOEAPPS_DATA=DIR python benchmarks/restoration.py --suite photographs [--seeds 3] [--core]
    python benchmarks/restoration.py --suite photographs --render      # the page of what is there

Every run is one line of ``results/restoration_<suite>.jsonl``; a run that is there is not
repeated, so an interrupted benchmark continues.
"""

import argparse

import restoration_patches as patches
import restoration_photographs as photographs

SUITES = {"patches": patches, "photographs": photographs}
SEEDS = {"patches": 5, "photographs": 3}


def main() -> None:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=[*SUITES], required=True)
    parser.add_argument("--seeds", type=int, help="5 for patches, 3 for photographs")
    parser.add_argument("--steps", type=int)
    parser.add_argument(
        "--arms", nargs="*", choices=[*patches.ARMS, *photographs.ARMS], help="only these"
    )
    parser.add_argument("--core", action="store_true", help="without what was tried beside")
    parser.add_argument("--render", action="store_true", help="train nothing")
    given = parser.parse_args()
    suite = SUITES[given.suite]
    arms = given.arms or [*suite.ARMS]
    if given.core and suite is photographs:
        arms = photographs.CORE
    seeds = SEEDS[given.suite] if given.seeds is None else given.seeds
    suite.main(0 if given.render else seeds, arms, given.steps or suite.STEPS)


if __name__ == "__main__":
    main()
