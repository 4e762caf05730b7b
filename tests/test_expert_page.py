"""The expert test as a page: what is in it, and a person's way through it in a browser."""

import base64
import json
import re
import shutil
import struct
import subprocess
import sys
from html import escape

from cellaug import cli
from cellaug.data import DataError
from cellaug.data.images import write_png
from cellaug.evaluation import expert_page, read_answers, trial_hash
from cellaug.evaluation.expert_page import as_text, page, score_answers, write_test

import browser
import cv2
import numpy as np
import pandas as pd
import pytest
from IPython.display import IFrame
from scipy import stats

COUNT = 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))


def cell(seed, size, hue):
    """A disc on noise, redder (hue 0) or bluer (hue 2) than anything else in it."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (size, size, 3), dtype=np.uint8)
    cv2.circle(image, (size // 2, size // 2), size // 4, (130, 100, 130), -1)
    image[..., hue] += 100
    return image


def looks_real(image):
    return bool(image[..., 0].mean() > image[..., 2].mean())


@pytest.fixture
def folders(tmp_path):
    """Red real cells of 32 px in two subfolders, blue generated ones of 24 px in one folder."""
    real, fake = tmp_path / "hospital", tmp_path / "network"
    for number in range(9):
        place = real / ("monocyte", "basophil")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        write_png(place / f"patient{number}.png", cell(number, 32, 0))
    fake.mkdir()
    for number in range(8):
        write_png(fake / f"synthetic{number}.png", cell(100 + number, 24, 2))
    return real, fake


@pytest.fixture
def made(folders, tmp_path):
    """A test of 12 images: the folder with page and key, and the key."""
    key = write_test(*folders, tmp_path / "trial", count=COUNT, seed=3)
    return tmp_path / "trial", key


def pictures(html):
    """The PNG files in a page."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    start = "data:image/png;base64,"
    uris = json.loads(data)["images"]
    assert all(uri.startswith(start) for uri in uris)
    return [base64.b64decode(uri.removeprefix(start), validate=True) for uri in uris]


def decoded(png):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), -1), cv2.COLOR_BGR2RGB)


