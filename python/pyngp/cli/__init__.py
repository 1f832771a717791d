"""The command line: pyngp train, eval, render, info, bench, demo."""
