"""A method that nobody wrote Python for: YAML alone, and it trains."""

from __future__ import annotations

import pytest
import torch

from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.tasks.classification import Classification
from tests.distill import naive
from tests.distill.hand_made import batch, make, networks_for, steps

# Each student learns from the ensemble of all students' means.
MEAN_TEACHERS = """\
description: students learn from the ensemble of their own averages
nodes:
  student: {network: students}
  mean: {mean_of: student, decay: 0.99}
  crowd: {ensemble_of: mean, by: mean probabilities}
links:
  - {from: crowd, to: student, loss: kl, temperature: 2, ramp: {linear: 10 steps}}
deploy: {one: crowd}
"""


def test_kd_from_the_ensemble_of_the_peers_means(tmp_path) -> None:
    path = tmp_path / "mean_teachers.yaml"
    path.write_text(MEAN_TEACHERS)
    torch.manual_seed(0)
    method = load_method(str(path))
    cohort = Cohort(expand(method, 3), networks_for(method, 3), Classification()).train()
    images, labels = batch(images=8)
    losses = steps(cohort, images.float(), labels, 20, rate=0.05)
    assert losses[-1] < 0.5 * losses[0]
    # What ships is the ensemble of the averages, and it learned too.
    alone = cohort.eval().alone("crowd")
    held = {id(p) for p in alone.parameters()}
    assert held == {id(p) for p in cohort.averages.parameters()}
    with torch.no_grad():
        loss = naive.cross_entropy(alone.eval()(images.float()), labels)
    assert loss.item() < losses[0] / 3


def test_it_computes_what_it_says() -> None:
    made = make(MEAN_TEACHERS, 2)
    means = [made.cohort.averages[f"mean_{k}"](made.images) for k in range(2)]
    crowd = (torch.softmax(means[0], 1) + torch.softmax(means[1], 1)) / 2
    logits, terms, _ = made.cohort(made.images, made.labels)
    torch.testing.assert_close(torch.softmax(logits["crowd"], 1), crowd, atol=1e-10, rtol=0)
    for k in range(2):
        expected = naive.kl(crowd.log(), made.copies[f"student_{k}"](made.images), 2)
        found = terms[f"student_{k}/kl_from_crowd"]
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


# Other ideas that a reader of the papers may have; each is a few lines.
IDEAS = {
    "two losses at once": """\
nodes:
  teacher: {network: teacher, frozen: true}
  student: {network: students}
links:
  - {from: teacher, to: student, loss: dist, temperature: 4}
  - {from: teacher, to: student, loss: decoupled, beta: 2, weight: 0.5}
  - {from: teacher, to: student, loss: feature_mse, on: {from: stage 2, to: stage 1}}
  - {from: teacher, to: student, loss: contrastive, weight: 0.1}
deploy: {best_of: student}
""",
    "a teacher that learns from its students": """\
nodes:
  teacher: {network: teacher}
  student: {network: students}
  crowd: {ensemble_of: student, by: mean logits}
links:
  - {from: teacher, to: student, loss: kl, temperature: 4}
  - {from: crowd, to: teacher, loss: reverse_kl, weight: 0.1, ramp: {cosine: 3 epochs}}
deploy: {ensemble: student}
""",
    "one leads": """\
nodes:
  student: {network: students, supervised: 0.5}
links:
  - {from: student_0, to: student, loss: js, temperature: 2}
  - {from: student_0, to: student, loss: similarity}
views: student
deploy: {one: student_0}
""",
    "an assistant between teacher and students": """\
nodes:
  teacher: {network: teacher, frozen: true}
  assistant: {network: student}
  student: {network: students}
links:
  - {from: teacher, to: assistant, loss: kl, temperature: 4}
  - {from: assistant, to: student, loss: mse}
deploy: {ensemble: student}
""",
}


@pytest.mark.parametrize("idea", IDEAS)
def test_other_ideas_train_too(idea: str) -> None:
    made = make(IDEAS[idea], 3)
    losses = steps(made.cohort, made.images, made.labels, 4, rate=0.002)
    assert losses[-1] < losses[0]
