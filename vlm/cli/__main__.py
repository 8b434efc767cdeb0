"""`python -m vlm.cli`: the command `vlm`, for launchers that start modules."""

from vlm.cli import main

main()
