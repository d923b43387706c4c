"""`python -m catena`."""

from catena.cli.main import main

if __name__ == "__main__":
    main()
