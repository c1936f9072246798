"""What a detection task is: matching, supervised loss, ensembles, and a cohort of detectors."""

from __future__ import annotations

import copy
import logging
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from medkd.distill.cohort import Cohort
from medkd.distill.detection_links import DETECTION_LOSSES
from medkd.distill.ensembles import Member
from medkd.distill.graph import expand
from medkd.distill.method import load_method, parse_method
from medkd.errors import MethodError
from medkd.networks.anchor_grid import AnchorGrid
from medkd.networks.detector import Detector, build_detector
from medkd.tasks import detection
from medkd.tasks.detection import Detection
from tests.distill import naive_detection as naive
from tests.distill.hand_made import toy

GRID = AnchorGrid(64, (8, 16), ((16, 24), (32, 48)), (1.0,))
TASK = Detection(GRID, ("polyp", "tool"))
ANCHORS = GRID.boxes().double()
BACKGROUND = [-1.0, 0.0, 0.0, 0.0, 0.0]


def random_labels(images: int, most: int, *, seed: int = 0) -> Tensor:
    """From no box to ``most`` in an image, with padding; float32 images x most x 5."""
    generator = torch.Generator().manual_seed(seed)
    corners = 44 * torch.rand(images, most, 2, generator=generator)
    sides = 6 + 40 * torch.rand(images, most, 2, generator=generator)
    boxes = torch.cat([corners, (corners + sides).clamp(max=64)], dim=-1)
    classes = torch.randint(2, (images, most, 1), generator=generator)
    rows = torch.cat([classes, boxes], dim=-1)
    for number, image in enumerate(rows):
        image[number % (most + 1) :] = torch.tensor(BACKGROUND)
    return rows


def random_logits(images: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, GRID.count, 6, generator=generator, dtype=dtype)


def label(*boxes: tuple[float, ...], of_class: float = 0.0) -> Tensor:
    """Of one image."""
    return torch.tensor([[[of_class, *box] for box in boxes]])


def number_of(*box: int) -> int:
    """Of the anchor that is this box."""
    return ANCHORS.tolist().index([float(edge) for edge in box])


# Matching.


@pytest.mark.parametrize("grid", [GRID, AnchorGrid(64, (8, 16, 32), ((24,), (40,), (60,)), (1.0,))])
def test_anchors_are_matched_by_the_papers_rule(grid: AnchorGrid) -> None:
    labels = random_labels(12, 3)
    targets = Detection(grid, ("polyp", "tool")).targets(labels)
    assert targets.shape == (12, grid.count, 5)
    assert targets.dtype == torch.float32
    anchors = grid.boxes().tolist()
    sizes = [side * side * grid.per_cell for side in grid.sides]
    counts = []
    for image, found in zip(labels, targets, strict=True):
        rows = [row for row in image.tolist() if row[0] >= 0]
        matched = naive.atss([row[1:] for row in rows], anchors, sizes, grid.per_cell, 9)
        expected = [rows[number] if number >= 0 else BACKGROUND for number in matched]
        torch.testing.assert_close(found, torch.tensor(expected), atol=0, rtol=0)
        counts.append(sum(number >= 0 for number in matched))
    assert counts[0] == 0
    assert max(counts) > 5


def test_an_anchor_of_two_boxes_goes_to_the_one_it_overlaps_more() -> None:
    """Either alone has the anchor; of the two the second is the anchor itself."""
    first, second = (14.0, 16.0, 38.0, 40.0), (16.0, 16.0, 40.0, 40.0)
    here = number_of(16, 16, 40, 40)
    assert TASK.targets(label(first))[0, here].tolist() == [0.0, *first]
    for pair in ((first, second), (second, first)):
        assert TASK.targets(label(*pair))[0, here].tolist() == [0.0, *second]


