"""`python -m gr_training RECIPE.yaml` is `gr train RECIPE.yaml`: what `accelerate launch -m gr_training` starts."""

from gr_training.cli import command

if __name__ == "__main__":
    command()
