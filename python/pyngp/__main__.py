"""`python -m pyngp`."""

from pyngp.cli.main import main

if __name__ == "__main__":
    main()