def test_padding_may_be_anywhere() -> None:
    box, other = [0.0, 8.0, 8.0, 30.0, 30.0], [1.0, 40.0, 40.0, 60.0, 62.0]
    plain = TASK.targets(torch.tensor([[box, other]]))
    padded = TASK.targets(torch.tensor([[BACKGROUND, box, BACKGROUND, other, BACKGROUND]]))
    assert torch.equal(plain, padded)
    assert set(plain[..., 0].flatten().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("most", [0, 1, 4])
def test_images_without_boxes_are_all_background(most: int) -> None:
    labels = torch.tensor(BACKGROUND).expand(3, most, 5)
    assert torch.equal(TASK.targets(labels), torch.tensor(BACKGROUND).expand(3, GRID.count, 5))


@pytest.mark.parametrize(
    "bad",
    [
        (20.0, 20.0, 20.0, 40.0),
        (20.0, 20.0, 20.0, 20.0),
        (30.0, 20.0, 20.0, 40.0),
        (-30.0, 10.0, -2.0, 40.0),
        (64.0, 10.0, 90.0, 40.0),
        (math.nan, 10.0, 30.0, 40.0),
    ],
    ids=["no width", "a point", "turned", "left of the image", "right of it", "not a number"],
)
def test_boxes_without_area_in_the_image_are_left_out(bad: tuple[float, ...]) -> None:
    good = (8.0, 8.0, 30.0, 30.0)
    assert torch.equal(TASK.targets(label(bad, good)), TASK.targets(label(good)))
    assert (TASK.targets(label(bad))[..., 0] == -1).all()


def test_boxes_are_cut_at_the_images_edges() -> None:
    whole = TASK.targets(label((-20.0, 30.0, 20.0, 99.0)))
    assert torch.equal(whole, TASK.targets(label((0.0, 30.0, 20.0, 64.0))))
    assert (whole[..., 0] == 0).any()


def test_a_box_between_the_centres_of_anchors_is_no_ones() -> None:
    """Centres are at 4, 12, 20 ... px."""
    assert (TASK.targets(label((5.0, 5.0, 11.0, 11.0)))[..., 0] == -1).all()
    assert (TASK.targets(label((3.0, 3.0, 11.0, 11.0)))[..., 0] == 0).any()


def test_matching_leaves_the_root_logger_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's matcher would set it up, and other libraries' messages would be on the terminal."""
    monkeypatch.setattr(logging.root, "handlers", [])
    detection._matcher.cache_clear()
    TASK.targets(label((8.0, 8.0, 30.0, 30.0)))
    assert logging.root.handlers == []


def test_what_was_validated_first_can_be_trained() -> None:
    """The anchors that are kept do not stay in the mode of who asked first."""
    detection._anchors.cache_clear()
    with torch.inference_mode():
        TASK.predictions(random_logits(1))
    assert not TASK._anchors(random_logits(1)).is_inference()
    logits = random_logits(1).requires_grad_()
    TASK.supervised_loss(logits, TASK.targets(label((8.0, 8.0, 30.0, 30.0)))).backward()
    assert logits.grad is not None


# Supervised loss.


def test_the_supervised_loss_equals_its_formula() -> None:
    labels = random_labels(4, 3)
    targets = TASK.targets(labels)
    logits = random_logits(4).requires_grad_()
    value = TASK.supervised_loss(logits, targets)
    expected = naive.supervised(logits, targets.double(), ANCHORS)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=0)
    ours = torch.autograd.grad(value, logits)
    theirs = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_the_supervised_loss_by_hand() -> None:
    """Every logit is 0, every box its anchor: focal terms of ln 2 / 4, times alpha or the rest."""
    box = (24.0, 24.0, 40.0, 40.0)
    targets = TASK.targets(label(box))
    ours = targets[0, :, 0] == 0
    count = int(ours.sum())
    focal = math.log(2) / 4 * (0.25 * count + 0.75 * (2 * GRID.count - count))
    sides = (ANCHORS[ours][:, 2] - ANCHORS[ours][:, 0]).tolist()
    centres = ((ANCHORS[ours][:, :2] + ANCHORS[ours][:, 2:]) / 2 - 32).abs().tolist()
    apart = []
    for side, (dx, dy) in zip(sides, centres, strict=True):
        shared = math.prod(min(16, side, 8 + side / 2 - d) for d in (dx, dy))
        hull = math.prod(max(16, side, 8 + side / 2 + d) for d in (dx, dy))
        union = 16**2 + side**2 - shared
        apart.append(1 - (shared / union - (hull - union) / hull))
    value = TASK.supervised_loss(torch.zeros(1, GRID.count, 6), targets)
    assert count > 1
    assert value.item() == pytest.approx((focal + sum(apart)) / count, rel=1e-5)


def test_without_boxes_only_classes_are_learned() -> None:
    """And the sum over anchors is divided by 1."""
    logits = random_logits(2).requires_grad_()
    targets = TASK.targets(torch.zeros(2, 0, 5))
    value = TASK.supervised_loss(logits, targets)
    p = logits[..., :2].sigmoid()
    assert value.item() == pytest.approx(-(0.75 * p**2 * (1 - p).log()).sum().item())
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[..., :2].abs().min() > 0
    assert not gradient[..., 2:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e2, 1e8])
@pytest.mark.parametrize("most", [0, 3])
def test_losses_and_gradients_are_finite(most: int, size: float, dtype: torch.dtype) -> None:
    """Also for boxes of no area and outside of the image."""
    labels = random_labels(4, 3)[:, :most]
    if most:
        labels[1, 1] = torch.tensor([1.0, 20, 20, 20, 20])
        labels[2, 1] = torch.tensor([1.0, 200, 200, 300, 300])
    targets = TASK.targets(labels)
    logits = (size * random_logits(4)).to(dtype).requires_grad_()
    other = (size * random_logits(4, seed=1)).to(dtype)
    losses = [TASK.supervised_loss(logits, targets)]
    losses += [
        TASK.link_losses[name].compute(other, logits, targets=targets) for name in ("kl", "box")
    ]
    for loss in losses:
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()


def test_learning_by_the_supervised_loss_finds_the_box() -> None:
    """Logits of an image, moved by their gradient alone."""
    box = [20.0, 12.0, 45.0, 40.0]
    labels = torch.tensor([[[1.0, *box]]])
    logits = torch.zeros(1, GRID.count, 6).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    targets = TASK.targets(labels)
    for _ in range(150):
        optimizer.zero_grad()
        TASK.supervised_loss(logits, targets).backward()
        optimizer.step()
    with torch.no_grad():
        predictions = TASK.predictions(logits)
    best = predictions[0, predictions[0, :, 1].argmax()]
    assert best[1] > 0.8
    assert best[0] < 0.2
    torch.testing.assert_close(best[2:], torch.tensor(box), atol=0.5, rtol=0)
    assert TASK.metrics(predictions, labels)["ap75"] == pytest.approx(1)


# Links.


def test_links_know_the_anchors() -> None:
    target, learner = random_logits(2), random_logits(2, seed=1)
    targets = TASK.targets(random_labels(2, 1, seed=4))
    losses = TASK.link_losses
    of_features = {"attention", "similarity", "feature_mse", "contrastive"}
    assert losses.keys() == DETECTION_LOSSES.keys() | of_features
    class_kl = losses["class_kl"].compute(target, learner, targets=targets, temperature=4.0)
    box = losses["box"].compute(target, learner, targets=targets)
    both = losses["kl"].compute(target, learner, targets=targets, temperature=4.0)
    expected = naive.box(target, learner, targets, ANCHORS, 64, 0.3)
    torch.testing.assert_close(box, expected, atol=1e-10, rtol=0)
    expected = naive.class_kl(target, learner, targets, 4)
    torch.testing.assert_close(class_kl, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(both, class_kl + box, atol=1e-12, rtol=0)
    in_single = losses["box"].compute(target.float(), learner.float(), targets=targets)
    assert in_single.dtype == torch.float32
    assert in_single.item() == pytest.approx(box.item(), rel=1e-5)


def test_a_task_can_be_copied_and_sent() -> None:
    task = pickle.loads(pickle.dumps(copy.deepcopy(TASK)))
    assert task == TASK
    target, learner = random_logits(1), random_logits(1, seed=1)
    targets = TASK.targets(random_labels(1, 1))
    values = [
        one.link_losses["box"].compute(target, learner, targets=targets) for one in (TASK, task)
    ]
    assert values[0] == values[1]


# Networks.


def detector(grid: AnchorGrid = GRID, classes: int = 2, channels: int = 16) -> Detector:
    """Stages of 4, 8 and 16 px, of 4 channels."""
    return build_detector(toy(4), grid, classes, channels=channels)


def test_networks_that_cannot_do_the_task_are_told_why() -> None:
    assert TASK.refusal(detector()) == ""
    assert TASK.refusal(toy(4)) == "it is no detector, and boxes are looked for"
    assert TASK.refusal(detector(classes=1)) == "its classes are 1, and the task's 2"
    other = AnchorGrid(64, (8,), ((16, 25.5),), (0.5, 2.0))
    assert TASK.refusal(detector(other)) == (
        "its anchors are of 16, 25.5 px with ratios 0.5, 2, on strides of 8 px in images of 64 px, "
        "and the task's of 16, 24 / 32, 48 px with ratios 1, on strides of 8, 16 px in images of "
        "64 px"
    )


# Ensembles.


def member(logits: Tensor, *, alive: bool = True) -> Member:
    return Member(logits, None, None, torch.tensor(alive))


def test_probabilities_are_the_mean_of_the_members() -> None:
    logits = [random_logits(2, seed=seed) for seed in range(3)]
    combined = TASK.mean_probabilities([member(one) for one in logits])
    mean = torch.stack([one[..., :2].sigmoid() for one in logits]).mean(0)
    torch.testing.assert_close(combined[..., :2].sigmoid(), mean, atol=1e-12, rtol=0)
    codes = sum(one[..., 2:] for one in logits) / 3
    torch.testing.assert_close(combined[..., 2:], codes, atol=1e-12, rtol=0)


def test_probabilities_near_0_and_1_keep_their_logits() -> None:
    """Mean of sigmoid(-80) and sigmoid(-90): log(e^-80 + e^-90) - log 2; likewise above."""
    expected = math.log(math.exp(-80) + math.exp(-90)) - math.log(2)
    for sign in (1, -1):
        ends = [torch.full((1, 1, 5), sign * size) for size in (80.0, 90.0)]
        combined = TASK.mean_probabilities([member(one) for one in ends])
        assert combined[0, 0, 0].item() == pytest.approx(-sign * expected)


def test_the_dead_count_for_nothing() -> None:
    living = [random_logits(2, seed=seed).requires_grad_() for seed in range(2)]
    dead = torch.full_like(living[0], math.nan, requires_grad=True)
    combined = TASK.mean_probabilities(
        [member(living[0]), member(dead, alive=False), member(living[1])]
    )
    alone = TASK.mean_probabilities([member(one) for one in living])
    torch.testing.assert_close(combined, alone, atol=1e-12, rtol=0)
    combined.sum().backward()
    for logits in (*living, dead):
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
    assert not dead.grad.any()
    no_one = TASK.mean_probabilities([member(dead, alive=False)] * 2)
    assert torch.equal(no_one, torch.zeros_like(no_one))


# Predictions.


def test_predictions_are_probabilities_and_boxes_in_the_image() -> None:
    logits = torch.zeros(1, GRID.count, 6)
    logits[0, 0] = torch.tensor([math.log(3), -math.log(3), 1.0, 0.5, math.log(2), 0.0])
    predictions = TASK.predictions(logits)
    # The first anchor is 16 px about (4, 4): moved by 16 and 8, 32 wide: 4 to 36, 4 to 20.
    expected = torch.tensor([0.75, 0.25, 4.0, 4.0, 36.0, 20.0])
    torch.testing.assert_close(predictions[0, 0], expected)
    # The second is 24 px about (4, 4), and reaches beyond the image.
    torch.testing.assert_close(predictions[0, 1], torch.tensor([0.5, 0.5, 0, 0, 16, 16]))
    mean = TASK.mean_prediction([predictions, torch.zeros_like(predictions)])
    torch.testing.assert_close(mean, predictions / 2)


def test_metrics_of_what_is_found_and_of_what_is_not() -> None:
    """Two of three boxes are found, with nothing wrong but one box in an empty image."""
    labels = torch.tensor(
        [
            [[0.0, 16, 16, 40, 40], BACKGROUND],
            [[0.0, 16, 16, 40, 40], [0.0, 2, 44, 20, 62]],
            [BACKGROUND, BACKGROUND],
        ]
    )
    logits = torch.full((3, GRID.count, 6), -9.0)
    logits[..., 2:] = 0
    here = number_of(16, 16, 40, 40)
    logits[:, here, 0] = torch.tensor([3.0, 2.0, 1.0])
    metrics = TASK.metrics(TASK.predictions(logits), labels)
    assert all(isinstance(value, float) for value in metrics.values())
    # Precision is 1 up to a recall of 2/3, which 67 of the 101 points are below.
    for name in ("ap", "ap50", "ap75"):
        assert metrics[name] == pytest.approx(67 / 101)
    assert metrics["recall_at_1_fp"] == pytest.approx(2 / 3)
    assert metrics["sensitivity"] == 1
    assert metrics["mean_iou"] == pytest.approx(2 / 3)
    assert metrics["fp_per_negative_image"] == 0
    assert TASK.criterion.cost(metrics) == pytest.approx(-67 / 101)
    assert "fp_per_negative_image" not in TASK.metrics(TASK.predictions(logits[:2]), labels[:2])


def test_example_labels_have_something_to_learn() -> None:
    labels = TASK.example_labels(3, torch.device("cpu"))
    assert labels.tolist() == [[[0.0, 16.0, 16.0, 48.0, 48.0]]] * 3
    assert (TASK.targets(labels)[..., 0] == 0).any(dim=1).all()


# In a cohort.


def networks() -> dict[str, Detector]:
    """Sure enough of something that their boxes are compared: at birth they say 0.01."""
    torch.manual_seed(0)
    found = {"teacher": detector(channels=24), "student_0": detector(), "student_1": detector()}
    for network in found.values():
        nn.init.normal_(network.classifier.classification.cls_logits.weight, std=0.2)
        nn.init.constant_(network.classifier.classification.cls_logits.bias, -0.8)
    return found


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 64, 64, generator=generator, dtype=torch.float64)


LABELS = random_labels(3, 3, seed=2)


def test_kd_ml_serves_as_it_is() -> None:
    """Its terms, by the transcription; and whom each of them teaches."""
    cohort = Cohort(expand(load_method("kd_ml"), 2), networks(), TASK).double().train()
    logits, terms, alive = cohort(images(), LABELS)
    assert all(alive.values())
    targets = TASK.targets(LABELS)
    z = {name: value.detach() for name, value in logits.items()}

    def kl(source: str, learner: str, temperature: float) -> Tensor:
        return naive.class_kl(z[source], z[learner], targets, temperature) + naive.box(
            z[source], z[learner], targets, ANCHORS, 64, 0.3
        )

    expected = {
        f"{name}/supervised": naive.supervised(own, targets.double(), ANCHORS)
        for name, own in z.items()
    }
    for k in range(2):
        expected[f"student_{k}/kl_from_teacher"] = kl("teacher", f"student_{k}", 4)
        expected[f"student_{k}/kl_from_student"] = kl(f"student_{1 - k}", f"student_{k}", 1)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term.detach(), expected[name], atol=1e-10, rtol=0)
        assert term > 0
    parameters = cohort.parameters_by_node()
    for name, term in terms.items():
        learner = name.split("/")[0]
        term.backward(retain_graph=True)
        for owner, own in parameters.items():
            assert any(p.grad is not None for p in own) == (owner == learner), (name, owner)
        cohort.zero_grad(set_to_none=True)


def test_a_perfect_copy_has_no_kl() -> None:
    one = networks()["teacher"]
    copies = {name: copy.deepcopy(one) for name in ("teacher", "student_0", "student_1")}
    cohort = Cohort(expand(load_method("kd_ml"), 2), copies, TASK).double()
    terms = cohort(images(), LABELS).terms
    links = [term.item() for name, term in terms.items() if "kl" in name]
    assert len(links) == 4
    assert links == pytest.approx([0] * 4, abs=1e-12)


METHOD = """
description: links of detectors
source: none
nodes:
  teacher: {network: teacher}
  student: {network: students}
links:
"""
LINK = "  - {{from: teacher, to: student, loss: {}}}\n"
DEPLOY = "deploy: {ensemble: student}\n"


def method_of(*losses: str) -> str:
    return METHOD + "".join(LINK.format(loss) for loss in losses) + DEPLOY


@pytest.mark.parametrize(
    "losses", [("class_kl",), ("box",), ("imitation",), ("class_kl", "box", "imitation")]
)
def test_each_link_alone_and_together(losses: tuple[str, ...]) -> None:
    """Of pyramids of different width; the projection is the learner's."""
    cohort = Cohort(expand(parse_method(method_of(*losses), "mine"), 2), networks(), TASK)
    cohort.double().train()
    terms = cohort(images(), LABELS).terms
    links = [name for name in terms if not name.endswith("/supervised")]
    assert len(links) == 2 * len(losses)
    for name in links:
        assert terms[name].isfinite()
        assert terms[name] > 0
    torch.stack([terms[name] for name in links if name.startswith("student_0")]).sum().backward()
    for owner, parameters in cohort.parameters_by_node().items():
        taught = any(p.grad is not None and p.grad.any() for p in parameters)
        assert taught == (owner == "student_0"), owner
    projected = [p.grad for p in cohort.projections.parameters() if p.grad is not None]
    assert len(projected) == ("imitation" in losses)


def test_a_batch_without_a_box_teaches_all() -> None:
    method = parse_method(method_of("kl", "imitation"), "mine")
    cohort = Cohort(expand(method, 2), networks(), TASK).double().train()
    terms = cohort(images(), torch.zeros(3, 0, 5)).terms
    torch.stack(list(terms.values())).sum().backward()
    for name, parameters in cohort.parameters_by_node().items():
        for parameter in parameters:
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert terms["student_0/imitation_on_pyramid_from_teacher"].item() == 0


def test_another_grid_is_refused_with_the_methods_line() -> None:
    found = networks()
    found["student_1"] = detector(AnchorGrid(64, (8, 16), ((16, 24), (32, 40)), (1.0,)))
    with pytest.raises(MethodError) as error:
        Cohort(expand(load_method("kd_ml"), 2), found, TASK)
    assert "'student_1' does not fit: its anchors are of 16, 24 / 32, 40 px" in str(error.value)
