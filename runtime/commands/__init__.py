"""Commands: one file each, `main(arguments) -> exit status`; found by `jscc.__main__`."""
