"""Commands that stand in for gcloud, srun and others, and what was asked."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
# Writes its arguments down, then says the next of its replies that fits.
_PROGRAM = '''#!{python} -SE
import json, pathlib, sys
here = pathlib.Path(__file__).parent
words = [pathlib.Path(__file__).name, *sys.argv[1:]]
with open(here / 'calls.jsonl', 'a') as f:
  f.write(json.dumps(words) + '\\n')
replies = json.loads((here / 'replies.json').read_text())
for reply in replies:
  if reply['when'] in ' '.join(words) and reply['texts']:
    texts = reply['texts']
    text = texts.pop(0) if len(texts) > 1 else texts[0]
    (here / 'replies.json').write_text(json.dumps(replies))
    print(text)
    sys.exit(reply['code'])
'''


class Fakes:
  """A folder of commands that come before the real ones."""

  def __init__(self, folder: pathlib.Path, *names: str):
    self.folder = folder
    for name in names:
      path = folder / name
      path.write_text(_PROGRAM.format(python=sys.executable))
      path.chmod(0o755)
    self._replies = []
    self.reply('nothing', '')

  def reply(self, when: str, *texts: str, code: int = 0):
    """Commands containing `when` print the texts in turn, the last for ever."""
    self._replies.append({'when': when, 'texts': list(texts), 'code': code})
    (self.folder / 'replies.json').write_text(json.dumps(self._replies))

  def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a script of launch/, with the fakes on its path."""
    script, *rest = words
    return subprocess.run(
        ['bash', str(LAUNCH / script), *rest], text=True, timeout=60,
        capture_output=True, cwd=ROOT, env=self.environment() | variables)

  def environment(self) -> dict[str, str]:
    """No variables but those that every shell has."""
    return {'PATH': f'{self.folder}:{os.environ["PATH"]}',
            'HOME': str(self.folder), 'TMPDIR': str(self.folder)}

  def calls(self) -> list[list[str]]:
    """What was run, in order."""
    path = self.folder / 'calls.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if (
        path.exists()) else []
