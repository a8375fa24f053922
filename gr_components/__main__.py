"""`python -m gr_components` is `gr`."""

from gr_components.cli import main

main(prog_name="gr")
