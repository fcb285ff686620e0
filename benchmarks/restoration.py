"""Restoration networks side by side.

    MOEAPPS_DATA=DIR python benchmarks/restoration.py --suite photographs [--seeds 3] [--core]
    python benchmarks/restoration.py --suite photographs --render      # the page of what is there

Every run is one line of ``results/restoration_<suite>.jsonl``; a run that is there is not
repeated, so an interrupted benchmark continues.
"""

import argparse

import restoration_photographs as photographs


def main() -> None:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=["photographs"], required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=photographs.STEPS)
    parser.add_argument("--arms", nargs="*", choices=[*photographs.ARMS], help="only these")
    parser.add_argument("--core", action="store_true", help="without what was tried beside")
    parser.add_argument("--render", action="store_true", help="train nothing")
    given = parser.parse_args()
    arms = given.arms or (photographs.CORE if given.core else [*photographs.ARMS])
    photographs.main(0 if given.render else given.seeds, arms, given.steps)


if __name__ == "__main__":
    main()
