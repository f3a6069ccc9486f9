"""``python -m nbcompile`` and the console script ``nbcompile``."""

from nbcompile.cli.ctrl_c import one_line


def main() -> None:
    """Run the command line."""
    with one_line():
        from nbcompile.cli.app import run_cli

        run_cli()


if __name__ == "__main__":
    main()
