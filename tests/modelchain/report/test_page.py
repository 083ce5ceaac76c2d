"""The page and its pictures, as a reader's browser gets them."""

from __future__ import annotations

import io
import re
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from modelchain.cost import parameters, plan
from modelchain.errors import CannotWriteError
from modelchain.measuring import read_measurement
from modelchain.report import units
from modelchain.report.accounting import match_baselines
from modelchain.report.data import Baseline, ChainArtifacts
from modelchain.report.page import Report, make_report, write_report
from modelchain.report.reading import read_chain, read_recorded_chain
from modelchain.resolved import ResolvedChain
from modelchain.status import Measurement
from modelchain.store import open_store
from tests.modelchain.report.made_up_chain import (
    CLASSES,
    COMPUTED,
    RETRIEVAL,
    ZERO_SHOT,
    Training,
    document,
    resolved,
    train,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
VOID = {"meta", "img", "br", "link", "input", "hr"}
LINKS = {"https://arxiv.org/abs/2604.12391"}
HOSTILE = """<script>alert('1')</script>"'&<b>$x^2$"""


class Page(HTMLParser):
    """Everything that a test asks of a page; parsing fails where elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str] = []  # to ids
        self.addresses: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute of {tag} is there twice"
        self.tags[tag] += 1
        self.attributes.append((tag, values))
        if values.get("id"):
            self.ids.append(values["id"] or "")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.addresses.append((tag, value or ""))
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
            if name == "href" and (value or "").startswith("#"):
                self.references.append((value or "")[1:])
            if name == "aria-labelledby":
                self.references.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report_on(chain: ResolvedChain, how: Training | None = None) -> Report:
    return make_report(read_chain(train(chain, how), chain), (), NOW)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> ResolvedChain:
    return resolved(document(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def made(chain: ResolvedChain) -> tuple[ChainArtifacts, tuple[Baseline, ...]]:
    """Three stages, one of them retried, one reused; and the largest model trained alone."""
    how = Training(killed={"vit-s": 2}, trained_by={"vit-t": "team/other"})
    artifacts = read_chain(train(chain, how), chain)
    single = resolved(document(Path(chain.store.uri), only=2, name="alone"))
    alone = read_chain(train(single, Training(final=(0.945,))), single)
    return artifacts, match_baselines(artifacts, [alone])


@pytest.fixture(scope="module")
def report(made: tuple[ChainArtifacts, tuple[Baseline, ...]]) -> Report:
    return make_report(*made, NOW)


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.html)


def test_the_page_is_well_formed_and_its_ids_are_its_own(page: Page) -> None:
    assert page.tags["html"] == page.tags["body"] == page.tags["main"] == page.tags["h1"] == 1
    assert [name for name, number in Counter(page.ids).items() if number > 1] == []
    assert set(page.references) <= set(page.ids)


def test_the_page_needs_nothing_from_elsewhere(report: Report, page: Page) -> None:
    outside = [
        (tag, address) for tag, address in page.addresses if not address.startswith(("data:image/png", "#"))
    ]
    assert {tag for tag, _ in outside} == {"a"}
    assert {address for _, address in outside} == LINKS
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == page.tags["object"] == 0
    assert "@import" not in report.html
    assert re.findall(r"url\((?!#)", report.html) == []
    policy = [values.get("content") for _, values in page.attributes if values.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_pictures_and_plots_have_words(page: Page) -> None:
    images = [values for tag, values in page.attributes if tag == "img"]
    assert len(images) == 24
    assert {values["alt"] for values in images} == {f"Picture of the class {name}" for name in CLASSES}
    plots = [values for tag, values in page.attributes if tag == "svg"]
    assert len(plots) == 6
    assert all(values["role"] == "img" and len(values["aria-label"] or "") > 40 for values in plots)


def test_the_figures_are_those_of_the_artifacts(chain: ResolvedChain, page: Page) -> None:
    planned = plan(chain)
    assert units.percent(planned.cost_ratio) in page.text
    assert f"{planned.speedup:.2f}× less" in page.text
    assert units.macs(planned.chain_macs) in page.text
    assert units.macs(planned.largest.alone_macs) in page.text
    assert units.macs(COMPUTED * planned.chain_macs) in page.text
    for stage, value in zip(chain.stages, ("86.8 %", "92.1 %", "95.3 %"), strict=True):
        assert f"{stage.model} {value}" in page.text
        assert stage.digest in page.text
        assert units.count(parameters(stage.model_config_)) in page.text
        assert f"{stage.training.steps:,}" in page.text
    assert "3 undecodable image" in page.text
    assert "3 (1 failed)" in page.text


def test_what_was_not_run_is_named_so_and_what_was_run_is_too(page: Page) -> None:
    against_largest, against_family = page.text.split(": chain against ")[1:3]
    assert "which training vit-m alone for 24 epochs took. Both counted" in against_largest
    assert (
        "which training 3 models alone for 24 epochs would take. Chain counted; alone planned, not run"
        in against_family
    )
    assert "In the chain vit-m reached 95.3 %, alone 94.5 %." in page.text
    assert "As good as vit-m trained alone" in page.text
    assert "trained alone: 94.5 %" in page.text
    assert "reused: trained by team/other" in page.text
    assert "was not spent again" in page.text


def test_a_chain_that_was_not_compared_is_not_said_to_have_saved_anything(tmp_path: Path) -> None:
    chain = resolved(document(tmp_path))
    page = Page(report_on(chain).html)
    planned = plan(chain)
    assert (
        f"Training each of the 3 models alone for 24 epochs would take {planned.speedup:.2f} times the compute of the "
        "chain, as planned; whether they would be as good was not measured." in page.text
    )
    assert "Planned: chain against the family alone" in page.text
    assert "Measured Nothing: spec.baseline.train names models" in page.text


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResolvedChain, Report]:
    """A chain whose models were trained alone too; the middle one did not become as good alone."""
    source = document(tmp_path_factory.mktemp("compared"))
    source["spec"]["baseline"] = {"train": ["all"], "epochs": 24, "budgetMatched": True}  # type: ignore[index]
    chain = resolved(source)
    store = train(chain, Training(final=(0.868, 0.921, 0.953), poor=("vit-s",)))
    return chain, make_report(read_recorded_chain(store, "default", "digits"), (), NOW)


def test_planned_and_measured_stand_in_tables_of_their_own(compared: tuple[ResolvedChain, Report]) -> None:
    chain, report = compared
    page = Page(report.html)
    found = read_measurement(open_store(chain.store), chain)
    assert isinstance(found, Measurement)
    factor = found.acceleration
    assert factor.at_least
    measured, planned = page.text.split("What the chain saves")[1].split("Planned From the settings alone")
    assert "Measured: at equal quality By Zero-shot accuracy on digits" in measured
    small = next(model for model in found.models if model.name == "vit-s")
    assert f"≥ {units.macs(small.macs)}" in measured
    assert f"≥ {factor.factor:.2f}×" in measured
    assert f"{plan(chain).speedup:.2f}×" in planned
    assert f"alone took at least {factor.factor:.2f} times its compute" in page.text
    assert "Measured: at equal quality" in page.text
    assert "Alone, vit-s did not get there: all that was spent is counted." in page.text


def test_the_curves_of_the_models_alone_lie_over_the_chains(compared: tuple[ResolvedChain, Report]) -> None:
    page = Page(compared[1].html)
    assert "vit-m trained alone" in page.text
    assert "vit-m alone, the chain’s compute" in page.text
    assert "dots: for the compute of the chain up to it." in page.text
    assert "vit-t trained alone" not in page.text, "the first stage is its own baseline"
    (accuracy,) = [
        part for part in compared[1].html.split("<figure") if "Long dashes: the same model" in part
    ]
    runs, themes = 4, 2  # of the two models that grow: at the baseline's epochs, and at the chain's compute
    assert len(dashed_curves(accuracy)) == runs * themes


def dashed_curves(html: str) -> list[str]:
    """The dashed lines of a drawing that are not straight, as those of its legend are."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke-dasharray', html)
    return [path for path in paths if len({point.split()[1] for point in re.split("[ML]", path)[1:]}) > 2]


def test_a_comparison_that_is_not_finished_is_not_claimed(tmp_path: Path) -> None:
    source = document(tmp_path)
    source["spec"]["baseline"] = {"train": ["all"], "epochs": 24}  # type: ignore[index]
    chain = resolved(source)
    page = Page(report_on(chain, Training(until={"vit-m-alone": 0.5})).html)
    assert "Nothing yet: 2 of 3 runs of models trained alone are complete." in page.text
    assert "was not measured" in page.text


def test_growth_shows_what_it_kept(page: Page) -> None:
    assert "vit-t → vit-s width Exact, depth Identity" in page.text
    assert "86.8 % 86.8 % 92.1 %" in page.text
    assert "86.8 → 86.8 %" in page.text, "beside the mark in the plot"


def test_right_and_wrong_examples_differ_by_sign_and_not_only_by_colour(page: Page) -> None:
    right = [values for _, values in page.attributes if values.get("class") == "word right"]
    wrong = [values for _, values in page.attributes if values.get("class") == "word wrong"]
    assert len(right) + len(wrong) == 48
    assert page.text.count("✓ right:") == len(right) > 24
    assert page.text.count("✗ wrong:") == len(wrong) > 0


def test_the_pngs_show_something(report: Report) -> None:
    assert sorted(report.pngs) == ["accuracy-compute.png", "cost.png", "loss-compute.png"]
    for data in report.pngs.values():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        assert image.width > 1200
        colours = image.getcolors(maxcolors=2**20)
        assert colours is not None
        blank = max(number for number, _ in colours) / (image.width * image.height)
        assert len(colours) > 50
        assert blank < 0.97
        shades = {colour for number, colour in colours if number > 200}
        assert {(0x2F, 0x5F, 0xD0), (0xC9, 0x4F, 0x16)} <= shades, "colours of the first and the last stage"


def test_the_same_artifacts_give_the_same_page(
    made: tuple[ChainArtifacts, tuple[Baseline, ...]], report: Report
) -> None:
    assert make_report(*made, NOW) == report


def test_text_of_users_is_never_markup(tmp_path: Path) -> None:
    source = document(tmp_path, stages=2)
    chain = resolved(source)
    stages = tuple(stage.model_copy(update={"model": f"{HOSTILE} {stage.index}"}) for stage in chain.stages)
    chain = chain.model_copy(update={"stages": stages})
    classes = (HOSTILE, *CLASSES[1:])
    hostile = Training(classes=classes, corrupt={HOSTILE: 1}, trained_by={"vit-t": HOSTILE})
    report = report_on(chain, hostile)
    page = Page(report.html)
    assert page.tags["script"] == 0
    assert page.tags["b"] == 0
    assert "<script" not in report.html
    assert HOSTILE in page.text
    assert f"Picture of the class {HOSTILE}" in [values.get("alt") for _, values in page.attributes]


def test_an_unfinished_chain_without_its_file_still_has_a_page(tmp_path: Path) -> None:
    chain = resolved(document(tmp_path, evaluation=(ZERO_SHOT, RETRIEVAL)))
    store = train(chain, Training(until={"vit-s": 0.5, "vit-m": 0}, predictions=False))
    report = make_report(read_recorded_chain(store, "default", "digits"), (), NOW)
    page = Page(report.html)
    assert "1 of 3 models are trained." in page.text
    assert "The state is that of 2025-10-09T08:53:20Z" in page.text
    assert "Cost of the chain so far" in page.text
    assert "took" not in page.text.split("Cost of the chain so far")[0]
    assert "captions/imageToText@1" in page.text
    assert sorted(report.pngs) == [
        "accuracy-compute-captions.png",
        "accuracy-compute.png",
        "loss-compute.png",
    ]


@pytest.mark.parametrize(
    ("options", "how", "expected"),
    [
        ({"stages": 1}, Training(), "nothing to compare its cost with"),
        ({"evaluation": ()}, Training(), "No stage of this chain has been evaluated."),
        ({"evaluation": (RETRIEVAL,)}, Training(predictions=False), "Recall@1 (image to text) on captions"),
        ({}, Training(metrics=False), "What is missing here"),
    ],
    ids=["one stage", "no evaluation", "retrieval only", "no metrics"],
)
def test_a_page_says_what_it_lacks(
    tmp_path: Path, options: dict[str, object], how: Training, expected: str
) -> None:
    chain = resolved(document(tmp_path, **options))  # pyright: ignore[reportArgumentType]
    assert expected in Page(report_on(chain, how).html).text


def test_a_family_of_seven_with_long_names_fits(tmp_path: Path) -> None:
    chain = resolved(document(tmp_path, stages=7))
    stages = tuple(
        stage.model_copy(update={"model": f"{stage.name}-{'long-' * 40}"}) for stage in chain.stages
    )
    report = report_on(chain.model_copy(update={"stages": stages}))
    width, height = Image.open(io.BytesIO(report.pngs["accuracy-compute.png"])).size
    assert height < 1.5 * width
    assert Page(report.html).tags["svg"] == 6


def test_files_are_written_whole_beside_each_other(report: Report, tmp_path: Path) -> None:
    path = write_report(report, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert path.read_text(encoding="utf-8") == report.html
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([*report.pngs, "report.html"])
    assert write_report(report, path.parent) == path


def test_a_folder_that_cannot_be_written_is_one_clear_line(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CannotWriteError, match=r"file/reports: the report can't be written there: .*--output"
    ) as error:
        write_report(report, tmp_path / "file" / "reports")
    assert error.value.exit_code == 73
