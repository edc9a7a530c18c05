"""Where `python -m minidalle` and the command `minidalle` begin; the verbs are in cli/."""

import sys


def main() -> int:
    """Run the command line. Ctrl-C is no traceback, not even while torch is being imported."""
    try:
        from minidalle import cli

        return cli.main()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
