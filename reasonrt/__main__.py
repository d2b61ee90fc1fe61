"""`python -m reasonrt`: the command line."""

from reasonrt.cli.main import main

if __name__ == "__main__":
    main()
