"""The metadata of keras_mart; requirements.txt holds the versions it was tested with."""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent

setup(
    name="keras_mart",
    version=re.search(r'__version__ = "(.+)"', (here / "keras_mart" / "version.py").read_text()).group(1),
    description="Adversarial training of image classifiers with Keras: MART and the methods it is compared with",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["keras_mart", "keras_mart.*"]),
    package_data={"keras_mart": ["data/*", "evaluation/report/*.css"]},
    install_requires=[
        "absl-py",
        "importlib_resources",  # imported by tensorflow-datasets 4.9.10, which does not ask for it
        "keras>=3.15",
        "ml_dtypes",
        "numpy",
        "tensorflow>=2.21",
        "tensorflow-datasets",
    ],
    extras_require={
        "cuda": ["tensorflow[and-cuda]>=2.21"],
        "docs": ["matplotlib"],
        "plot": ["matplotlib"],
        "test": ["pytest", "pytest-xdist", "ruff", "safetensors"],
    },
    entry_points={"console_scripts": ["keras-mart = keras_mart.main:run"]},
)
