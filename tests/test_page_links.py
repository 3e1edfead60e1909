"""The pages of the docs: their links lead somewhere, and the index has all."""

import re

from conftest import PAGES
from conftest import ROOT


def anchors(page):
  """The anchors of a page's headings, as GitHub makes them."""
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  titles = re.findall(r'^#+ (.*)', text, re.M)
  return {re.sub(r'[^\w -]', '', t.lower()).replace(' ', '-') for t in titles}


def test_links_lead_somewhere():
  for page in PAGES:
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
      name, _, anchor = link.partition('#')
      if '://' in name:
        continue
      target = page.parent / name if name else page
      assert target.exists(), f'{page}: {link}'
      assert not anchor or anchor in anchors(target), f'{page}: {link}'


def test_the_index_has_every_page():
  index = ROOT / 'docs/index.md'
  listed = re.findall(r'^- \[.*?\]\(([^)]+)\)', index.read_text(), re.M)
  listed = {(index.parent / name).resolve() for name in listed}
  assert {*PAGES} - {index} == listed
