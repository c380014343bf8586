"""Packages that pages need, which an installation may lack. This module needs none of them."""

from importlib.util import find_spec

HOW_TO_INSTALL = 'pip install "noisetilt-kernels[page]"'

_MODULES = {"PIL": "pillow", "bokeh": "bokeh", "jinja2": "jinja2"}
"""Modules that pages import, with the names of their packages."""


def missing_package() -> str | None:
    """Return the name of a package that pages need and that is not installed, or None."""
    return next((name for module, name in _MODULES.items() if find_spec(module) is None), None)
