"""The linear probe: classifiers of several inputs and rates, side by side.

Which of them is reported is chosen on validation images; the same one is then
measured on every test set.

Source: linear evaluation of DINOv2 (52 heads) and DINOv3 (13).
Differs: without validation images of their own, every tenth training image
  chooses, where the references choose on the test images.
"""

from dinojax.evals import linear_probe
from dinojax.evals import protocol
from dinojax.metrics import classification

TITLE = 'linear classifiers on CLS and the mean patch'
COST = ('train ten times or 500 steps, validation and test once; with --cache '
        'all once')
TRAINS = True  # heads
ROLES = {'train': protocol.Role('train'),
         'validation': protocol.Role('validation', needed=False),
         'test': protocol.Role('test')}
Settings = linear_probe.Settings
check = linear_probe.check
passes = linear_probe.passes


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracy of the classifier that is best on validation images.

  Raises:
    UserError: sources without labels or without a class in common.
    Stopped: a signal ended the training of the heads, whose step is saved.
  """
  train, = job.sets['train']
  tests = [(test, protocol.matched(
      job, protocol.labelled(train, 'data.train'),
      protocol.labelled(test, 'data.test')))
           for test in job.sets['test']]
  classifier = linear_probe.trained(
      job, settings, train, job.sets['validation'])
  out = []
  for test, matching in tests:
    rows = classifier.logits(test)
    rows = protocol.in_common(
        rows, matching.of_test(rows['label']), test.spec)
    out.append(protocol.classified(
        test, rows['index'], classification.best(rows['logits'], 5),
        rows['label'], classifier.classes, classifier.facts))
  return out
