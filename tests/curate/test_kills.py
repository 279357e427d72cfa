"""Kills in every stage of a curation: the same bytes as without any."""

import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import sys
import traceback

import pytest

from tests.curate import test_papers
from tests.curate import test_recipe
from tests.reliability import test_kills

pytestmark = pytest.mark.slow  # minutes of real processes

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload([__name__])
STAGES = ('ingest', 'filter', 'hash', 'describe', 'dedup', 'decontaminate',
          'embed', 'retrieve', 'cluster', 'sample', 'materialize')
pile, benchmark = test_recipe.pile, test_recipe.benchmark


def config(pile, benchmark):
  """All stages that read images, with a level that is divided."""
  c = test_papers.of_dinov2(pile, benchmark)
  c.stages = STAGES
  c.cluster.levels, c.cluster.split, c.cluster.iterations = (20, 4), 4, 3
  c.sample.images = 30
  c.materialize.images_per_shard = 16
  return c


def _start(pile, benchmark, folder, kill_at, limit, out):
  """A curation in this process; sends its last line."""
  count = itertools.count(1)

  def hook(event, args):
    if test_kills._changes(event, args, folder) and next(count) == kill_at:
      os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
  try:
    line = test_papers.curate(config(pile, benchmark), folder)
    out.send(('ended', line, next(count)))
  except ValueError as error:  # UserError is one
    out.send((type(error).__name__, str(error), 0))
  except Exception:  # noqa: BLE001 (a fault, shown by the test)
    out.send(('fault', traceback.format_exc(), 0))


def start(pile, benchmark, folder, kill_at=0, limit=0):
  """What a curation sent; None: it was killed before."""
  reader, writer = _CONTEXT.Pipe(duplex=False)
  process = _CONTEXT.Process(target=_start, args=(
      str(pile), str(benchmark), str(folder), kill_at, limit, writer))
  process.start()
  writer.close()
  try:
    sent = reader.recv()
  except EOFError:
    sent = None
  process.join(60)
  return sent


@pytest.fixture(scope='module')
def unbroken(pile, benchmark, tmp_path_factory):
  """Bytes of a curation without kills, and how many changes it makes."""
  folder = tmp_path_factory.mktemp('unbroken') / 'work'
  kind, _, changes = start(pile, benchmark, folder)
  assert kind == 'ended'
  return test_recipe.contents(folder), changes


def _stage(folder: pathlib.Path) -> str:
  """The last stage that has begun."""
  return [name for name in STAGES if (folder / name).exists()][-1]


def _survives(places, pile, benchmark, unbroken, tmp_path):
  want, _ = unbroken
  stages = set()
  for number in places:
    folder = tmp_path / str(number)
    assert start(pile, benchmark, folder, kill_at=number) is None
    if number > 5:
      stages.add(_stage(folder))
    assert start(pile, benchmark, folder)[0] == 'ended'
    got = test_recipe.contents(folder)
    assert set(got) == set(want), number
    assert [name for name in want if got[name] != want[name]] == [], number
    shutil.rmtree(folder)
  return stages


def test_kills_in_every_stage(pile, benchmark, unbroken, tmp_path):
  changes = unbroken[1]
  assert changes > 200
  stages = _survives(range(3, changes, changes // 30), pile, benchmark,
                     unbroken, tmp_path)
  assert stages == set(STAGES)


@pytest.mark.parametrize('limit', [300, 3000, 20_000])
def test_a_disk_that_fills_is_named_and_nothing_is_lost(
    pile, benchmark, unbroken, tmp_path, limit):
  folder = tmp_path / 'work'
  kind, line, _ = start(pile, benchmark, folder, limit=limit)
  assert kind == 'UserError' and str(folder) in line
  assert start(pile, benchmark, folder)[0] == 'ended'
  assert test_recipe.contents(folder) == unbroken[0]
