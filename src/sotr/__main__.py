"""`python -m sotr`: the command line, where the script `sotr` is not on the path."""

from sotr.cli import main

if __name__ == "__main__":
    main()
