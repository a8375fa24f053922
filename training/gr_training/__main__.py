"""`python -m gr_training RECIPE.yaml` is `gr train RECIPE.yaml`: what `accelerate launch -m gr_training` starts."""

import sys

from gr_components.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]], prog_name="gr")
