"""``python -m nbcompile`` and the console script ``nbcompile``."""


def main() -> None:
    """Run the command line.

    Nothing is imported before: until `one_line` is there, Ctrl-C ends the process without a word.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nbcompile.cli.ctrl_c import one_line

    with one_line():
        from nbcompile.cli.app import run_cli

        run_cli()


if __name__ == "__main__":
    main()
