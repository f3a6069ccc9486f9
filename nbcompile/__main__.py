"""``python -m nbcompile`` and the console script ``nbcompile``."""


def main() -> None:
    """Run the command line."""
    from nbcompile.cli.app import run_cli

    run_cli()


if __name__ == "__main__":
    main()
