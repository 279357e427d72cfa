"""A run that is started again compares its data; nothing is compiled here."""

import types

from PIL import Image
import pytest

from configs import small_images
from dinojax.core import errors
from dinojax.engine import checkpoint
from dinojax.runs import assemble


def test_a_start_on_other_data_is_refused_unless_accepted(
    tmp_path, monkeypatch, capsys):
  for i in range(9):
    path = tmp_path / 'images' / 'ab'[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (32, 32), (20 * i, 0, 0)).save(path)
  config = small_images.get_config('smoke')
  config.data.train = f'folder:{tmp_path}/images'
  config.data.validation = ''
  config.train.batch_size = 32
  config.train.check_memory = False  # which traces the step
  monkeypatch.setattr(assemble.loop, 'run', lambda run: types.SimpleNamespace(
      finished=False))
  start = lambda: assemble.train(config, str(tmp_path / 'run'))

  start()
  assert (tmp_path / 'run' / 'data.json').exists()
  (tmp_path / 'images' / 'a' / '0.png').unlink()
  monkeypatch.setattr(checkpoint.Checkpoints, 'latest', lambda self: 1)
  monkeypatch.setattr(assemble.initial_weights.InitialWeights, 'check',
                      lambda *args: None)
  with pytest.raises(errors.UserError, match=r'0 came, 1 went \(a/0\.png'):
    start()
  config.data.accept_changes = True
  start()
  assert 'goes on with other data' in capsys.readouterr().out
