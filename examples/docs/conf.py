"""Settings of the documentation, built by `make docs`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

project = "pyrovae"
author = "The pyrovae developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["gallery.py"]
default_role = "py:obj"
highlight_language = "text"
html_theme = "furo"
html_title = "pyrovae"
html_show_copyright = False
html_css_files = ["page.css"]
html_static_path = ["static"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True}
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
pygments_dark_style = "github-dark"
