"""`python -m paredown.studies.cli`, for where the console script is not on the path."""

from .app import main

main()