def chunks(png):
    """Every chunk of a PNG: its type and its content."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        found.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


# --- the file ------------------------------------------------------------------------------------


def test_page_and_key_belong_together(made, folders):
    out, key = made
    assert sorted(path.name for path in out.iterdir()) == ["expert-test.html", "key.json"]
    stored = json.loads((out / "key.json").read_text("utf-8"))
    assert stored == key
    images = [decoded(png) for png in pictures((out / "expert-test.html").read_text("utf-8"))]
    assert [looks_real(image) for image in images] == key["real"]
    assert sum(key["real"]) == COUNT and len(images) == 2 * COUNT
    assert key["trial"] == trial_hash(np.stack(images)) and key["seed"] == 3
    assert len(set(key["files"])) == 2 * COUNT
    for image, real, file in zip(images, key["real"], key["files"], strict=True):
        side, _, name = file.partition("/")
        assert side == ("real" if real else "fake")
        source = decoded((folders[0 if real else 1] / name).read_bytes())
        small = cv2.resize(source, (24, 24), interpolation=cv2.INTER_AREA)
        assert np.array_equal(image, small)


def test_files_in_the_page_cannot_be_told_apart(made):
    files = pictures((made[0] / "expert-test.html").read_text("utf-8"))
    for png in files:
        assert [kind for kind, _ in chunks(png)] == [b"IHDR", b"IDAT", b"IEND"]
    headers = {chunks(png)[0][1] for png in files}
    assert headers == {struct.pack(">IIBBBBB", 24, 24, 8, 2, 0, 0, 0)}
    assert len({len(png) for png in files}) == 1
    flat = pictures(page(np.stack([np.zeros((24, 24, 3), np.uint8), cell(1, 24, 0)])))
    assert {len(png) for png in flat} == {len(files[0])}  # not even a blank one is shorter


def test_page_depends_on_nothing_but_its_images(made):
    html = (made[0] / "expert-test.html").read_text("utf-8")
    images = np.stack([decoded(png) for png in pictures(html)])
    assert html == page(images)
    for word in ("hospital", "network", "monocyte", "patient", "synthetic", "seed", "key.json"):
        assert word not in re.sub(r"base64,[^\"]*", "", html), word


def test_page_asks_for_nothing_outside(made):
    html = (made[0] / "expert-test.html").read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    code = re.sub(r"base64,[^\"]*", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<iframe|<object|<link rel=.style", code)
    links = re.findall(r'\b(?:src|href)="([^"]*)"', html)
    assert links == ["data:,"]


def test_seed_decides_and_the_order_is_not_the_seeds_alone(folders, tmp_path):
    first = write_test(*folders, tmp_path / "a", count=COUNT, seed=3)
    again = write_test(*folders, tmp_path / "b", count=COUNT, seed=3)
    assert first == again
    assert (tmp_path / "a/expert-test.html").read_bytes() == (
        tmp_path / "b/expert-test.html"
    ).read_bytes()
    other = write_test(*folders, tmp_path / "c", count=COUNT, seed=4)
    assert other["trial"] != first["trial"] and set(other["files"]) != set(first["files"])
    # Whoever has seen the key of one trial must not know the next one made with its seed.
    real, fake = folders
    orders = {tuple(first["real"])}
    for number in range(4):
        write_png(real / "monocyte/patient0.png", cell(50 + number, 32, 0))
        key = write_test(real, fake, tmp_path / f"d{number}", count=8, seed=3)
        orders.add(tuple(key["real"]))
    assert len(orders) == 5


def test_size_and_notes(folders, tmp_path):
    key = write_test(*folders, tmp_path / "a", count=COUNT)
    assert key["size"] == 24
    assert (
        "real: 6 of 9 images, 32 pixels on the shorter side; 6 shrunk, 0 enlarged." in key["notes"]
    )
    assert (
        "fake: 6 of 8 images, 24 pixels on the shorter side; 0 shrunk, 0 enlarged." in key["notes"]
    )
    assert not any("compression" in note for note in key["notes"])
    key = write_test(*folders, tmp_path / "b", count=COUNT, size=28)
    (shape,) = {
        decoded(png).shape for png in pictures((tmp_path / "b/expert-test.html").read_text("utf-8"))
    }
    assert shape == (28, 28, 3) and "6 enlarged" in key["notes"][2]
    real, fake = folders
    for file in real.rglob("*.png"):
        file.write_bytes(cv2.imencode(".jpg", cv2.imread(str(file)))[1].tobytes())
        file.rename(file.with_suffix(".jpg"))
    key = write_test(real, fake, tmp_path / "c", count=COUNT)
    assert ".jpg (real) and .png (fake)" in key["notes"][-2]


def of_classes(folder, counts, hue):
    """Cells in a subfolder for each class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = cell([hue, *name.encode(), number], 24, hue)
            write_png(folder / name / f"{name}{number}.png", image)


def drawn_classes(key):
    """Of each side the classes of its images, by their files' names."""
    found = {"real": [], "fake": []}
    for file in key["files"]:
        side, _, name = file.partition("/")
        found[side].append(re.sub(r"\d|_.*|\.png", "", name.rpartition("/")[2]).lower())
    return {side: sorted(names) for side, names in found.items()}


def test_both_sides_have_the_same_number_of_each_class(tmp_path):
    real, fake = tmp_path / "r", tmp_path / "f"
    of_classes(real, {"Monocyte": 12, "basophil": 3, "blast": 4}, 0)
    of_classes(fake, {"monocyte": 4, "basophil": 12}, 2)
    keys = [write_test(real, fake, tmp_path / f"t{s}", count=5, seed=s) for s in range(4)]
    for key in keys:
        drawn = drawn_classes(key)
        assert drawn["real"] == drawn["fake"] and set(drawn["real"]) <= {"monocyte", "basophil"}
        many = {name: drawn["real"].count(name) for name in ("basophil", "monocyte")}
        said = ", ".join(f"{count} {name}" for name, count in many.items() if count)
        assert key["notes"][-1] == f"Each side has the same number of images of a class: {said}."
    assert len({tuple(drawn_classes(key)["real"]) for key in keys}) > 1  # the seed decides
    assert write_test(real, fake, tmp_path / "again", count=5, seed=2) == keys[2]
    whole = drawn_classes(write_test(real, fake, tmp_path / "all", count=7))
    assert whole["real"] == whole["fake"] == ["basophil"] * 3 + ["monocyte"] * 4
    with pytest.raises(
        DataError, match=r"only 7 images of each side match by class \(3 basophil, 4 m"
    ):
        write_test(real, fake, tmp_path / "more", count=8)


