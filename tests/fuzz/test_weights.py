"""Damaged weight files: a result or a sentence, and no code is run."""

import pytest

from tests.fuzz import mutate
from tests.fuzz import weights

# What makes the whole files, and how many formats they are of.
KINDS = {'binary': (weights.seeds, 6), 'text': (weights.texts, 4)}


@pytest.mark.torch
@pytest.mark.parametrize('tries', [
    60, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', KINDS)
def test_damaged_files_are_a_result_or_a_sentence(kind, tries):
  """`tries` mutants of each format, in one child process."""
  make, formats = KINDS[kind]
  outcomes = mutate.outcomes(
      list(make().values()), f'tests.fuzz.weights:{kind}', tries * formats,
      seed=tries)
  assert not outcomes.faults, outcomes.report()
  assert min(outcomes.counts['read'], outcomes.counts['refused']) > tries // 10
