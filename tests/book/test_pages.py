"""The pages as a reader gets them: complete, executed, and in need of nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest
from _press import execute, pages, weave
from _press.errors import PressError
from _press.layout import Book
from bs4 import BeautifulSoup, Tag
from filelock import FileLock

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.html, pytest.mark.slow]


@pytest.fixture(scope="session")
def site(real_book: Book) -> Path:
    """Folder of the pages: those of ``make book`` where they are up to date, otherwise made at the smoke preset."""
    real_book.build.mkdir(exist_ok=True)
    with FileLock(real_book.build / "tests.lock"):  # workers of pytest-xdist share the folder: one makes the pages
        if not execute.stale(real_book, "book"):
            return pages.build(real_book, weave.sources(real_book, "book")).parent
        book = Book.at(real_book.folder, output=real_book.build / "tests")
        assert execute.failures(execute.run(book, "smoke")) == []
        return pages.build(book, weave.sources(book, "smoke")).parent


@pytest.fixture(scope="session")
def soups(site: Path) -> dict[Path, BeautifulSoup]:
    return {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in sorted(site.rglob("*.html"))
    }


@pytest.fixture(scope="session")
def written(site: Path, soups: dict[Path, BeautifulSoup], real_book: Book) -> dict[str, BeautifulSoup]:
    """The pages that somebody wrote, by name."""
    return {page.name: soups[site / f"{page.name}.html"] for page in real_book.pages}


def test_every_page_is_there_with_its_title(written: dict[str, BeautifulSoup]) -> None:
    for name, soup in written.items():
        assert soup.h1, name
        assert soup.h1.get_text(strip=True), name


def test_chapters_hold_the_outputs_of_their_code(written: dict[str, BeautifulSoup], real_book: Book) -> None:
    for page in real_book.notebooks:
        shown = written[page.name].select("div.cell")
        assert shown, page.name
        with_output = [cell for cell in shown if cell.select_one("div.cell_output")]
        assert len(with_output) >= len(shown) / 3, page.name
        assert "KeyError" not in written[page.name].get_text(), page.name


def test_nothing_is_fetched_from_elsewhere(site: Path, soups: dict[Path, BeautifulSoup]) -> None:
    for path, soup in soups.items():
        for tag in soup.select("[src], link[href]"):
            address = str(tag.get("src") or tag.get("href"))
            if tag.name == "link" and {"canonical", "license"} & set(tag.get("rel") or []):
                continue
            assert not re.match(r"(https?:)?//", address), f"{path.name}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(
            r"url\(\s*['\"]?(https?:)?//|@import\s+['\"]?https?:", sheet.read_text(encoding="utf-8")
        ), sheet


def test_links_lead_somewhere(site: Path, soups: dict[Path, BeautifulSoup]) -> None:
    anchors = {path: {str(tag["id"]) for tag in soup.select("[id]")} for path, soup in soups.items()}
    broken: set[str] = set()
    for path, soup in soups.items():
        for tag in soup.select("a[href], img[src], script[src], link[href]"):
            address = urlsplit(str(tag.get("href") or tag.get("src")))
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            there = target.is_file() if not address.fragment else address.fragment in anchors.get(target, ())
            if not there and address.fragment != "":
                there = unquote(address.fragment) in anchors.get(target, ())
            if not there:
                broken.add(f"{path.relative_to(site)}: {address.geturl()}")
    assert broken == set()


def test_every_picture_is_described(written: dict[str, BeautifulSoup]) -> None:
    for name, soup in written.items():
        article = soup.select_one("article") or soup
        for image in article.select("img"):
            assert str(image.get("alt") or "").strip(), f"{name}: {image.get('src')}"
        for svg in article.select("figure svg, div.cell_output svg"):
            assert svg.get("role") == "img", name
            assert str(svg.get("aria-label") or "").strip(), name


def test_ids_are_unique(written: dict[str, BeautifulSoup]) -> None:
    for name, soup in written.items():
        ids = [str(tag["id"]) for tag in soup.select("article [id]")]
        assert sorted({i for i in ids if ids.count(i) > 1}) == [], name


def test_mathematics_is_set_by_files_of_our_own(site: Path) -> None:
    mathjax = site / "_static" / "mathjax"
    fonts = list((mathjax / "output" / "chtml" / "fonts").rglob("*.woff"))
    assert (mathjax / "tex-chtml.js").stat().st_size > 500_000
    assert (mathjax / "a11y" / "assistive-mml.js").exists()
    assert len(fonts) > 15
    assert sum(path.stat().st_size for path in mathjax.rglob("*") if path.is_file()) < 3_000_000


def test_nothing_useless_is_shipped(site: Path) -> None:
    assert [path.name for path in site.rglob("*") if path.suffix == ".map" or "thebe" in path.name.lower()] == []


def test_there_is_one_search_field(written: dict[str, BeautifulSoup]) -> None:
    for soup in written.values():
        assert len(soup.select(".search-button-field")) == 1


def test_buttons_lead_to_the_known_repository_or_are_not_there(
    written: dict[str, BeautifulSoup], real_book: Book
) -> None:
    from _press import repository

    url = repository.find(real_book.config, real_book.folder)
    for name, soup in written.items():
        assert "executablebooks/jupyter-book" not in str(soup.select_one(".article-header-buttons")), name
        launch: list[Tag] = soup.select(".dropdown-launch-buttons a, .dropdown-source-buttons a")
        if not url:
            assert launch == [], name


def test_numbers_agree_between_page_and_notebook(written: dict[str, BeautifulSoup], real_book: Book) -> None:
    """Sphinx numbers the pages, the press numbers the notebooks."""
    for page in real_book.notebooks:
        twin = page.twin.read_text(encoding="utf-8")
        ours = re.findall(r"\\\\tag\{([\d.]+)\}", twin)
        theirs = [tag.get_text().strip("()\u00b6#") for tag in written[page.name].select("span.eqno")]
        assert ours == theirs, page.name
        ours = re.findall(r"\*\*(Exercise [\d.]+)", twin)
        titles = [tag.get_text() for tag in written[page.name].select("div.exercise > p.admonition-title")]
        assert ours == [found[0] for title in titles if (found := re.match(r"Exercise [\d.]+", title))], page.name


def test_downloads_are_the_notebooks_that_any_viewer_can_show(site: Path, real_book: Book) -> None:
    for page in real_book.notebooks:
        assert (site / "_sources" / f"{page.name}.ipynb").read_bytes() == page.twin.read_bytes()


def test_a_warning_stops_the_press_every_time(
    write_book: Callable[..., Book], capfd: pytest.CaptureFixture[str]
) -> None:
    book = write_book({"page": "# Page\n\n[](#nowhere)\n"})
    for _ in range(2):  # Sphinx alone is silent the second time, about a page that it need not read again
        with pytest.raises(PressError, match="the pages could not be made"):
            pages.build(book, weave.sources(book, "smoke"))
        assert "nowhere" in capfd.readouterr().err
    write_book({"page": "# Page\n"})
    assert pages.build(book, weave.sources(book, "smoke")).exists()


def test_pages_are_made_anew_only_when_something_changed(write_book: Callable[..., Book]) -> None:
    book = write_book({"page": "# Page\n"})
    index = pages.build(book, weave.sources(book, "smoke"))
    made = index.stat().st_mtime_ns
    assert pages.build(book, weave.sources(book, "smoke")).stat().st_mtime_ns == made
    write_book({"page": "# Another title\n"})
    pages.build(book, weave.sources(book, "smoke"))
    assert "Another title" in (index.parent / "page.html").read_text()


def test_the_pages_are_served_on_this_machine(site: Path, real_book: Book) -> None:
    press = Path(pages.__file__).parent
    command = [sys.executable, str(press), "serve", "--port", "0", "--book", str(real_book.folder)]
    command += ["--output", str(site.parent.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            assert address.startswith("http://127.0.0.1:")
            with urlopen(address) as answer:
                assert b"<html" in answer.read()
        finally:
            server.terminate()


# --- In a browser -------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_in_a_browser(browser, site: Path, real_book: Book, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for each in real_book.pages:
        page.goto((site / f"{each.name}.html").as_uri())
        mathematics = page.locator("span.math, div.math").count()
        if mathematics:
            page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            page.evaluate("MathJax.startup.promise.then(() => null)")
            assert page.locator("mjx-container").count() >= mathematics, each.name
            assert page.locator("mjx-merror").count() == 0, each.name
        # Everything that can be unfolded is, so that what it holds must fit as well.
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        # Text is as wide as its font, and a font that is still on its way when the page is left is a failed request.
        page.evaluate("document.fonts.ready.then(() => null)")
        scroll = page.evaluate("document.documentElement.scrollWidth")
        assert scroll <= width, f"{each.name} is {scroll} pixels wide on a screen of {width}"
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        for figure in page.locator("figure.metabook-figure svg").all():
            assert readable(figure), f"{each.name}: a figure that cannot be read in {scheme}"
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []
    context.close()


def readable(svg) -> bool:
    """Whether the drawing's text stands out from what lies under it."""
    colours = svg.evaluate(
        """element => {
            let under = element;
            while (under && ['rgba(0, 0, 0, 0)', 'transparent'].includes(getComputedStyle(under).backgroundColor))
                under = under.parentElement;
            const paper = under ? getComputedStyle(under).backgroundColor : 'rgb(255, 255, 255)';
            return [getComputedStyle(element).color, paper];
        }"""
    )
    ink, paper = ([int(float(part)) for part in re.findall(r"[\d.]+", colour)[:3]] for colour in colours)
    return abs(sum(ink) - sum(paper)) / 3 > 100
