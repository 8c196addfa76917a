"""`python -m kilotron` and the `kilotron` command. Knows only where the command line is."""

import sys
from io import TextIOWrapper


def main() -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that cannot show every character
    try:
        from kilotron.cli.app import run  # inside, so that Ctrl-C during the import is as quiet as later

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
