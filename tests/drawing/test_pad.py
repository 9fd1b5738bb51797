"""The drawing pad, driven by a browser: its numbers are Python's, and it recognises what is drawn on it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from metabook import save
from metabook.drawing import BOX, EMBEDDING, RADIUS, SAMPLES, SIDE, SMALLEST, drawn, export, pad, published
from metabook.learners import ProtoNet
from metabook.nets import Conv4
from metabook.storage import StorageError, load

SCRIPT = EMBEDDING.with_name("pad.js").read_text(encoding="utf-8").strip()
SETTINGS = {"side": SIDE, "box": BOX, "radius": RADIUS, "smallest": SMALLEST}


# --- Without a browser ------------------------------------------------------------------------------------------------


def test_the_published_embedding_is_small_and_in_16_bits():
    assert EMBEDDING.stat().st_size < 300_000
    learner = published()
    assert not learner.training
    assert not learner.transductive
    assert learner.net.norm == "none"


def test_the_published_embedding_tells_the_samples_apart_when_an_unsteady_hand_draws_them_again():
    examples, again = (torch.stack([drawn(shaken(each, seed)) for each in SAMPLES]) for seed in (0, 1))
    with torch.no_grad():
        z, prototypes = published().net(again), published().net(examples)
    assert torch.cdist(z, prototypes).argmin(1).tolist() == [0, 1, 2, 3, 4]


def test_export_keeps_the_function(tmp_path):
    learner = ProtoNet(Conv4(channels=(4, 4, 6, 8), norm="running"), in_turn=True)
    for _ in range(3):
        learner.net(torch.rand(8, 1, SIDE, SIDE))
    export(learner.eval(), tmp_path / "own.safetensors")
    pictures = torch.rand(5, 1, SIDE, SIDE)
    exported = load(tmp_path / "own.safetensors").net(pictures)
    assert torch.allclose(exported, learner.net(pictures), atol=5e-3)
    assert "drawing-pad" in pad(tmp_path / "own.safetensors").html


@pytest.mark.parametrize("net", [Conv4(downsample="stride", norm="running"), Conv4(norm="running", in_channels=3)])
def test_another_network_is_not_exported(net, tmp_path):
    with pytest.raises(ValueError, match="Conv4"):
        export(ProtoNet(net), tmp_path / "own.safetensors")


def test_another_file_is_no_embedding(tmp_path):
    save(ProtoNet(Conv4(channels=4)), tmp_path / "other.safetensors")  # 32 bits
    with pytest.raises(StorageError, match=r"metabook\.drawing\.export"):
        pad(tmp_path / "other.safetensors")


def test_the_page_needs_nothing_from_elsewhere():
    assert "http" not in pad().html
    assert "src=" not in pad().html


# --- With a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fragment(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pad") / "pad.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    style = "<style>:root{color-scheme:light dark} body{color:CanvasText;background:Canvas}</style><title>Pad</title>"
    path.write_text(f"{head}{style}<body>{pad().html}</body></html>", encoding="utf-8")
    return path


@pytest.fixture
def page(browser, fragment) -> Iterator:
    context = browser.new_context(viewport={"width": 390, "height": 900}, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(120_000)  # machines under load
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(fragment.as_uri())
    yield page
    assert errors == []
    context.close()


def shaken(strokes, seed: int):
    """The same character by another hand: turned, stretched and trembling, elsewhere on the paper."""
    random = np.random.default_rng(seed)
    turn, stretch = np.eye(2) + random.uniform(-0.12, 0.12, (2, 2)), random.uniform(0.6, 0.75)
    return [
        ((np.array(stroke) - 0.5) @ turn * stretch + 0.5 + random.normal(0, 0.008, (len(stroke), 2))).tolist()
        for stroke in strokes
    ]


def draw(page, strokes) -> None:
    page.locator('[data-part="paper"]').scroll_into_view_if_needed()
    box = page.locator('[data-part="paper"]').bounding_box()
    for stroke in strokes:
        for number, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=1 if not number else 5)
            if not number:
                page.mouse.down()
        page.mouse.up()


def press(page, part: str) -> None:
    page.locator(f'[data-part="{part}"]').click()


def answer(page) -> int:
    return int(page.locator(".drawing-pad").get_attribute("data-answer"))


def says(page) -> str:
    return page.locator('[data-part="says"]').text_content()


@pytest.mark.browser
@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_the_browser_computes_what_python_computes(page, number):
    strokes = shaken(SAMPLES[number], seed=number)
    weights = base64.b64encode(EMBEDDING.read_bytes()).decode()
    picture, z, p = page.evaluate(
        f"""([weights, strokes, others, settings]) => {{
            const pad = {SCRIPT}, net = pad.blocks(weights);
            const embed = strokes => pad.embed(pad.drawn(strokes, settings), net, settings.side);
            const p = pad.classify(embed(strokes), others.map(each => each.map(embed)));
            return [[...pad.drawn(strokes, settings)], [...embed(strokes)], p];
        }}""",
        [weights, strokes, [[each, shaken(each, 9)] for each in SAMPLES], SETTINGS],
    )
    ours, net = drawn(strokes), published().net
    np.testing.assert_allclose(picture, ours.flatten(), atol=1e-6)
    with torch.no_grad():
        expected = net(ours[None])[0]
        shots = [net(torch.stack([drawn(each), drawn(shaken(each, 9))])).mean(0) for each in SAMPLES]
    np.testing.assert_allclose(z, expected, atol=1e-4 * float(expected.abs().max()))
    logits = -(torch.stack(shots) - expected).square().sum(1)
    np.testing.assert_allclose(p, logits.softmax(0), atol=1e-3)


@pytest.mark.browser
def test_five_characters_drawn_with_the_mouse_are_recognised_when_drawn_again(page):
    for number, strokes in enumerate(SAMPLES):
        assert f"character {number + 1} of 5" in says(page)
        draw(page, shaken(strokes, seed=number))
        press(page, "keep")
    assert page.locator('[data-part="keep"]').is_disabled()
    found = []
    for number, strokes in enumerate(SAMPLES):
        draw(page, shaken(strokes, seed=10 + number))
        found.append(answer(page))
        assert f"This is character {found[-1] + 1}" in says(page)
        press(page, "clear")
        assert answer(page) == -1
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.browser
def test_a_correction_is_learnt_from_and_can_be_taken_back(page):
    press(page, "fill")
    other = [[[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8], [0.2, 0.2]]]
    draw(page, other)
    wrong = answer(page)
    right = (wrong + 1) % 5
    page.locator('[data-part="slot"]').nth(right).click()
    draw(page, other)
    probability = page.locator('[data-part="slot"] output').all_text_contents()
    before = int(probability[right].split()[0])
    press(page, "clear")
    press(page, "undo")  # the paper is empty: it takes back the example
    draw(page, other)
    after = int(page.locator('[data-part="slot"] output').nth(right).text_content().split()[0])
    assert after < before
    assert answer(page) == wrong


@pytest.mark.browser
def test_undo_clear_and_start_over(page):
    undo, keep = page.locator('[data-part="undo"]'), page.locator('[data-part="keep"]')
    assert undo.is_disabled()
    draw(page, SAMPLES[0])  # two strokes
    undo.click()
    assert keep.is_enabled()
    undo.click()
    assert keep.is_disabled()
    draw(page, SAMPLES[0])
    press(page, "clear")
    assert keep.is_disabled()
    press(page, "fill")
    assert "again" in says(page)
    press(page, "restart")
    assert "character 1 of 5" in says(page)


@pytest.mark.browser
def test_the_keyboard_draws(page):
    paper = page.locator('[data-part="paper"]')
    paper.focus()
    for keys in (
        ["Space", *["ArrowRight"] * 8, "ArrowDown", "Space"],
        ["ArrowUp", "Space", *["ArrowDown"] * 9, "Space"],
    ):
        for key in keys:
            page.keyboard.press(key)
    assert page.locator('[data-part="keep"]').is_enabled()
    page.keyboard.press("Enter")
    assert "character 2 of 5" in says(page)
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    assert page.locator('[data-part="keep"]').is_disabled()
    page.keyboard.press("Backspace")  # the paper is empty: it takes back the example
    assert "character 1 of 5" in says(page)


@pytest.mark.browser
def test_a_finger_draws(page):
    box = page.locator('[data-part="paper"]').bounding_box()
    page.touchscreen.tap(box["x"] + 50, box["y"] + 50)
    assert page.locator('[data-part="keep"]').is_enabled()


@pytest.mark.browser
def test_it_fits_a_narrow_screen_and_says_what_it_is(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "arrows move the pen" in page.locator('[data-part="paper"]').get_attribute("aria-label")
    press(page, "fill")
    assert page.locator('[data-part="slot"]').nth(2).get_attribute("aria-label").startswith("Character 3, 1 example")
