"""`python -m kilotron` and the `kilotron` command. Knows only where the command line is."""

import sys


def main() -> None:
    try:
        from kilotron.cli.app import run  # inside, so that Ctrl-C during the import is as quiet as later

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
