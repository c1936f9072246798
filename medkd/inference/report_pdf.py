"""``report.pdf``: the report for A4, of the same content as ``report.html``."""

from __future__ import annotations

import io
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from medkd.inference.report_content import ReportContent, ReportTable, report_content

if TYPE_CHECKING:
    from medkd.inference.manifest import Manifest
    from medkd.inference.result import Result

INK, SOFT, LINE, ACCENT, WARN = "#1d2733", "#5b6775", "#d9dee4", "#0b5f8a", "#a04000"
_MARGIN_MM = 15
# Shares of a table's width, by how many columns it has.
_COLUMNS = {2: (0.62, 0.38), 4: (0.46, 0.15, 0.15, 0.24)}
_SANS, _BOLD, _MONO = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono"


@cache
def _fonts() -> None:
    """Fonts that have every letter a class or model may be named with, put into the file."""
    import matplotlib as mpl
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    for name in (_SANS, _BOLD, _MONO):
        pdfmetrics.registerFont(TTFont(name, str(folder / f"{name}.ttf")))
    pdfmetrics.registerFontFamily(_SANS, normal=_SANS, bold=_BOLD, italic=_SANS, boldItalic=_BOLD)


def report_pdf(result: Result, manifest: Manifest, heatmap: bytes, tiles: bytes = b"") -> bytes:
    """The report of one slide.

    Args:
        result: what ``result.json`` holds.
        manifest: of the model.
        heatmap: the PNG.
        tiles: a PNG of the most and least positive tiles; empty: there is none.
    """
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import KeepTogether, SimpleDocTemplate, Spacer

    _fonts()
    content = report_content(result, manifest)
    width = A4[0] - 2 * _MARGIN_MM * mm
    story: list[Any] = [_header(result.slide_id, width)]
    if content.banner:
        story += [Spacer(0, 3 * mm), _boxed(content.banner, width)]
    story += [Spacer(0, 5 * mm), _call(result, manifest.positive, width)]
    story.append(
        KeepTogether([_title("Where the score comes from"), _picture(heatmap, width, 95 * mm)])
    )
    if tiles:
        title = f"Tiles most and least like {escape(manifest.positive)}"
        story.append(KeepTogether([_title(title), _picture(tiles, width, 62 * mm)]))
    left, right = content.tables[::2], content.tables[1::2]
    for pair in zip(left, right, strict=True):
        story.append(_side_by_side(pair, width))
    story += [_paragraph(escape(warning), colour=WARN) for warning in result.qc.warnings]
    story.append(KeepTogether([_title("Model"), _facts(content, width)]))
    story += [Spacer(0, 3 * mm), _paragraph(escape(content.footer), size=7.5, colour=SOFT)]

    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        # A frame pads its content by 6 points, which is in the margin here.
        leftMargin=_MARGIN_MM * mm - 6,
        rightMargin=_MARGIN_MM * mm - 6,
        topMargin=_MARGIN_MM * mm,
        bottomMargin=18 * mm,
        title=f"{result.slide_id}: {result.call}",
        author="medkd",
        subject="Research use only",
    )
    document.build(story, canvasmaker=_numbering(f"Research use only. {result.slide_id}"))
    return buffer.getvalue()


def _numbering(text: str) -> type:
    """A canvas that writes the text and 'page n of m' below each page."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.pdfgen.canvas import Canvas

    class Numbered(Canvas):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._pages: list[dict[str, Any]] = []

        def showPage(self) -> None:  # noqa: N802 - reportlab's name
            self._pages.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self._pages, start=1):
                self.__dict__.update(page)
                self.setFont(_SANS, 8)
                self.setFillColor(HexColor(WARN))
                self.drawString(_MARGIN_MM * mm, 10 * mm, text)
                self.setFillColor(HexColor(SOFT))
                right = A4[0] - _MARGIN_MM * mm
                self.drawRightString(right, 10 * mm, f"page {number} of {len(self._pages)}")
                super().showPage()
            super().save()

    return Numbered


def _paragraph(
    markup: str, *, size: float = 9, colour: str = INK, bold: bool = False, right: bool = False
) -> Any:
    """Text; what is not the program's own must have been escaped."""
    from reportlab.lib.colors import HexColor
    from reportlab.lib.enums import TA_LEFT, TA_RIGHT
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    style = ParagraphStyle(
        "text",
        fontName=_BOLD if bold else _SANS,
        fontSize=size,
        leading=1.3 * size,
        textColor=HexColor(colour),
        alignment=TA_RIGHT if right else TA_LEFT,
        splitLongWords=True,
    )
    return Paragraph(markup, style)


