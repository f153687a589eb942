"""`python -m keras_mart.main`: hands over to the command line in `keras_mart.cli`."""

from keras_mart.cli import run

if __name__ == "__main__":
    run()
