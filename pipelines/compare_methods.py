"""Every distillation method on one folder of tiles by class: same tiles and budget, several seeds.

    python pipelines/compare_methods.py --tiles crc_tiles --out runs --markdown table.md
    medkd import cifar cifar-10-batches-bin --out cifar10
    python pipelines/compare_methods.py --tiles cifar10 --out runs32 --stem-stride 1 --no-max-pool

A folder of tiles has a folder of images for each class. They are read once, made smaller, and split
into training, validation and test tiles, the same for every method and seed. Each method trains
teacher and students for the same number of epochs; a frozen teacher has as many of its own before,
which are counted in the seconds. The epoch is chosen by the validation log loss of what ships; the
test tiles are looked at once, after that.

Each run leaves a JSON file in --out; a rerun does those that are missing, and refuses files that
were made with other settings. The last line printed is a JSON object.

The split is of tiles, since such folders name no patients: neighbours of one patient may lie in
two roles. So this is a check that every method learns, and no result about tissue.

An array that 'medkd import cifar' or 'medkd import medmnist' wrote is read in its own size, with
the roles that it was published with. Where no validation images were published (CIFAR), they are a
tenth of the training images of each class, by --split-seed. Its images are turned, mirrored and
coloured as tiles are: compare the methods with each other, not with published figures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from comparison_data import FOLDER_SIZE_PX, read_roles
from comparison_run import Roles, Teachers, run
from comparison_tables import Figure, Run, against, interval, points, spread, table, within

from medkd import __version__
from medkd.config import Config, DataConfig, NetworkConfig, TrainConfig
from medkd.distill.method import load_method, method_names
from medkd.errors import MedkdError, TableError
from medkd.files import make_folder, sha256_of_json, write_json, write_text

BASELINE = "independent"
# A method learns clearly if every seed lies so many standard errors of guessing above chance.
ERRORS_ABOVE_CHANCE = 3
TILES_HELP = (
    "folder with a folder of images for each class, or what 'medkd import cifar' or 'medkd import "
    "medmnist' wrote"
)


def settings_of(arguments: argparse.Namespace, config: Config, roles: Roles) -> dict[str, Any]:
    """All that decides what a run gives, but for its method and seed."""
    wanted = ("teacher", "students", "epochs", "batch_size", "learning_rate", "weight_decay")
    train = config.train.model_dump(mode="json", include={*wanted, "warmup_epochs"})
    return {
        **train,
        "size_px": roles.train.images.shape[-1],
        "split_seed": arguments.split_seed,
        "classes": list(roles.classes),
        "tiles": [len(roles.train), len(roles.validation), len(roles.test)],
        "tiles_digest": roles.digest,
        "threads": arguments.threads,
        "software": f"medkd {__version__}, torch {torch.__version__}",
    }


def read_run(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A run that was finished before, None where there is none.

    Raises:
        TableError: it was made with other settings.
    """
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    keys = sorted({*settings, *found["settings"]})
    other = [key for key in keys if settings.get(key) != found["settings"].get(key)]
    if other:
        told = "; ".join(f"{k}: {found['settings'].get(k)}, now {settings.get(k)}" for k in other)
        raise TableError(
            f"was made with other settings ({told})",
            where=path,
            remedy="Give the same options, or another --out.",
        )
    return found


def configured(arguments: argparse.Namespace, classes: Sequence[str], seed: int) -> Config:
    """The options as the configuration that the loop takes."""
    small = {"stem_stride": arguments.stem_stride, "max_pool": arguments.max_pool}
    teacher = NetworkConfig(network=arguments.teacher, width=arguments.teacher_width, **small)
    student = NetworkConfig(network=arguments.student, width=arguments.student_width, **small)
    return Config(
        seed=seed,
        data=DataConfig(classes=tuple(classes), positive=classes[0]),
        train=TrainConfig(
            teacher=teacher,
            students=(student,) * arguments.students,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            warmup_epochs=arguments.warmup_epochs,
            device="cpu",
        ),
    )


def shipped(run: Run) -> float:
    """Test accuracy of what ships."""
    return run["shipped"]["accuracy"]


