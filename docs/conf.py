"""The site: `make docs` writes it to build/docs, with notebooks executed."""

import os
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
_PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']

project = 'dinojax'
release = _PROJECT['version']
extensions = [
    'myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon',
    'sphinx.ext.viewcode']
# colabs/ is linked to; its percent twins are no pages.
exclude_patterns = ['colabs/*.py', 'colabs/runs', 'colabs/exports']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
myst_heading_anchors = 3

html_theme = 'sphinx_book_theme'
html_title = 'dinojax'
html_extra_path = ['demo_report.html']
html_theme_options = {
    'repository_url': _PROJECT['urls']['Repository'],
    'use_repository_button': True, 'home_page_in_toc': True}

# Notebooks are executed with tiny numbers; NOTEBOOKS=off leaves them as they
# are. An error in one ends the build.
nb_execution_mode = os.environ.get('NOTEBOOKS', 'force')
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
os.environ['SMOKE'] = '1'

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
napoleon_custom_sections = ['Source', 'Differs']
add_module_names = False
