"""For tools that still ask for a setup.py; pyproject.toml says what is installed."""

from setuptools import setup

setup()
