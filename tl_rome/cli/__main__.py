"""`python -m tl_rome.cli`, where the `tl-rome` script is not on the path."""

from tl_rome.cli.app import main

if __name__ == "__main__":
    main()