def _title(text: str) -> Any:
    from reportlab.platypus import Spacer, Table

    return Table(
        [[Spacer(0, 4)], [_paragraph(text.upper(), size=8, colour=SOFT, bold=True)]],
        style=[("LEFTPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 2)],
        hAlign="LEFT",
        colWidths="100%",
    )


def _header(slide_id: str, width: float) -> Any:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table

    cells = [
        _paragraph(escape(slide_id), size=13, bold=True),
        _paragraph("Research use only", size=10, colour=WARN, bold=True, right=True),
    ]
    style = [
        ("LINEBELOW", (0, 0), (-1, 0), 1.2, HexColor(INK)),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 0),
        ("VALIGN", (0, 0), (-1, -1), "BOTTOM"),
    ]
    return Table([cells], colWidths=[0.7 * width, 0.3 * width], style=style)


def _boxed(text: str, width: float) -> Any:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table

    style = [
        ("BACKGROUND", (0, 0), (-1, -1), HexColor("#fff4e5")),
        ("LINEBEFORE", (0, 0), (0, -1), 3, HexColor(WARN)),
    ]
    return Table([[_paragraph(escape(text))]], colWidths=[width], style=style)


def _call(result: Result, positive: str, width: float) -> Any:
    from reportlab.platypus import Spacer, Table

    words = [_paragraph(escape(result.call), size=20, bold=True), Spacer(0, 4)]
    words += [_paragraph(f"• {escape(reason)}") for reason in result.reasons]
    style = [
        ("LEFTPADDING", (0, 0), (0, 0), 0),
        ("RIGHTPADDING", (-1, 0), (-1, 0), 0),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
    ]
    scale = _scale(result, positive, 0.5 * width)
    return Table([[words, scale]], colWidths=[0.5 * width, 0.5 * width], style=style)


def _scale(result: Result, positive: str, width: float) -> Any:
    """The probability with its interval and the operating point, from 0 to 1."""
    from reportlab.graphics.shapes import Circle, Drawing, Line, Rect, String
    from reportlab.lib.colors import HexColor

    drawing = Drawing(width, 74)
    left, long, axis = 10.0, width - 20, 36.0

    def text(x: float, y: float, words: str, **more: Any) -> None:
        known = {"fontName": _SANS, "fontSize": 7.5, "fillColor": HexColor(INK)}
        drawing.add(String(x, y, words, textAnchor="middle", **(known | more)))

    drawing.add(Rect(left, axis - 3, long, 6, rx=3, ry=3, fillColor=HexColor("#e8ecf0"),
                     strokeColor=None))  # fmt: skip
    if result.probability_msi is not None and result.interval is not None:
        lower, upper = result.interval
        drawing.add(Rect(left + long * lower, axis - 3, long * (upper - lower), 6,
                         fillColor=HexColor("#7db0cf"), strokeColor=None))  # fmt: skip
        centre = left + long * result.probability_msi
        drawing.add(Circle(centre, axis, 5, fillColor=HexColor(ACCENT), strokeColor=None))
        words = (
            f"probability of {positive} {result.probability_msi:.2f} ({lower:.2f} to {upper:.2f})"
        )
        text(left + long / 2, axis + 22, words, fontName=_BOLD, fontSize=8.5)
    threshold = result.operating_point.threshold
    at = left + long * threshold
    drawing.add(Line(at, axis - 11, at, axis + 11, strokeColor=HexColor(WARN), strokeWidth=1.4))
    text(left + long * min(max(threshold, 0.25), 0.75), axis - 30,
         f"operating point {threshold:.2f}", fillColor=HexColor(WARN))  # fmt: skip
    text(left, axis - 17, "0")
    text(left + long, axis - 17, "1")
    return drawing


def _picture(png: bytes, width: float, most_height: float) -> Any:
    from reportlab.lib.utils import ImageReader
    from reportlab.platypus import Image

    across, down = ImageReader(io.BytesIO(png)).getSize()
    scale = min(width / across, most_height / down)
    return Image(io.BytesIO(png), width=across * scale, height=down * scale)


def _side_by_side(pair: tuple[ReportTable, ReportTable], width: float) -> Any:
    from reportlab.platypus import Spacer, Table

    gap = 18
    half = (width - gap) / 2
    cells = [
        [
            _title(one.title),
            _table(one, half),
            Spacer(0, 3),
            *(_paragraph(escape(note), size=8, colour=SOFT) for note in one.notes),
        ]
        for one in pair
    ]
    style = [
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 0),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ]
    return Table([[cells[0], "", cells[1]]], colWidths=[half, gap, half], style=style)


def _table(table: ReportTable, width: float) -> Any:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table

    rows = [
        [
            _paragraph(
                escape(cell),
                size=8.5,
                bold=number in table.bold,
                colour=WARN if number in table.bad and column == len(row) - 1 else INK,
                right=column > 0,
            )
            for column, cell in enumerate(row)
        ]
        for number, row in enumerate(table.rows)
    ]
    if table.head:
        head = [
            _paragraph(escape(c), size=8, colour=SOFT, right=n > 0)
            for n, c in enumerate(table.head)
        ]
        rows.insert(0, head)
    widths = [share * width for share in _COLUMNS[len(rows[0])]]
    return Table(rows, colWidths=widths, style=_lines(HexColor(LINE)))


def _facts(content: ReportContent, width: float) -> Any:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Table

    rows = [
        [_paragraph(name, size=8.5, colour=SOFT), _paragraph(_fixed_width(value), size=8.5)]
        for name, value in content.facts
    ]
    return Table(rows, colWidths=[0.2 * width, 0.8 * width], style=_lines(HexColor(LINE)))


def _fixed_width(value: str) -> str:
    return re.sub(r"`([^`]*)`", rf'<font name="{_MONO}" size="7">\1</font>', escape(value))


def _lines(colour: Any) -> list[tuple[Any, ...]]:
    return [
        ("LINEBELOW", (0, 0), (-1, -1), 0.5, colour),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 2),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ]