def test_a_manifest_has_the_classes_of_generated_images(tmp_path):
    real, fake = tmp_path / "r", tmp_path / "f"
    of_classes(real, {"monocyte": 9, "basophil": 2}, 0)
    fake.mkdir()
    rows = ["path,label,origin"]
    for number in range(10):
        name = ("basophil", "monocyte")[number % 2]
        write_png(fake / f"{name}_{number}.png", cell(500 + number, 24, 2))
        rows.append(f"{name}_{number}.png,{name},synthetic")
    (fake / "manifest.csv").write_text("\n".join(rows))
    drawn = drawn_classes(write_test(real, fake, tmp_path / "t", count=7))
    assert drawn["real"] == drawn["fake"] == ["basophil"] * 2 + ["monocyte"] * 5


def test_without_classes_it_is_said_that_they_do_not_match(made, tmp_path):
    _, key = made
    assert key["notes"][-1].startswith("Classes were not matched: not all images are in subfolders")
    assert "by how often a class comes up" in key["notes"][-1]


def test_what_is_left_out_is_said(folders, tmp_path, capsys):
    real, fake = folders
    shutil.copy(real / "monocyte/patient0.png", real / "monocyte/zwilling.png")
    (real / "note.txt").write_text("a note")
    (real / ".hidden.png").write_bytes(b"")
    whole = (fake / "synthetic0.png").read_bytes()
    (fake / "half.png").write_bytes(whole[: len(whole) // 2])
    write_png(fake / "dot.png", cell(0, 6, 2))
    (fake / "linked").symlink_to(real)
    (fake / "CREDIT.txt").write_text("Somebody <b>, CC BY 4.0\n")
    (fake / "manifest.csv").write_text("file,label,origin\nsynthetic0.png,cell,synthetic\n")
    words = ["--real", str(real), "--fake", str(fake), "--out", str(tmp_path / "out")]
    assert cli.main(["expert-test", *words, "--count", "8"]) == 0
    printed = capsys.readouterr()
    left = dict(json.loads((tmp_path / "out/key.json").read_text("utf-8"))["left_out"])
    assert left == {
        "real/note.txt": "not an image",
        "real/monocyte/zwilling.png": "copy of monocyte/patient0.png",
        "fake/linked": "not a regular file",
        "fake/half.png": "truncated PNG (no IEND chunk)",
        "fake/dot.png": "smaller than 8 pixels on a side",
    }
    assert all(f"left out: {file}: {reason}\n" in printed.out for file, reason in left.items())
    assert "16 images tell a true accuracy of" in printed.out and printed.err == ""
    assert f"{tmp_path / 'out/expert-test.html'}  for the readers" in printed.out
    html = (tmp_path / "out/expert-test.html").read_text("utf-8")
    assert r"Somebody \u003cb>, CC BY 4.0" in html


def copy_byte_for_byte(real, fake):
    shutil.copy(real / "basophil/patient1.png", fake / "other.png")
    return {}, r"basophil/patient1\.png and .*other\.png"


def copy_pixels(real, fake):
    image = cv2.imread(str(real / "basophil/patient1.png"))
    cv2.imwrite(str(fake / "other.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    return {"count": 9}, r"1 images are the same .*basophil/patient1\.png and .*other\.png"


def too_few(real, fake):
    (fake / "half.png").write_bytes(b"nothing")
    return {"count": 9}, r"8 usable fake images, but 9 are.*half\.png: not an image"


def none_usable(real, fake):
    for file in fake.iterdir():
        file.write_bytes(b"nothing")
    return {"count": 1}, r"0 usable fake images, but 1 are.*synthetic0\.png: not an image"


def none_at_all(real, fake):
    shutil.rmtree(real / "basophil")
    shutil.rmtree(real / "monocyte")
    return {"count": 1}, "0 usable real images, but 1 are asked for$"


def mix(real, fake):
    name = next(real.glob("*/*.*")).relative_to(real)
    (real / "manifest.csv").write_text(f"file,label,origin\na.png,m,real\n{name},m,synthetic\n")
    return {}, r"hospital: .*hospital/manifest\.csv lists images of origin synthetic, not real"


def generated_one_folder_too_deep(real, fake):
    file = next(real.glob("*/*.*"))
    table = pd.DataFrame({"path": [file.name], "origin": ["synthetic"]})
    table.to_parquet(file.with_name("manifest.parquet"))
    return {}, rf"hospital: .*{file.parent.name}/manifest\.parquet lists images of origin synthetic"


def generated_by_a_manifest_above(real, fake):
    name = next(real.glob("*/*.*")).relative_to(real.parent)
    (real.parent / "manifest.csv").write_text(f"path,origin\n{name},synthetic\n")
    return {}, r"hospital: .*/manifest\.csv lists images of origin synthetic"


def unlisted_but_generated(real, fake):
    write_png(real / "basophil" / "new.png", cell(7, 32, 0), cellaug='{"generator": "g"}')
    return {}, r"hospital: 1 of 10 images are generated, such as basophil/new\.png"


def mix_the_other_way(real, fake):
    name = next(fake.glob("*.*")).name
    (fake / "manifest.csv").write_text(f"file,origin\n{name},real\nb.png,synthetic\n")
    return {}, r"network: .*network/manifest\.csv lists images of origin real"


@pytest.mark.parametrize(
    "spoil",
    [
        copy_byte_for_byte,
        copy_pixels,
        too_few,
        none_usable,
        none_at_all,
        mix,
        generated_one_folder_too_deep,
        generated_by_a_manifest_above,
        unlisted_but_generated,
        mix_the_other_way,
    ],
)
def test_images_that_make_no_trial_are_refused(folders, tmp_path, spoil):
    options, message = spoil(*folders)
    with pytest.raises(DataError, match=message):
        write_test(*folders, tmp_path / "out", **{"count": COUNT, **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected a whole number from 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"size": 7}, "size: expected a whole number from 8"),
        ({"real": "nowhere"}, "nowhere: no such folder; expected one with real images"),
        ({"out": "trial"}, "trial holds files already"),
    ],
)
def test_wrong_options_are_refused(folders, made, tmp_path, options, message):
    before = sorted(tmp_path.iterdir())
    for name in {"real", "out"} & options.keys():
        options = options | {name: tmp_path / options[name]}
    given = {"real": folders[0], "fake": folders[1], "out": tmp_path / "out", "count": COUNT}
    with pytest.raises(DataError, match=message):
        write_test(**(given | options))
    assert sorted(tmp_path.iterdir()) == before


def test_importing_is_light():
    code = "import sys, cellaug.evaluation.expert_page; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"keras", "tensorflow", "jax", "matplotlib", "IPython"} & set(done.stdout.split())


# --- the page in a browser -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as running:
        yield running


def opened(chromium, folder, viewport=browser.DESKTOP, prepare=None, **options):
    return browser.Visit(chromium, folder, "expert-test.html", viewport, prepare, **options)


def closed(visit):
    """Close a page that must not have complained or asked for anything."""
    assert (visit.errors, visit.outside, visit.failed) == ([], [], [])
    visit.close()


def shown(page):
    """The picture on show, as the browser draws it; bool: whether it is a real one."""
    pixel = page.evaluate(
        """async () => {
            const image = document.getElementById('picture');
            await image.decode();
            const canvas = new OffscreenCanvas(24, 24).getContext('2d');
            canvas.drawImage(image, 0, 0);
            const values = canvas.getImageData(0, 0, 24, 24).data;
            return [0, 2].map((c) => values.filter((_, i) => i % 4 === c).reduce((a, b) => a + b));
        }"""
    )
    return pixel[0] > pixel[1]


def hide(page, hidden):
    """Tell the page that it is behind another one, or in front again."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, writable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def place(page):
    return page.locator("#place").inner_text()


def test_answered_by_keyboard(chromium, made, tmp_path, capsys):
    out, key = made

    def stop_the_clock(page):
        page.clock.install(time=0)
        page.clock.pause_at(1000)  # seconds

    visit = opened(chromium, out, prepare=stop_the_clock)
    page = visit.page
    press, wait = page.keyboard.press, page.clock.run_for
    assert "12 images" in page.locator("#start").inner_text()
    assert "after closing or reloading this page you can go on" in page.inner_text("#storage")
    press("Shift+Tab")
    page.keyboard.type("fr")  # no answers yet: the field takes them
    press("Enter")
    assert page.locator("#start").is_hidden() and place(page) == "Image 1 of 12"

    truth, said = key["real"], {}
    for index in range(5):  # right but for the second
        assert shown(page) == truth[index]
        said[index] = truth[index] != (index == 1)
        wait(1000 + index)
        press((("f", "ArrowRight"), ("r", "ArrowLeft"))[said[index]][index % 2])
    assert place(page) == "Image 6 of 12" and page.locator("#bar").evaluate("b => b.value") == 5

    # back by two, and one answer changed: then on with the first open one
    wait(10)
    press("Backspace")
    wait(200)
    press("Backspace")
    assert place(page) == "Image 4 of 12"
    assert page.inner_text("#before") == f"So far: {'real' if truth[3] else 'fake'}"
    pressed = [page.get_attribute(f"#{name}", "aria-pressed") for name in ("real", "fake")]
    assert pressed == [str(truth[3]).lower(), str(not truth[3]).lower()]
    said[3] = not truth[3]
    wait(3000)
    press("R" if said[3] else "F")
    assert place(page) == "Image 6 of 12" and page.inner_text("#before") == ""

    # a held key answers once
    said[5] = True
    page.keyboard.down("r")
    page.keyboard.down("r")
    page.keyboard.down("r")
    page.keyboard.up("r")
    assert place(page) == "Image 7 of 12"

    # not meant for the page
    press("Control+f")
    press("x")
    assert place(page) == "Image 7 of 12"
    press("p")
    assert page.locator("#pixels").is_checked()
    assert page.locator("#picture").evaluate("i => getComputedStyle(i).imageRendering") == (
        "pixelated"
    )

    # the time runs while the page is seen, and from visit to visit
    wait(30)
    hide(page, True)
    wait(5000)
    hide(page, False)
    wait(10)
    page.reload()
    wait(5000)
    assert page.inner_text("#so-far") == "6 of 12 images are answered already."
    assert page.input_value("#initials") == "fr"
    press("Enter")
    assert place(page) == "Image 7 of 12" and page.locator("#pixels").is_checked()
    for index in range(6, 12):
        assert shown(page) == truth[index]
        said[index] = truth[index]
        wait(2)
        press("r" if said[index] else "f")
    assert page.locator("#trial").is_hidden()
    assert page.locator("#end h1").inner_text() == "All 12 images are answered"

    # and once more from the end: the last one, then one out of the list
    press("Backspace")
    assert place(page) == "Image 12 of 12"
    said[11] = not truth[11]
    press("r" if said[11] else "f")
    page.get_by_role("button", name=re.compile("^8 ")).click()
    assert place(page) == "Image 8 of 12"
    press("r" if said[7] else "f")

    with page.expect_download() as download:
        press("d")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == f"answers-{key['trial']}.json"
    assert page.inner_text("#done") == f"Exported as {file.name}"
    assert page.input_value("#text") == file.read_text().rstrip("\n")
    closed(visit)

    content = json.loads(file.read_text())
    assert content["trial"] == key["trial"] and content["initials"] == "fr"
    assert content["said_real"] == [said[index] for index in range(12)]
    assert content["milliseconds"][:7] == [1000, 1001, 1002, 1003 + 3000, 1004 + 200, 10, 42]
    assert content["milliseconds"][7:] == [2] * 5
    assert content["started"] == "1970-01-01T00:16:40.000Z" < content["finished"]

    # by hand: wrong are images 2, 4 and 12, and 6 if it was fake
    wrong = [index for index in range(12) if said[index] != truth[index]]
    assert wrong == [1, 3, *([] if truth[5] else [5]), 11]
    lost = sum(truth[index] for index in wrong)
    table = [[6 - lost, lost], [len(wrong) - lost, 6 - (len(wrong) - lost)]]
    assert cli.main(["expert-score", str(file), str(out / "key.json"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    (reader,) = scores["readers"]
    assert reader["confusion"] == table
    assert reader["median_seconds"] == np.median(content["milliseconds"]) / 1000
    assert reader["recall"]["value"] == (6 - lost) / 6
    kept = 6 - (len(wrong) - lost)  # generated ones that were not taken for real
    specificity = reader["specificity"]
    assert specificity["value"] == kept / 6 and 0 < kept < 6
    ends = stats.beta.ppf([0.025, 0.975], [kept, kept + 1], [7 - kept, 6 - kept])
    assert [specificity["low"], specificity["high"]] == pytest.approx(list(ends))
    # 10 or more right of 12 are better than guessing at level 0.05, 9 are not
    least, power = (scores["power"][key] for key in ("detectable_accuracy", "power"))
    assert stats.binom.sf(9, 12, least) == pytest.approx(power, abs=0.01)
    # chapter 02 reads the same file
    assert read_answers(file, key["trial"])["said_real"].tolist() == content["said_real"]


def test_answered_by_touch_on_a_phone_in_the_dark(chromium, made, tmp_path):
    out, key = made
    visit = opened(
        chromium, out, browser.PHONE, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    page = visit.page
    page.get_by_role("button", name="Start").tap()
    page.get_by_role("button", name="Real").tap()
    page.get_by_role("button", name="Back").tap()
    assert place(page) == "Image 1 of 12"
    boxes = [
        page.locator(f"#{name}").bounding_box() for name in ("picture", "real", "fake", "back")
    ]
    for box in boxes:
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844  # without scrolling
    assert boxes[0]["width"] == boxes[0]["height"] > 340
    assert min(box["height"] for box in boxes[1:]) >= 44
    for index, real in enumerate(key["real"]):
        assert place(page) == f"Image {index + 1} of 12"
        page.get_by_role("button", name="Fake" if real else "Real").tap()  # all of them wrong
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").tap()
    file = tmp_path / "answers.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Copy").tap()
    assert page.evaluate("String(getSelection())") == file.read_text().strip()
    closed(visit)
    (reader,) = score_answers([file], out / "key.json")["readers"]
    assert reader["confusion"] == [[0, 6], [6, 0]] and reader["initials"] == ""


def test_without_storage_it_goes_on_and_says_so(chromium, made):
    def forbid(page):
        page.add_init_script(
            "Object.defineProperty(window, 'localStorage',"
            " {get() { throw new DOMException('denied', 'SecurityError'); }})"
        )

    visit = opened(chromium, made[0], prepare=forbid)
    page = visit.page
    assert "do not close or reload" in page.inner_text("#storage")
    page.keyboard.press("Enter")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert json.loads(page.input_value("#text"))["said_real"] == [False] * 12
    page.reload()
    assert page.locator("#so-far").is_hidden()
    closed(visit)


def test_within_a_notebook(chromium, made, tmp_path):
    """As in chapter 02: in a frame, whose page keeps its answers and exports them."""
    html = (made[0] / "expert-test.html").read_text("utf-8")
    frame = IFrame("about:blank", "100%", 720, [f'srcdoc="{escape(html)}"'])
    (tmp_path / "notebook.html").write_text(f"<!doctype html>{frame._repr_html_()}")
    visit = browser.Visit(chromium, tmp_path, "notebook.html", browser.DESKTOP)
    inside = visit.page.frame_locator("iframe")
    assert "after closing or reloading" in inside.locator("#storage").inner_text()
    inside.get_by_role("button", name="Start").click()
    for key in "rf" * 6:
        visit.page.keyboard.press(key)
    with visit.page.expect_download() as download:
        visit.page.keyboard.press("d")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert read_answers(file, made[1]["trial"])["said_real"].tolist() == [True, False] * 6
    closed(visit)


def test_next_reader_starts_anew(chromium, made):
    visit = opened(chromium, made[0])
    page = visit.page
    page.keyboard.press("Enter")
    page.keyboard.press("r")
    page.reload()
    answer = []
    page.on("dialog", lambda dialog: (answer.append(dialog.message), dialog.accept()))
    page.get_by_role("button", name="Delete the answers and start again").click()
    assert answer == ["Delete all answers to this trial from this browser?"]
    page.reload()
    assert page.locator("#so-far").is_hidden() and page.inner_text("#go") == "Start"
    # what is damaged there is passed over
    page.evaluate(f"localStorage.setItem('cellaug-expert-{made[1]['trial']}', '[1')")
    page.reload()
    page.keyboard.press("Enter")
    assert place(page) == "Image 1 of 12"
    closed(visit)


def test_policy_forbids_the_network(chromium, made):
    visit = opened(chromium, made[0])
    refused = visit.page.evaluate(
        """async () => {
            const found = [];
            document.addEventListener('securitypolicyviolation',
                (event) => found.push(event.effectiveDirective));
            await fetch('http://127.0.0.1:9/').catch(() => null);
            new Image().src = 'http://127.0.0.1:9/a.png';
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
            await new Promise((done) => setTimeout(done, 100));
            return [found.sort(), window.ran ?? false];
        }"""
    )
    assert refused == [["connect-src", "img-src", "script-src-elem"], False]
    visit.close()


CONTRAST = """() => {
    const light = (text) => {
        const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = {};
    for (const element of document.querySelectorAll('body *')) {
        if (!element.checkVisibility() || element.disabled || !element.textContent.trim()) continue;
        let behind = element;
        while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') {
            behind = behind.parentElement;
        }
        const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        const [low, high] = pair.map(light).sort((a, b) => a - b);
        found[pair.join(' on ')] = (high + 0.05) / (low + 0.05);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_names(chromium, made, scheme):
    visit = opened(chromium, made[0], color_scheme=scheme)
    page = visit.page
    seen = {}
    for keys in (["Enter"], ["r", "Backspace"], ["f"] * 12):
        seen |= page.evaluate(CONTRAST)
        for key in keys:
            page.keyboard.press(key)
    seen |= page.evaluate(CONTRAST)
    assert page.locator("#end").is_visible() and len(seen) >= 4
    assert min(seen.values()) >= 4.5, seen  # WCAG AA
    assert page.get_attribute("#place", "role") == "status"  # read aloud when it changes
    page.keyboard.press("Backspace")
    assert page.get_by_role("img", name="Cell 12", exact=True).is_visible()
    assert page.get_by_role("progressbar", name="Images answered").is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("document.activeElement.id") == "pixels"
    closed(visit)


# --- the score -----------------------------------------------------------------------------------


@pytest.fixture
def thesis_trial(tmp_path):
    """A key of 50 and 50 images, and the answers of Table 2."""
    real = [True] * 50 + [False] * 50
    said = [True] * 44 + [False] * 6 + [True] * 23 + [False] * 27
    key, file = tmp_path / "key.json", tmp_path / "a.json"
    key.write_text(json.dumps({"format": 1, "trial": "aa", "real": real}))
    content = {"format": 1, "trial": "aa", "said_real": said, "milliseconds": list(range(100))}
    content |= {"started": "s", "finished": "f", "initials": "TE\u001b[1m"}
    file.write_text(json.dumps(content))
    return file, key, content


def test_score_of_the_thesis(thesis_trial, capsys):
    file, key, _ = thesis_trial
    assert cli.main(["expert-score", str(file), str(key)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trial aa: 50 real and 50 fake images"
    assert [line.split() for line in lines[2:5]] == [
        ["TE[1m", "called", "real", "called", "fake"],
        ["real", "44", "6"],
        ["fake", "23", "27"],
    ]
    row = "TE[1m  0.88 [0.76, 0.95] 0.54 [0.39, 0.68] 0.71 [0.61, 0.80] < 0.001 0.0"
    assert " ".join(lines[7].split()) == " ".join(row.split())
    text = " ".join(lines)
    assert "exact binomial test of the accuracy against 0.5" in text
    assert "100 images tell a true accuracy of 0.65 or more from guessing" in text
    assert "0.63 (haematologists on marrow cells of StyleGAN2-ADA) would take 128." in text
    assert "0.71 (the thesis's expert) would take 49." in text
    assert "pooled" not in text
    assert cli.main(["expert-score", str(file), str(key), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["power"]["trials_needed"] == {"0.63": 128, "0.71": 49}
    assert scores["power"]["detectable_accuracy"] == pytest.approx(0.645, abs=5e-4)
    (reader,) = scores["readers"]
    assert reader["median_seconds"] == 0.0495 and reader["started"] == "s"
    # 71 of 100 or more, and 29 or fewer
    assert reader["against_guessing"]["p"] == pytest.approx(3.216e-5, rel=1e-3)


def test_several_readers_are_not_pooled(thesis_trial, tmp_path):
    file, key, content = thesis_trial
    other = tmp_path / "b.json"
    content |= {"said_real": content["said_real"][::-1], "initials": None, "milliseconds": None}
    other.write_text(json.dumps(content))
    scores = score_answers([file, other], key)
    tables = [reader["confusion"] for reader in scores["readers"]]
    assert tables == [[[44, 6], [23, 27]], [[23, 27], [44, 6]]]
    text = as_text(scores)
    assert "not independent, no pooled" in text
    assert re.search(r"^b\.json .* -$", text, re.MULTILINE)
    with pytest.raises(DataError, match=r"c\.json holds the same answers as .*a\.json"):
        score_answers([file, other, shutil.copy(file, tmp_path / "c.json")], key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial": "bb"}, r"answers to another trial \(bb, this one is aa\)"),
        ({"said_real": [True] * 99 + [None]}, "1 of 100 images are not answered"),
        ({"said_real": [True] * 99, "milliseconds": None}, "expected 100 answers, found 99"),
        ({"said_real": [1] * 100}, "list of true, false and null"),
        ({"said_real": "true"}, "list of true, false and null"),
        ({"milliseconds": [1]}, "milliseconds should be a list of 100 numbers"),
        ({"milliseconds": [-1] * 100}, "milliseconds should be"),
        ({"milliseconds": [float("nan")] * 100}, "milliseconds should be"),
        ({"initials": 5}, "initials should be a text, found 5"),
        ({"format": 2}, "expert test of format 1"),
    ],
)
def test_wrong_answers_are_refused(thesis_trial, change, message, capsys):
    file, key, content = thesis_trial
    file.write_text(json.dumps(content | change))
    with pytest.raises(DataError, match=message):
        score_answers([file], key)
    assert cli.main(["expert-score", str(file), str(key)]) == 2
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "as JSON"),
        ("[" * 100_000, "as JSON"),
        ("[]", "format 1"),
        ('{"format": 1, "trial": "aa", "real": [true, 0]}', "real should be a list"),
        ('{"format": 1, "trial": "aa", "real": []}', "real should be a list"),
        ('{"format": 1, "real": [true]}', "trial should be a text"),
    ],
)
def test_wrong_keys_are_refused(thesis_trial, text, message):
    file, key, _ = thesis_trial
    key.write_text(text)
    with pytest.raises(DataError, match=message):
        score_answers([file], key)


def test_missing_and_swapped_files_are_named(thesis_trial, tmp_path, capsys):
    file, key, _ = thesis_trial
    with pytest.raises(DataError, match=r"a\.json holds answers: give the key, key\.json, as"):
        score_answers([key], file)
    for words in ([file, tmp_path / "none"], [tmp_path / "none", key]):
        assert cli.main(["expert-score", *map(str, words)]) == 2
        assert "none: there" in capsys.readouterr().err
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="answers exported from an expert test, as JSON"):
        score_answers([file], key)


def test_power_statement_promises_no_more_than_there_is():
    assert "4 images are too few" in expert_page.power_statement(4)
    # 0.7039, not 0.70
    assert "50 images tell a true accuracy of 0.71 or more" in expert_page.power_statement(50)


def test_page_refuses():
    with pytest.raises(ValueError, match="at least one"):
        page(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="images: expected uint8"):
        page(np.zeros((1, 8, 8, 3)))
