"""What no file says of a method: how it differs from its neighbours, and what is this project's.

The order is that of docs/methods.md. A method without a note is an error.
"""

from __future__ import annotations

NOTES = {
    "independent": """
The baseline: the same networks and the same budget, and no link. The teacher is no part of what
ships; it is trained so that a run costs what one of `kd_ml` costs.
""",
    "kd_frozen": """
The oldest of them, and the only difference from `kd` is `frozen: true`. The source leaves the two
weights and the temperature to be chosen; weights of 1 and T = 4 are ours.
""",
    "kd": """
`kd_frozen` with a teacher that is trained at the same time, or `kd_ml` without the links among
the students: one of its ablations in the paper. Weights of 1 and T = 4 are ours.
""",
    "dml": """
`kd_ml` without its teacher: the other ablation. T = 1 and a weight of 1 are what
re-implementations that quote the paper have. The paper's algorithm 1 updates the networks one
after the other, each by new predictions: `update: alternating` does that. The paper reports each
network by itself; that their ensemble ships is ours.
""",
    "dml_e": """
`dml` with one target in place of K - 1: the mean of all other networks. With two students the two
are the same. The paper finds it the worse of the two. That the ensemble ships is ours.
""",
    "kd_ml": """
The project's main method: `kd` and `dml` in one. That the teacher is trained along with the
students and gets no gradient from them, and that the students' ensemble is the prediction, is the
paper's. Ours are the weights of 1, T = 4 from the teacher and T = 1 among the students, and that
the ensemble is the mean of probabilities.
""",
    "cml": """
`kd_ml` with a frozen teacher. The source uses it to detect text, with that task's losses and two
students; logits of classes, any number of students, T = 4 and T = 1, weights of 1 and the
ensemble are ours.
""",
    "learning_styles": """
`kd_ml` with shared work: one student learns from what the teacher predicts, another from its
features, and they exchange both, as in the paper. Ours: features are compared by attention
transfer at the last stage, T = 4 and T = 1, and the weight of 7.8125; students beyond the second
take part in the exchange alone. That weight is 500 / 64: the code of attention transfer has 1000
/ 2 times the mean over the places, and a CIFAR network's last map has 8 x 8 of them. There the two
are the same. On other maps the code's weight for the distance of two maps changes with their size,
to seven times as much at 3 x 3 ([results.md](results.md)); here it stays.
""",
    "sokd": """
As in `kd_frozen` the teacher is frozen; but the students never see it. Between them stands the
bridge, which learns from both sides. T = 4, weights of 1 and one joint step are those of the
authors' code. That code puts the frozen teacher into training mode, which moves the statistics of
its batch norm; here it stays in evaluation mode. The teacher's early stages with the bridge are
what the paper calls the improved teacher: look for the node `bridge` in the results. With several
students the bridge learns from the mean of its losses with them: ours.
""",
    "sokd_features": """
`sokd` whose bridge and students compare maps, not predictions; what the frozen teacher tells the
bridge stays as it is. Attention transfer at the last stage is ours, and so is its weight of
7.8125: that of `learning_styles`, for the reason told there.
""",
    "kdcl": """
The teacher is just one more learner: every network has the same target, to which it has
contributed itself, and sees an augmentation of its own. The source builds that target in several
ways, for instance from the network with the lowest loss; the plain mean of the logits is our
choice.
""",
    "one": """
One target for all branches, as in `pcl`, but a weighted sum of their logits in place of a
classifier on their features, and no means. T = 3 and 80 epochs of ramp are as in the code of
OKDDip's authors, who compare with it. There the gradient also flows into the target; that it is
detached here is ours.
""",
    "okddip": """
Where `one` has one target for all, every peer has its own mix here, and what ships is a leader
that teaches no one. In the authors' code neither target is detached. Here the mixes are not, for
nothing else would train their attention (and so the gradient also reaches the peers that are
mixed); that the leader's target is detached is ours, and so is mixing logits, not probabilities.
The authors count the leader among their branches; here it is one more network than
`train.students` says. For the networks of its tables see `pcl`.
""",
    "pcl": """
Two teachers that cost nothing to deploy: the peers' ensemble, and the running mean of each peer,
from which the others learn. T, decay and ramp are the paper's, and so are views of their own.
Ours: a mean sees the view of the peer that it averages and runs in evaluation mode, batch norm in
the common stages sees all views together, and the ramp is a share (80 of 300 epochs), so that a
shorter training has it all.

To set a run beside the paper's figures, mind the networks. It reports ResNet-110, DenseNet-40-12
and WRN-20-8; the code of OKDDip, which papers on online distillation follow, does not mean by these
what first had the names, and of wide ResNets there is none of 20 layers. Here those variants are
`cifar-resnet110-bottleneck`, `densenet-bc-40-12` and `wrn-20-8` ([networks.md](networks.md)). That
the paper has the same ones we suppose. A peer's own part is the last stage and the classifier, as
in the paper; in networks that know no such word (VGG-16, DenseNet) the last stage begins with the
last max-pool between convolutions, or the last transition: ours.
""",
    "pcl_e": """
Trained just as `pcl`; it ships the ensemble, which costs the common stages once and the last
stage of every peer.
""",
}
