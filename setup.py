"""Everything is declared in pyproject.toml; this file is the place where native code is built."""

from setuptools import setup

setup()
