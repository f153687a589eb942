"""Runs the command line of `keras_mart.cli`: `python -m keras_mart.main`."""

from keras_mart.cli import run

if __name__ == "__main__":
    run()
