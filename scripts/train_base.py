"""Makes the embedded base model again from the npm packages: `python scripts/train_base.py PART --node-modules DIR --out DIR`.

Parts, in order: vae, clip, judge, unet, pack, card; `pictures` makes those of the demo and of the tests.
Each prints its log; the U-Net checkpoints and resumes.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "base"), str(Path(__file__).parents[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["vae", "clip", "judge", "unet", "pack", "card", "pictures"])
    parser.add_argument("--node-modules", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    importlib.import_module(args.part).train(args.node_modules, args.out)


if __name__ == "__main__":
    main()
