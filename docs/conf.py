"""Sphinx reads the repository: README, docs and experiments (tools/docs.sh)."""

import re

project = 'skipnet_jax'
author = 'The skipnet_jax authors'
# Its sections, which are lists of links, are also the site's contents.
root_doc = 'docs/index'
include_patterns = [
  'docs/*.md',
  'docs/*.rst',
  'README.md',
  'CONTRIBUTING.md',
  'CHANGELOG.md',
  'SECURITY.md',
  'experiments/README.md',
  'experiments/results/robustness/*.md',
]
extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
]
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}

# Headings have the anchors that they have on GitHub.
myst_heading_anchors = 3

# Docstrings are Google's, with `code` between single backticks.
default_role = 'code'
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'

html_theme = 'sphinx_book_theme'
html_title = 'skipnet_jax'
html_theme_options = {
  'show_navbar_depth': 1,
  'home_page_in_toc': True,
  'navbar_persistent': [],
}
html_copy_source = False


def add_contents(app, name, source):
  """Appends a hidden toctree for each section of the root document."""
  if name != root_doc:
    return
  parts = ['']
  for section in re.split(r'^## ', source[0], flags=re.M)[1:]:
    title = section.splitlines()[0]
    links = re.findall(r'^- \[(.*?)\]\((\S+)\.md\)', section, re.M)
    parts.append(
      f'```{{toctree}}\n:hidden:\n:caption: {title}\n\n'
      + '\n'.join(f'{text} <{link}>' for text, link in links)
      + '\n```\n'
    )
  tried = '../experiments/results/robustness'
  parts.append(
    f'```{{toctree}}\n:hidden:\n\nRuns <{tried}/runs>\n'
    f'Hostile input <{tried}/hostile>\n```\n'
  )
  source[0] += '\n'.join(parts)


def setup(app):
  """Called by Sphinx."""
  app.connect('source-read', add_contents)
