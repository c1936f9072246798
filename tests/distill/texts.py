"""Two methods as YAML, to be read and to be changed for the worse."""

from __future__ import annotations

GOOD = """\
nodes:
  teacher: {network: teacher}
  student: {network: students}
links:
  - {from: teacher, to: student, loss: kl, temperature: 4}
  - {from: student, to: student, loss: kl}
deploy: {ensemble: student}
"""

# Every kind of node.
RICH = """\
nodes:
  teacher: {network: teacher, frozen: true}
  bridge: {bridge_of: teacher}
  peer: {network: students, share: all but last}
  leader: {network: student, share_with: peer}
  mean: {mean_of: peer, decay: 0.99}
  gate: {ensemble_of: peer, by: gate}
  mix: {ensemble_of: peer, by: attention}
  others: {ensemble_of: peer, by: mean logits, without: own}
  all: {ensemble_of: [teacher, peer], by: mean probabilities}
views: peer
links:
  - {from: teacher, to: bridge, loss: kl, temperature: 4}
  - {from: mean, to: peer, pairs: others, loss: kl, ramp: {linear: 3 epochs}}
  - {from: mix, to: peer, pairs: own, loss: kl, detach: false}
  - {from: bridge, to: peer, loss: attention, on: stage -1}
  - {from: all, to: leader, loss: js, temperature: 2}
deploy: {one: leader}
"""


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)
