"""`python -m resonance_nb`: the command line, where the command `resonance` is not on the path."""

from resonance_nb.cli import main

if __name__ == '__main__':
    main()
