"""What pyproject.toml cannot say: the folder `configs` is installed as `tango.configs`."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["tango*"]), "tango.configs"], package_dir={"tango.configs": "configs"})