def of_nodes(key: str, value: str, figure: str = "accuracy") -> Figure:
    """A figure's mean over the nodes of a ``role`` or a ``set``; of a run without such, None."""

    def mean(run: Run) -> float | None:
        found = [node[figure] for node in run["nodes"].values() if node[key] == value]
        return statistics.fmean(found) if found else None

    return mean


def together(run: Run) -> float:
    """Test accuracy of the mean probability of the students."""
    return run["students_together"]["accuracy"]


def together_log_loss(run: Run) -> float:
    """Its log loss."""
    return run["students_together"]["log_loss"]


def ensembles(runs: Sequence[Run]) -> str:
    """Nodes that take others together, by name, each with its accuracy."""
    nodes = runs[0]["nodes"].values()
    names = dict.fromkeys(node["set"] for node in nodes if node["role"] == "ensemble")
    return ", ".join(f"{name} {spread(runs, of_nodes('set', name))}" for name in names)


def what_ships(run: Run) -> str:
    """In words."""
    deployed = run["deployed"]
    return f"mean of {len(deployed)} students" if len(deployed) > 1 else str(deployed[0])


def answers(by_method: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Did the bridge beat its teacher, and the ensemble of all peers its peers: differences."""
    all_peers = [of_nodes("set", "all_peers", figure) for figure in ("accuracy", "log_loss")]
    bridge, teacher, student = (
        [of_nodes("role", role, figure) for figure in ("accuracy", "log_loss")]
        for role in ("bridge", "teacher", "student")
    )
    mean_probability: list[Figure] = [together, together_log_loss]
    found = {}
    for method, runs in by_method.items():
        for title, ours, theirs in (
            ("bridge against its teacher", bridge, teacher),
            ("all_peers against a peer", all_peers, student),
            ("all_peers against the peers' mean probability", all_peers, mean_probability),
        ):
            accuracy, log_loss = (within(runs, a, b) for a, b in zip(ours, theirs, strict=True))
            if accuracy is not None:
                found[f"{method}: {title}"] = {"accuracy": accuracy, "log_loss": log_loss}
    return found


def print_report(
    runs: Sequence[Run],
    settings: dict[str, Any],
    failed: dict[str, str],
    markdown: Path | None,
    note: str,
) -> None:
    """Print the tables and a JSON object, and write the tables, with a note, to a file."""
    by_method: dict[str, list[Run]] = {}
    for one in runs:
        by_method.setdefault(one["method"], []).append(one)
    baseline = by_method.get(BASELINE, [])
    chance = 1 / len(settings["classes"])
    bound = chance + ERRORS_ABOVE_CHANCE * math.sqrt(chance * (1 - chance) / settings["tiles"][2])
    near_chance = [m for m, of_it in by_method.items() if min(map(shipped, of_it)) <= bound]
    student = of_nodes("role", "student")
    first = [
        [
            method,
            what_ships(of_it[0]),
            spread(of_it, shipped),
            points(against(of_it, baseline, shipped)) if method != BASELINE else "",
            f"{of_it[0]['parameters']:,}",
            f"{statistics.fmean(run['cpu_seconds'] for run in of_it):.0f}",
        ]
        for method, of_it in by_method.items()
    ]
    second = [
        [
            method,
            spread(of_it, of_nodes("role", "teacher")),
            spread(of_it, student),
            points(against(of_it, baseline, student)) if method != BASELINE else "",
            spread(of_it, together),
            spread(of_it, of_nodes("role", "leader")),
            ensembles(of_it),
            spread(of_it, of_nodes("role", "bridge")),
            spread(of_it, of_nodes("role", "mean")),
        ]
        for method, of_it in by_method.items()
    ]
    found = answers(by_method)
    text = "\n\n".join(
        [
            f"Test accuracy in percent, macro over {len(settings['classes'])} classes, mean ± "
            f"standard deviation over seeds; chance is {100 * chance:.0f}. Tiles for training, "
            f"validation and test: {settings['tiles']}. {note}",
            table(
                ("method", "ships", "accuracy", f"to {BASELINE}", "parameters", "CPU seconds"),
                first,
            ),
            f"'to {BASELINE}' is the difference seed by seed, in points, with the 95% interval by "
            "Student's t: wide with few seeds. CPU seconds: training and validation, those of a "
            "frozen teacher before included.",
            table(
                (
                    "method",
                    "teacher",
                    "a student",
                    f"to {BASELINE}",
                    "students' mean probability",
                    "leader",
                    "ensembles",
                    "bridge",
                    "a mean node",
                ),
                second,
            ),
            table(
                ("question", "accuracy, points", "seeds above 0", "log loss, nats"),
                [
                    [
                        name,
                        points(value["accuracy"]),
                        f"{value['accuracy']['above']} of {value['accuracy']['seeds']}",
                        interval(value["log_loss"]),
                    ]
                    for name, value in found.items()
                ],
            ),
            f"Not clearly above chance (some seed at {100 * bound:.1f} or below): "
            f"{', '.join(near_chance) or 'none'}.",
        ]
    )
    print(f"\n{text}\n")
    if markdown:
        write_text(markdown, text + "\n")
    told = {
        method: {
            "accuracy": [round(shipped(run), 4) for run in of_it],
            "to_independent": against(of_it, baseline, shipped),
        }
        for method, of_it in by_method.items()
    }
    last = {"chance": chance, "not_clearly_above_chance": near_chance, "failed": failed}
    print(json.dumps({**last, "questions": found, "methods": told}))


def compare(arguments: argparse.Namespace) -> int:
    """Do the runs that are missing, and print what all of them gave."""
    torch.set_num_threads(arguments.threads)
    roles, note = read_roles(arguments.tiles, arguments.size_px, arguments.split_seed)
    make_folder(arguments.out)
    teachers = Teachers()
    runs: list[Run] = []
    failed: dict[str, str] = {}
    settings: dict[str, Any] = {}
    wanted = [(seed, method) for seed in arguments.seeds for method in arguments.methods]
    for number, (seed, method) in enumerate(wanted, 1):
        config = configured(arguments, roles.classes, seed)
        settings = settings_of(arguments, config, roles)
        loaded = load_method(method)
        own = {**settings, "method_digest": sha256_of_json(loaded.spec.model_dump(mode="json"))}
        name = f"{loaded.name}-seed{seed}"
        found = read_run(arguments.out / f"{name}.json", own)
        told = "was there"
        if found is None:
            try:
                result = run(loaded, config, roles, teachers)
            except MedkdError as error:
                failed[name] = str(error)
                print(f"{number}/{len(wanted)} {name}: {error}", flush=True)
                continue
            found = {"method": loaded.name, "seed": seed, "settings": own, **result}
            write_json(arguments.out / f"{name}.json", found)
            told = f"{found['cpu_seconds']:.0f} s"
        runs.append(found)
        accuracy = 100 * found["shipped"]["accuracy"]
        print(f"{number}/{len(wanted)} {name}: {told}, test accuracy {accuracy:.1f}%", flush=True)
    print_report(runs, settings, failed, arguments.markdown, note)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Read the options and compare; the status to end with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tiles", type=Path, required=True, help=TILES_HELP)
    add("--out", type=Path, required=True, help="folder for a JSON file of each run")
    add("--methods", nargs="+", default=method_names(), help="names or YAML files; default: all")
    add("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of weights, order, augmentation")
    add("--markdown", type=Path, help="write the tables to this file, too")
    add("--size-px", type=int, help=f"side of a tile; default: {FOLDER_SIZE_PX}, an array's own")
    add("--split-seed", type=int, default=0, help="of the split into roles")
    add("--teacher", default="resnet18", help="its network")
    add("--teacher-width", type=float, default=0.5, help="factor on its channels")
    add("--student", default="resnet10", help="each student's network")
    add("--student-width", type=float, default=0.25, help="factor on its channels")
    add("--students", type=int, default=2, help="how many")
    add("--stem-stride", type=int, choices=(1, 2), help="of all networks; default: their own")
    add(
        "--max-pool", action=argparse.BooleanOptionalAction, help="in all stems; default: their own"
    )
    add("--epochs", type=int, default=6, help="of every method, and of a frozen teacher before")
    add("--batch-size", type=int, default=32, help="tiles in a step")
    add("--learning-rate", type=float, default=1e-3, help="AdamW's, at its peak; cosine to zero")
    add("--weight-decay", type=float, default=0.01, help="AdamW's")
    add("--warmup-epochs", type=float, default=0.5, help="of the learning rate")
    add("--threads", type=int, default=1, help="of torch")
    try:
        return compare(parser.parse_args(argv))
    except MedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
