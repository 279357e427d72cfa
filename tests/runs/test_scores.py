"""Lines of results: whole JSON, whatever there is no number for."""

import json

from etils import epath
import numpy as np

from dinojax.evals import protocol
from dinojax.runs import scores


def test_a_number_that_there_is_not_is_null(tmp_path):
  measured = protocol.Measured(
      'boxes:x.csv', {'index': np.arange(2)},
      lambda rows: {'AP': 12.5, 'AP small': float('nan')}, resamples=0)
  folder = epath.Path(tmp_path)
  scores.keep(folder, {'model': 'm', 'protocol': 'detection', 'key': 'k',
                       'px': '', 'weights': 'w'}, [measured], 1.0)
  def refuse(word):
    raise AssertionError(word)

  rows = [json.loads(line, parse_constant=refuse) for line in (
      tmp_path / scores.RESULTS).read_text().splitlines()]
  assert [row['value'] for row in rows] == [12.5, None]
  assert np.isnan(scores.read(folder)[1]['value'])
  assert 'nan' in scores.markdown(scores.read(folder))
