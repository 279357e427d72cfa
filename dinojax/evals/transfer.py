"""Places of pairs of images that patches find again, a row a pair.

Columns `right …` count matches that are near enough, and `matches` those that
could be.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from dinojax.evals import drawing
from dinojax.evals import items
from dinojax.evals import letterbox
from dinojax.evals import matching
from dinojax.evals.sets import navi
from dinojax.evals.sets import pairs as pairs_lib
from dinojax.evals.sets import tables
from dinojax.features import spec as spec_lib
from dinojax.metrics import correspondence

Test = pairs_lib.Pairs | navi.Surfaces
_SPEC = spec_lib.FeatureSpec(('map',))
_DEGREES = (0, 30, 60, 90, 120)  # edges of the bins of NAVI
_LINES = 40  # matches of a picture


class _Flat:
  """Pairs of flat images: letterboxes, maps, and matches of places."""

  def __init__(self, model, test: pairs_lib.Pairs, settings: Any,
               patches: int, progress: Callable[[int], None]):
    self._test, self._settings = test, settings
    self._pairs = test.chosen(settings.max_pairs)
    self.side = patches * model.config.token_px
    self._mean = model.mean
    order = [number for i in items.share(len(self._pairs))
             for number in (self._pairs[i].source, self._pairs[i].target)]
    self._maps = items.Maps(model, self._load, _SPEC, order, progress)
    # Numbers of groups are by name, whatever pairs are measured first.
    self._groups = sorted({pair.group for pair in self._pairs})

  @property
  def count(self) -> int:
    """Number of pairs."""
    return len(self._pairs)

  def _picture(self, number: int) -> Image.Image:
    return tables.pixels(self._test.images[number], self._test.where)

  def _load(self, number: int) -> np.ndarray:
    picture = self._picture(number)
    return letterbox.Letterbox(picture.size, self.side).pixels(
        picture, self._mean)

  def _box(self, number: int) -> letterbox.Letterbox:
    return letterbox.Letterbox(tables.size(
        self._test.images[number], self._test.where), self.side)

  def _patch(self, grid: jax.Array) -> np.ndarray:
    """[2] width and height of a patch in the square."""
    return self.side / np.array(grid.shape[1::-1])

  def _places(self, grid: jax.Array) -> np.ndarray:
    """[p, 2] places of all patches in the square."""
    rows, columns = grid.shape[:2]
    return correspondence.patch_places(
        np.arange(rows * columns), columns, 1.0,
        'corner' if self._settings.places == 'corners' else 'centre'
    ) * self._patch(grid)

  def _matched(self, pair: pairs_lib.Pair, places: np.ndarray) -> np.ndarray:
    """[r, 2] places of the target, in its pixels, that are most like these."""
    source, target = self._maps[pair.source], self._maps[pair.target]
    boxes = [self._box(number) for number in (pair.source, pair.target)]
    at = places * boxes[0].scale / self._patch(source)
    # As many rows in every pair: one program.
    room = max(64, 2 ** int(np.ceil(np.log2(max(len(at), 1)))))
    padded = np.zeros((room, 2), np.float32)
    padded[:len(at)] = at
    rows = matching.sample(
        matching.unit(source), padded,
        aligned_corners=self._settings.places == 'corners')
    all_places = self._places(target)
    valid = boxes[1].holds(all_places)
    index, _ = matching.nearest(
        matching.unit(rows), matching.unit(target).reshape(
            -1, target.shape[-1]), valid)
    return all_places[np.asarray(index)[:len(at)]] / boxes[1].scale

  def _drawn(self, pair: pairs_lib.Pair, places: np.ndarray,
             matched: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    some = np.unique(np.linspace(
        0, len(places) - 1, min(_LINES, len(places))).round().astype(int))
    return drawing.matches(
        self._picture(pair.source), self._picture(pair.target),
        places[some], matched[some], is_right[some])


class Keypoints(_Flat):
  """Keypoints of pairs, by PCK."""

  def __init__(self, model, test: pairs_lib.Pairs, settings: Any,
               progress: Callable[[int], None]):
    super().__init__(model, test, settings, settings.keypoint_patches,
                     progress)

  def measure(self, index: int, draw: bool
              ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Columns [1] of a pair, and its picture."""
    pair = self._pairs[index]
    if not len(pair.source_places):  # two images without a part in common
      matched, error = np.zeros((0, 2)), np.zeros(0)
    else:
      matched = self._matched(pair, pair.source_places)
      error = correspondence.distances(
          matched, pair.target_places) / pair.scale
    columns = {'source': pair.source, 'target': pair.target,
               'matches': len(error), 'group': self._groups.index(pair.group),
               'part': pair.part, 'error': error.sum()} | {
                   f'right {alpha:g}': (error < alpha).sum()
                   for alpha in self._settings.alpha}
    picture = self._drawn(
        pair, pair.source_places, matched,
        error < max(self._settings.alpha)) if draw and len(error) else None
    return {k: np.array([v], float) for k, v in columns.items()}, picture

  def score(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """PCK, a mean over groups, and that of every part of the set."""
    parts = {'': np.ones(len(rows['part']), bool)}
    for part in np.unique(rows['part']) if self._test.part else ():
      parts[f', {self._test.part} {part:.0f}'] = rows['part'] == part
    return {f'PCK@{alpha:g}{name}': _by_group(rows, f'right {alpha:g}', kept)
            for name, kept in parts.items() for alpha in self._settings.alpha}


def _by_group(rows: dict[str, np.ndarray], right: str,
              kept: np.ndarray) -> float:
  """Percentage of matches that are right, a mean over groups."""
  group = rows['group'][kept].astype(int)
  total = np.bincount(group, rows['matches'][kept])
  count = np.bincount(group, rows[right][kept])
  with np.errstate(invalid='ignore'):
    return 100 * float(np.nanmean(count / total)) if total.any() else (
        float('nan'))


class Homographies(_Flat):
  """Centres of patches through homographies, by their recall."""

  def __init__(self, model, test: pairs_lib.Pairs, settings: Any,
               progress: Callable[[int], None]):
    super().__init__(model, test, settings, settings.patches, progress)

  def measure(self, index: int, draw: bool
              ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Columns [1] of a pair, and its picture."""
    pair = self._pairs[index]
    boxes = [self._box(number) for number in (pair.source, pair.target)]
    grid = self._maps[pair.source]
    rows, columns = grid.shape[:2]
    centres = correspondence.patch_places(
        np.arange(rows * columns), columns, 1.0) * self._patch(grid)
    places = centres[boxes[0].holds(centres)] / boxes[0].scale
    truth = correspondence.mapped(pair.homography, places)
    with np.errstate(invalid='ignore'):
      seen = np.all((truth >= 0) & (truth <= boxes[1].size), axis=1)
    places, truth = places[seen], truth[seen]
    matched = self._matched(pair, places) if len(places) else places
    error = correspondence.distances(matched, truth)
    columns = {'source': pair.source, 'target': pair.target,
               'matches': len(error), 'group': self._groups.index(pair.group)
               } | {f'right {px:g} px': (error < px).sum()
                    for px in self._settings.px}
    picture = self._drawn(
        pair, places, matched, error < sorted(self._settings.px)[
            len(self._settings.px) // 2]) if draw and len(places) else None
    return {k: np.array([v], float) for k, v in columns.items()}, picture

  def score(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Recall, a mean over pairs."""
    with np.errstate(invalid='ignore'):
      return {f'recall@{px:g}px': 100 * float(np.nanmean(
          rows[f'right {px:g} px'] / rows['matches']))
              for px in self._settings.px if rows['matches'].any()}


class Surfaces:
  """Points on an object's surface, by their recall in space and in pixels."""

  def __init__(self, model, test: navi.Surfaces, settings: Any,
               progress: Callable[[int], None]):
    self._model, self._test, self._settings = model, test, settings
    self.side = settings.patches * model.config.token_px
    # A quarter of the pixels along each side, as Probe3D.
    self._cells = self.side // 4
    most = settings.max_pairs
    places = range(len(test.pairs)) if most is None or (
        len(test.pairs) <= most) else np.linspace(
            0, len(test.pairs) - 1, most).round().astype(int)
    self._pairs: Sequence[tuple[int, int]] = [test.pairs[i] for i in places]
    order = [number for i in items.share(len(self._pairs))
             for number in self._pairs[i]]
    self._maps = items.Maps(
        model, lambda number: self._surface(number).pixels, _SPEC, order,
        progress)

  @property
  def count(self) -> int:
    """Number of pairs."""
    return len(self._pairs)

  def _surface(self, number: int) -> navi.Surface:
    return self._test.surface(number, self.side, self._cells)

  def measure(self, index: int, draw: bool
              ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Columns [1] of a pair, and its picture."""
    pair = self._pairs[index]
    source, target = (self._surface(number) for number in pair)
    pose = navi.relative(source.pose, target.pose)
    kept, index_, weights = map(np.asarray, matching.dense(
        self._maps[pair[0]], self._maps[pair[1]], source.xyz[..., 2] > 0,
        target.xyz[..., 2] > 0, size=(self._cells,) * 2,
        num_matches=min(self._settings.matches, self._cells**2)))
    kept, index_ = (x[np.isfinite(weights)] for x in (kept, index_))
    points = source.xyz.reshape(-1, 3)[kept]
    truth = target.xyz.reshape(-1, 3)[index_]
    reached = correspondence.moved(points, pose)
    metres = correspondence.distances(reached, truth)
    pixels = correspondence.distances(*(
        correspondence.project(x, target.intrinsics)
        for x in (reached, truth)))
    columns = {'source': pair[0], 'target': pair[1], 'matches': len(metres),
               'degrees': correspondence.rotation_degrees(pose)} | {
                   f'right {cm:g} cm': (metres < cm / 100).sum()
                   for cm in self._settings.cm} | {
                       f'right {px:g} px': (pixels < px).sum()
                       for px in self._settings.px}
    picture = self._drawn(source, target, kept, index_, metres) if (
        draw and len(kept)) else None
    return {k: np.array([v], float) for k, v in columns.items()}, picture

  def _drawn(self, source, target, kept, index, metres) -> np.ndarray:
    some = slice(0, _LINES)
    places = [correspondence.patch_places(
        x[some], self._cells, self.side / self._cells) for x in (kept, index)]
    return drawing.matches(
        Image.fromarray(source.pixels), Image.fromarray(target.pixels),
        *places, metres[some] < max(self._settings.cm) / 100)

  def score(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Recall of all matches; at the middle distance by rotation too."""
    share = lambda name, kept: 100 * float(
        rows[name][kept].sum() / max(rows['matches'][kept].sum(), 1))
    everywhere = slice(None)
    out = {f'recall@{cm:g}cm': share(f'right {cm:g} cm', everywhere)
           for cm in self._settings.cm}
    out |= {f'recall@{px:g}px': share(f'right {px:g} px', everywhere)
            for px in self._settings.px}
    middle = sorted(self._settings.cm)[len(self._settings.cm) // 2]
    for low, high in zip(_DEGREES[:-1], _DEGREES[1:], strict=True):
      kept = (rows['degrees'] >= low) & (rows['degrees'] < high)
      if kept.any():
        out[f'recall@{middle:g}cm, {low}–{high}°'] = share(
            f'right {middle:g} cm', kept)
    return out
