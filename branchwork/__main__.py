"""`python -m branchwork`: the same as the `branchwork` command."""

from branchwork.cli import main

main()
