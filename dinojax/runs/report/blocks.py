"""Blocks of an HTML page: sections, folded parts, tables."""

from collections.abc import Iterable, Sequence
import html


def section(title: str, body: str) -> str:
  """A part of the page with a title."""
  return f'<h2>{text(title)}</h2>{body}'


def note(line: str) -> str:
  """A line in a softer colour."""
  return f'<p class="soft">{text(line)}</p>'


def folded(title: str, body: str) -> str:
  """A part that is closed until somebody opens it."""
  return f'<details><summary>{text(title)}</summary>{body}</details>'


def table(rows: Iterable[Sequence], *, titles: Sequence[str] = (),
          head: bool = False) -> str:
  """Rows of text; with `head` their first cells name them."""
  lines = []
  if titles:
    lines.append('<tr>' + ''.join(
        f'<th scope="col">{text(title)}</th>' for title in titles) + '</tr>')
  for first, *rest in rows:
    first = (f'<th scope="row">{text(first)}</th>' if head
             else f'<td>{text(first)}</td>')
    lines.append(f'<tr>{first}' + ''.join(
        f'<td>{text(cell)}</td>' for cell in rest) + '</tr>')
  return ('<div class="scroll"><table class="facts">'
          f'{"".join(lines)}</table></div>')


def text(value: object) -> str:
  """A value as text that is safe within HTML."""
  return html.escape(str(value))
