"""``medkd import``: data sets as others publish them, brought into the project's tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from medkd.cli_import_summary import finish, tell_array, tell_boxes, tell_tile_set
from medkd.errors import ConfigError
from medkd.terminal import output_console, print_table

import_app = typer.Typer(
    no_args_is_help=True,
    help="Bring data sets as others publish them into the project's tables.",
)

PatientColumn = Annotated[
    str | None,
    typer.Option("--patient-column", help="Column of the patient; usual names are found."),
]
SheetOption = Annotated[
    str | None, typer.Option("--sheet", help="Of workbooks with more than one.")
]


def _pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        word, equals, label = text.partition("=")
        if not (word and equals):
            raise ConfigError(
                "is not WORD=LABEL", where=f"{option} {text}", remedy="Write MSI-H=MSI."
            )
        pairs[word] = label
    return pairs


@import_app.command("labels")
def labels(
    tables: Annotated[
        list[Path], typer.Argument(help="Clinical tables: CSV, TSV or XLSX.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for labels and report.")],
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            help="consensus (what most sources say), exclude-discordant (what all say) or "
            "source=NAME.",
        ),
    ] = "consensus",
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            help="NAME=COLUMN:READING, where READING is a threshold (0.4), two (0.4..0.6) or words "
            "(MSI-H=MSI,MSS=MSS). Liu, MANTIS and MSIsensor are found by their columns.",
        ),
    ] = None,
    patient_column: PatientColumn = None,
    sheet: SheetOption = None,
) -> None:
    """Compare sources of MSI labels, name the discordant patients, and settle on labels."""
    from medkd.importers.label_report import (
        LABELS_NAME,
        TABLE_NAME,
        TEXT_NAME,
        make_label_report,
        print_label_report,
        write_label_report,
    )

    report = make_label_report(
        tables, sources=sources or (), rule=rule, patient_column=patient_column, sheet=sheet
    )
    write_label_report(report, out)
    print_label_report(report, output_console())
    print(f"Labels: {out / LABELS_NAME}")
    print(f"Report: {out / TEXT_NAME}; every patient: {out / TABLE_NAME}")
    finish(report.problems, out / TABLE_NAME)


@import_app.command("slides")
def slides(
    slide_table: Annotated[Path, typer.Argument(help="A row for each slide.", show_default=False)],
    clinical: Annotated[
        Path, typer.Option("--clinical", help="A row for each patient; may be the same file.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The table to write.")] = Path("slides.csv"),
    label: Annotated[
        str | None, typer.Option("--label", help="Column of the label, such as isMSIH.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option("--map", help="WORD=LABEL; may be repeated. WORD= leaves its patients out."),
    ] = None,
    slides_folder: Annotated[
        Path | None,
        typer.Option("--slides-folder", help="Where the slides lie, in folders or not."),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Only slides that match, such as DX[0-9].")
    ] = None,
    patient_column: PatientColumn = None,
    slide_column: Annotated[
        str | None, typer.Option("--slide-column", help="Column of the slide.")
    ] = None,
    site_column: Annotated[
        str | None, typer.Option("--site-column", help="Column of the hospital.")
    ] = None,
    sheet: SheetOption = None,
) -> None:
    """Join a slide table with a clinical table (CSV, TSV or XLSX) to slides.csv."""
    from medkd.importers.names import compile_pattern
    from medkd.importers.slide_tables import SlideTableOptions, import_slide_table

    options = SlideTableOptions(
        label_column=label,
        label_of=_pairs(words or (), "--map"),
        patient_column=patient_column,
        slide_column=slide_column,
        site_column=site_column,
        slides_folder=slides_folder,
        only=None if only is None else compile_pattern(only, "--only"),
        sheet=sheet,
    )
    summary = import_slide_table(slide_table, clinical, out, options)
    print_table(
        "Slides",
        ("label", "patients", "slides"),
        ((name, summary.patients[name], summary.slides[name]) for name in sorted(summary.slides)),
    )
    if summary.excluded:
        print(f"Not matched by --only: {summary.excluded:,} slides.")
    if summary.unlabelled:
        print(f"Of patients without a label: {summary.unlabelled:,} slides.")
    print(f"Table: {out}")
    if slides_folder is None:
        print("Its paths are as in the slide table; --slides-folder finds the files.")
    finish(summary.problems)


RootArgument = Annotated[Path, typer.Argument(help="The data set's folder.", show_default=False)]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the tables.")]
CopyOption = Annotated[
    bool, typer.Option("--copy", help="Copy the images too; otherwise they stay where they are.")
]
DecodeOption = Annotated[
    bool,
    typer.Option("--decode", help="Decode every image once, which finds files that were cut off."),
]
MppOption = Annotated[
    float | None, typer.Option("--mpp", help="Resolution of the tiles, um/px.", min=0.01)
]


@import_app.command("tcga-tiles")
def tcga_tiles(
    root: RootArgument,
    out: OutOption,
    mpp: MppOption = None,
    validation: Annotated[
        float,
        typer.Option(
            "--validation", help="Share of the training patients that validate.", min=0, max=0.9
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Draws them.", min=0)] = 0,
    copy: CopyOption = False,
    decode: DecodeOption = False,
) -> None:
    """The published MSI and MSS tiles of TCGA: folders CRC_DX_{TRAIN,TEST}_{MSIMUT,MSS}."""
    from medkd.importers.tcga_tiles import PUBLISHED_MPP, import_tcga_tiles

    summary = import_tcga_tiles(
        root,
        out,
        mpp=mpp or PUBLISHED_MPP,
        copy=copy,
        decode=decode,
        validation=validation,
        seed=seed,
    )
    tell_tile_set(summary, out)


@import_app.command("class-folders")
def class_folders(
    root: RootArgument,
    out: OutOption,
    patient: Annotated[
        str | None,
        typer.Option(
            "--patient", help="Pattern of the patient in a file's name, such as '^([^_]+)_'."
        ),
    ] = None,
    no_patients: Annotated[
        bool, typer.Option("--no-patients", help="Nobody knows them: each image counts as one.")
    ] = False,
    slide: Annotated[
        str | None,
        typer.Option("--slide", help="Pattern of the slide; otherwise a patient is one slide."),
    ] = None,
    positive: Annotated[
        str | None, typer.Option("--positive", help="The class that a probability speaks of.")
    ] = None,
    mpp: MppOption = None,
    copy: CopyOption = False,
    decode: DecodeOption = False,
) -> None:
    """A tile set with a folder for each class."""
    from medkd.importers.class_folders import import_class_folders
    from medkd.importers.names import compile_pattern

    if (patient is None) != no_patients:
        raise ConfigError(
            "needs one of --patient and --no-patients",
            where="medkd import class-folders",
            remedy="Without patients, tiles of one may train and test the same network.",
        )
    summary = import_class_folders(
        root,
        out,
        patient=None if patient is None else compile_pattern(patient, "--patient"),
        slide=None if slide is None else compile_pattern(slide, "--slide"),
        positive=positive,
        mpp=mpp,
        copy=copy,
        decode=decode,
    )
    if no_patients:
        print("Patients are not known: a split parts images, and says little about new patients.")
    tell_tile_set(summary, out)


@import_app.command("tile-folders")
def tile_folders(
    root: RootArgument,
    slides_table: Annotated[
        Path, typer.Option("--slides", help="A slides.csv: patient and label of each slide.")
    ],
    out: OutOption,
    positive: Annotated[
        str, typer.Option("--positive", help="The class that a probability speaks of.")
    ] = "MSI",
    mpp: MppOption = None,
    copy: CopyOption = False,
    decode: DecodeOption = False,
) -> None:
    """Tiles named by slide and place, SLIDE_(x,y).jpg, in folders or not."""
    from medkd.importers.tile_folders import import_tile_folders, read_slides_of_any_class

    summary, unknown = import_tile_folders(
        root,
        read_slides_of_any_class(slides_table),
        out,
        positive=positive,
        mpp=mpp,
        copy=copy,
        decode=decode,
    )
    if unknown:
        print(f"Of slides that are not in {slides_table}: {unknown:,} tiles.")
    tell_tile_set(summary, out)


PathPatientOption = Annotated[
    str | None, typer.Option("--patient", help="Pattern of the patient in an image's path.")
]
SequenceOption = Annotated[
    str | None,
    typer.Option("--sequence", help="Pattern of the video or sequence in an image's path."),
]


@import_app.command("kvasir")
def kvasir(
    root: RootArgument,
    out: OutOption,
    negatives: Annotated[
        Path | None, typer.Option("--negatives", help="A folder of frames without a polyp.")
    ] = None,
    decode: DecodeOption = False,
) -> None:
    """Kvasir-SEG: polyps with masks and kavsir_bboxes.json."""
    from medkd.importers.box_table import BoxOptions
    from medkd.importers.kvasir import import_kvasir

    tell_boxes(
        import_kvasir(root, out, negatives=negatives, options=BoxOptions(decode=decode)), out
    )


@import_app.command("coco")
def coco(
    annotations: Annotated[Path, typer.Argument(help="The JSON file.", show_default=False)],
    images: Annotated[Path, typer.Option("--images", help="The folder of the images.")],
    out: OutOption,
    patient: PathPatientOption = None,
    sequence: SequenceOption = None,
    decode: DecodeOption = False,
) -> None:
    """Boxes in the format of COCO: a JSON file and a folder of images."""
    from medkd.importers.box_table import BoxOptions
    from medkd.importers.coco import import_coco

    options = BoxOptions(patient, sequence, decode)
    tell_boxes(import_coco(annotations, images, out, options=options), out)


@import_app.command("yolo")
def yolo(
    data: Annotated[Path, typer.Argument(help="The YAML file (data.yaml).", show_default=False)],
    out: OutOption,
    patient: PathPatientOption = None,
    sequence: SequenceOption = None,
    decode: DecodeOption = False,
) -> None:
    """Boxes in the format of YOLO: a text file for each image, and data.yaml."""
    from medkd.importers.box_table import BoxOptions
    from medkd.importers.yolo import import_yolo

    tell_boxes(import_yolo(data, out, options=BoxOptions(patient, sequence, decode)), out)


@import_app.command("cifar")
def cifar(
    path: Annotated[
        Path,
        typer.Argument(help="The folder of the binary form, or a parquet.", show_default=False),
    ],
    out: OutOption,
) -> None:
    """CIFAR-10 or CIFAR-100, as one array."""
    from medkd.importers.cifar import import_cifar

    tell_array(import_cifar(path, out), out)


@import_app.command("medmnist")
def medmnist(
    path: Annotated[Path, typer.Argument(help="The .npz file.", show_default=False)],
    out: OutOption,
    classes: Annotated[
        str | None,
        typer.Option("--classes", help="Names in the order of their numbers: ADI,BACK,DEB ..."),
    ] = None,
) -> None:
    """A data set of MedMNIST, as one array."""
    from medkd.importers.medmnist import import_medmnist

    names = [name.strip() for name in classes.split(",")] if classes else []
    tell_array(import_medmnist(path, out, classes=names), out)
