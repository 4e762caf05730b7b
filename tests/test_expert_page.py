"""The expert test as a page: what is in it, and a person's way through it in a browser."""

import base64
import json
import re
import shutil
import struct
import subprocess
import sys

from cellaug import cli
from cellaug.data import DataError
from cellaug.data.images import write_png
from cellaug.evaluation import expert_page, expert_score, read_answers, trial_hash
from cellaug.evaluation.expert_page import page, write_test
from cellaug.evaluation.expert_score import as_text, score_answers

import browser
import cv2
import numpy as np
import pandas as pd
import pytest
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


def content_of(html):
    """The data in a page."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    return json.loads(data)


def pictures(html, practice=False):
    """The PNG files in a page: those of the trial, or of its practice."""
    start = "data:image/png;base64,"
    uris = (content_of(html)["warm_up"] if practice else content_of(html))["images"]
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
    html = (made[0] / "expert-test.html").read_text("utf-8")
    files = pictures(html) + pictures(html, practice=True)
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
    practice = np.stack([decoded(png) for png in pictures(html, practice=True)])
    truth = [looks_real(image) for image in practice]
    assert html == page(images, practice=(practice, truth))
    for word in ("hospital", "network", "monocyte", "patient", "synthetic", "seed", "key.json"):
        text = re.sub(r"base64,[^\"]*", "", html).replace("neural network", "")
        assert word not in text, word


def test_practice_shows_other_cells_as_many_of_each_kind(made, folders, tmp_path):
    out, key = made
    content = content_of((out / "expert-test.html").read_text("utf-8"))
    images = [decoded(png) for png in pictures((out / "expert-test.html").read_text(), True)]
    assert [looks_real(image) for image in images] == content["warm_up"]["answers"]
    assert sum(content["warm_up"]["answers"]) == 2 and len(images) == 4
    assert not set(key["practice"]) & set(key["files"]) and len(set(key["practice"])) == 4
    assert content["answers"] is None  # of the trial nothing is told
    # none where the trial takes all images of a kind
    assert write_test(*folders, tmp_path / "all", count=8)["practice"] == []


def test_page_asks_for_nothing_outside(made):
    html = (made[0] / "expert-test.html").read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    code = re.sub(r"base64,[^\"]*", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<iframe|<object|<link rel=.style", code)
    links = re.findall(r'\b(?:src|href)="([^"]*)"', html)
    assert links == ["data:,"]


@pytest.mark.parametrize(
    "wrong", [{"practice": (np.zeros((2, 8, 8, 3), np.uint8), [True])}, {"answers": [True, False]}]
)
def test_page_refuses_too_few_or_too_many_answers(wrong):
    with pytest.raises(ValueError, match="one answer for each image"):
        page(np.zeros((1, 8, 8, 3), np.uint8), **wrong)


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


def test_a_full_disk_is_named_with_what_is_needed(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("cellaug.files.free_bytes", lambda _: 1000)
    with pytest.raises(DataError, match=r"the test needs 0\.\d+ MiB more, but the disk has 0\.000"):
        write_test(*folders, tmp_path / "a", count=COUNT)
    assert not (tmp_path / "a").exists()


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


def test_which_class(tmp_path, folders):
    """The page offers the classes that both sides have, and its key has each image's."""
    real, fake = tmp_path / "r", tmp_path / "f"
    of_classes(real, {"Monocyte": 6, "basophil": 6, "blast": 4}, 0)
    of_classes(fake, {"monocyte": 6, "basophil": 6}, 2)
    key = write_test(real, fake, tmp_path / "t", count=5, ask="class")
    content = content_of((tmp_path / "t/expert-test.html").read_text("utf-8"))
    assert content["classes"] == ["basophil", "Monocyte"] and key["ask"] == "class"
    named = [file.rpartition("/")[2].lower() for file in key["files"]]
    assert all(x.startswith(y.lower()) for x, y in zip(named, key["classes"], strict=True))
    named = [file.rpartition("/")[2].lower() for file in key["practice"]]
    told = [content["classes"][k].lower() for k in content["warm_up"]["answers"]]
    assert len(named) == 4 and all(map(str.startswith, named, told))
    with pytest.raises(DataError, match="--ask class needs two classes or more on both sides"):
        write_test(*folders, tmp_path / "none", count=COUNT, ask="class")


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
    (real / "basophil").rename(real / "baso phil")
    (fake / "basophil").rename(fake / "Baso_phil")
    keys = [write_test(real, fake, tmp_path / f"t{s}", count=5, seed=s) for s in range(4)]
    for key in keys:
        drawn = drawn_classes(key)
        assert drawn["real"] == drawn["fake"] and set(drawn["real"]) <= {"monocyte", "basophil"}
        many = {name: drawn["real"].count(name) for name in ("basophil", "monocyte")}
        said = {"basophil": "baso phil", "monocyte": "monocyte"}
        said = ", ".join(f"{count} {said[name]}" for name, count in many.items() if count)
        assert key["notes"][-1] == (
            f"Each side has the same number of images of a class: {said}. "
            "Left out, since one side lacks them: blast."
        )
    assert len({tuple(drawn_classes(key)["real"]) for key in keys}) > 1  # the seed decides
    assert write_test(real, fake, tmp_path / "again", count=5, seed=2) == keys[2]
    whole = drawn_classes(write_test(real, fake, tmp_path / "all", count=7))
    assert whole["real"] == whole["fake"] == ["basophil"] * 3 + ["monocyte"] * 4
    with pytest.raises(
        DataError, match=r"only 7 images of each side match by class \(3 baso phil, 4 m"
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


def test_layouts_and_tables_are_read_as_by_other_commands(tmp_path):
    real, fake = tmp_path / "r", tmp_path / "f"
    rows = ["path,label"]
    for number in range(24):
        name, patient = ("basophil", "monocyte")[number % 2], f"P{number % 3}"
        (real / name / patient).mkdir(parents=True, exist_ok=True)
        write_png(real / name / patient / f"{number}.png", cell(number, 24, 0))
        rows.append(f"{name}/{patient}/{number}.png,{name}")
    of_classes(fake, {"monocyte": 4, "basophil": 4}, 2)
    (tmp_path / "r" / "cells.csv").write_text("\n".join(rows[:-4]))
    (tmp_path / "r" / "CREDIT.txt").write_text("Somebody else, CC BY 4.0\n")
    for k, source in enumerate((real, real / "cells.csv")):
        key = write_test(source, fake, tmp_path / f"t{k}", count=8)
        of_real = [x for x, real_one in zip(key["classes"], key["real"], strict=True) if real_one]
        assert sorted(of_real) == ["basophil"] * 4 + ["monocyte"] * 4
        assert "Somebody else, CC BY 4.0" in (tmp_path / f"t{k}" / "expert-test.html").read_text()
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "generator.json").write_text("{}")
    with pytest.raises(
        DataError, match="is a generator, not a folder of images; draw images first"
    ):
        write_test(real, tmp_path / "g", tmp_path / "t")


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
    assert f"{tmp_path / 'out/expert-test.html'}  for the participants" in printed.out
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
    name, other = sorted(path.name for path in fake.glob("*.*"))[:2]
    (fake / "manifest.csv").write_text(f"file,origin\n{name},real\n{other},synthetic\n")
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


def practise(page):
    """Through the four images that come before the trial."""
    for number in range(4):
        assert place(page) == f"Practice {number + 1} of 4"
        real = shown(page)
        page.keyboard.press("r")
        page.keyboard.press("3")
        word = "Right: this one is real." if real else "No: this one is generated."
        assert page.inner_text("#told") == word
        page.keyboard.press("Enter")
    assert place(page) == "Image 1 of 12"
    assert "from here on your answers count" in page.inner_text("#hasty")


def say(page, key, sure="2"):
    page.keyboard.press(key)
    page.keyboard.press(sure)


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
    page.keyboard.type("gr")  # no answers yet: the field takes them
    press("Enter")
    assert page.locator("#start").is_hidden()
    practise(page)

    truth, said = key["real"], {}
    for index in range(5):  # right but for the second
        assert shown(page) == truth[index]
        said[index] = truth[index] != (index == 1)
        wait(1000 + index)
        press((("g", "ArrowRight"), ("r", "ArrowLeft"))[said[index]][index % 2])
        assert place(page) == f"Image {index + 1} of 12"  # not before it is said how sure
        press(str(index % 3 + 1))
        assert page.inner_text("#hasty") == ""
    assert place(page) == "Image 6 of 12" and page.locator("#bar").evaluate("b => b.value") == 5
    press("3")  # says nothing without an answer
    assert place(page) == "Image 6 of 12"

    # back by two, and one answer changed: then on with the first open one
    wait(10)
    press("Backspace")
    wait(200)
    press("Backspace")
    assert place(page) == "Image 4 of 12"
    assert page.inner_text("#before") == f"So far: {'real' if truth[3] else 'generated'}"
    pressed = [page.get_attribute(f"#{name}", "aria-pressed") for name in ("real", "generated")]
    assert pressed == [str(truth[3]).lower(), str(not truth[3]).lower()]
    said[3] = not truth[3]
    wait(3000)
    for sign in ("granules", "red cells", "granules"):  # one of them taken back
        page.get_by_role("button", name=sign).click()
    say(page, "R" if said[3] else "G", "1")
    assert place(page) == "Image 6 of 12" and page.inner_text("#before") == ""

    # a held key answers once
    said[5] = True
    press("r")
    page.keyboard.down("3")
    page.keyboard.down("3")
    page.keyboard.up("3")
    assert place(page) == "Image 7 of 12"
    assert page.inner_text("#hasty") == "Image 6 took less than half a second. Take your time."

    # not meant for the page
    press("Control+g")
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
    assert page.input_value("#initials") == "gr"
    press("Enter")
    assert place(page) == "Image 7 of 12" and page.locator("#pixels").is_checked()
    for index in range(6, 12):
        assert shown(page) == truth[index]
        said[index] = truth[index]
        wait(2)
        say(page, "r" if said[index] else "g")
    assert page.locator("#trial").is_hidden()
    assert page.locator("#end h1").inner_text() == "All 12 images are answered"

    # and once more from the end: the last one, then one out of the list
    press("Backspace")
    assert place(page) == "Image 12 of 12"
    said[11] = not truth[11]
    say(page, "r" if said[11] else "g")
    page.get_by_role("button", name=re.compile(r"^8 .*\(quick\)$")).click()
    assert place(page) == "Image 8 of 12"
    say(page, "r" if said[7] else "g")
    assert page.inner_text("#quick").startswith("7 of 12 images took less than half a second")

    press("d")  # the key of an answer, "drawn", exports nothing
    assert page.inner_text("#done") == ""
    press("Tab")
    with page.expect_download() as download:
        press("Enter")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == f"answers-{key['trial']}.json"
    assert page.inner_text("#done") == f"Exported as {file.name}"
    assert page.input_value("#text") == file.read_text().rstrip("\n")
    closed(visit)

    content = json.loads(file.read_text())
    assert content["trial"] == key["trial"] and content["initials"] == "gr"
    assert content["said_real"] == [said[index] for index in range(12)]
    assert content["milliseconds"][:7] == [1000, 1001, 1002, 1003 + 3000, 1004 + 200, 10, 42]
    assert content["milliseconds"][7:] == [2] * 5
    assert content["confidence"] == [1, 2, 3, 1, 2, 3, *[2] * 6]
    assert content["why"] == [["red cells"] if index == 3 else [] for index in range(12)]
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
    assert not page.locator("kbd:visible").count()  # no hints to keys that a phone has not
    page.get_by_role("button", name="Start").tap()
    for _ in range(4):
        page.get_by_role("button", name="Real").tap()
        page.get_by_role("button", name="Guessed").tap()
        page.get_by_role("button", name="Next").tap()
    page.get_by_role("button", name="Real").tap()
    page.get_by_role("button", name="Sure").tap()
    page.locator("#back").tap()
    assert place(page) == "Image 1 of 12" and not page.locator("kbd:visible").count()
    names = ("picture", "real", "generated", "sure", "why", "back")
    boxes = [page.locator(f"#{name}").bounding_box() for name in names]
    for box in boxes:
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844  # without scrolling
    assert boxes[0]["width"] == boxes[0]["height"] > 340
    assert min(box["height"] for box in boxes[1:]) >= 44
    assert (
        page.locator("#why button").evaluate_all(
            "all => Math.min(...all.map((one) => one.getBoundingClientRect().height))"
        )
        >= 32
    )
    for index, real in enumerate(key["real"]):
        assert place(page) == f"Image {index + 1} of 12"
        page.get_by_role("button", name="Generated" if real else "Real").tap()  # all of them wrong
        page.get_by_role("button", name="Fairly").tap()
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
    practise(page)
    for _ in range(12):
        say(page, "ArrowRight")
    assert json.loads(page.input_value("#text"))["said_real"] == [False] * 12
    page.reload()
    assert page.locator("#so-far").is_hidden()
    closed(visit)


def test_within_a_notebook(chromium, made, tmp_path):
    """As in chapter 02: in a frame, whose page keeps its answers and exports them."""
    html = (made[0] / "expert-test.html").read_text("utf-8")
    frame = expert_page.frame(html)
    (tmp_path / "notebook.html").write_text(f"<!doctype html>{frame._repr_html_()}")
    visit = browser.Visit(chromium, tmp_path, "notebook.html", browser.DESKTOP)
    inside = visit.page.frame_locator("iframe")
    assert "after closing or reloading" in inside.locator("#storage").inner_text()
    inside.get_by_role("button", name="Start").click()
    for _ in range(4):
        for key in ("r", "1", "Enter"):
            visit.page.keyboard.press(key)
    assert inside.locator("#asleep").is_hidden()
    for key in "rg" * 6:
        say(visit.page, key)
    with visit.page.expect_download() as download:
        inside.get_by_role("button", name="Download").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert read_answers(file, made[1]["trial"])["said_real"].tolist() == [True, False] * 6
    closed(visit)


def test_beside_a_notebook_it_says_who_has_the_keys(chromium, made, tmp_path):
    html = (made[0] / "expert-test.html").read_text("utf-8")
    frame = expert_page.frame(html)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><button>a cell</button>{frame}")
    visit = browser.Visit(chromium, tmp_path, "notebook.html", browser.DESKTOP)
    inside = visit.page.frame_locator("iframe")
    inside.get_by_role("button", name="Start").click()
    assert inside.locator("#asleep").is_hidden()
    visit.page.get_by_role("button", name="a cell").click()
    inside.locator("#asleep").wait_for()
    assert "Click here first" in inside.locator("#asleep").inner_text()
    inside.locator("#asleep").click()
    inside.locator("#asleep").wait_for(state="hidden")
    closed(visit)


def test_a_taste_tells_each_answer_at_once(chromium, tmp_path):
    images = np.stack([cell(number, 24, 2 * (number % 2)) for number in range(6)])
    truth = [looks_real(image) for image in images]
    html = page(images, answers=truth, more="expert-test.html", drawn=True)
    (tmp_path / "expert-test.html").write_text(html)
    visit = opened(chromium, tmp_path)
    taste = visit.page
    assert "computer drawings" in taste.inner_text("#notice")
    assert "Some are drawn: in this demo by a program, not taken" in taste.inner_text("#start")
    assert taste.title() == "Drawn or generated?"
    assert "D or ← drawn, G or → generated" in " ".join(taste.inner_text(".keys").split())
    assert taste.locator("#initials").is_hidden()
    taste.keyboard.press("Enter")
    for index, real in enumerate(truth):
        assert place(taste) == f"Image {index + 1} of 6" and taste.inner_text("#told") == ""
        taste.keyboard.press("d")
        word = "Right: this one is drawn." if real else "No: this one is generated."
        assert taste.inner_text("#told") == word
        taste.keyboard.press("g")  # too late
        assert taste.inner_text("#told") == word
        taste.keyboard.press("Enter")
    assert (
        taste.inner_text("#result")
        == "You were right on 3 of 6. Guessing is right on 3 on average."
    )
    assert taste.locator("#download").is_hidden() and taste.locator("#quick").is_hidden()
    assert taste.get_attribute("#more a", "href") == "expert-test.html"
    assert taste.inner_text("#list li:nth-child(2)") == "2 generated (you said drawn)"
    taste.reload()
    assert taste.inner_text("#go") == "Start"  # nothing was kept
    closed(visit)


def test_which_class_is_answered_and_exported(chromium, tmp_path):
    images = np.stack([cell(number, 24, 2) for number in range(3)])
    names = ["monocyte", "basophil", "platelet"]
    (tmp_path / "expert-test.html").write_text(page(images, classes=names))
    visit = opened(chromium, tmp_path)
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("button", name="basophil").click()
    visit.page.keyboard.press("3")
    say(visit.page, "c", "1")
    say(visit.page, "a", "2")
    text = json.loads(visit.page.input_value("#text"))
    assert text["said_class"] == ["basophil", "platelet", "monocyte"] and "said_real" not in text
    assert text["confidence"] == [3, 1, 2]
    assert visit.page.title() == "Which class?"
    closed(visit)


def test_next_reader_starts_anew(chromium, made):
    visit = opened(chromium, made[0])
    page = visit.page
    page.keyboard.press("Enter")
    practise(page)
    say(page, "r")
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
    assert place(page) == "Practice 1 of 4"
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
    for keys in (
        ["Enter"],
        ["r"],
        ["1"],
        ["Enter", *("r1", "Enter") * 3],
        ["r1", "Backspace"],
        ["g3"] * 12,
    ):
        seen |= page.evaluate(CONTRAST)
        for key in keys:
            for one in [key] if len(key) > 2 else key:
                page.keyboard.press(one)
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
    assert lines[1].startswith("TE[1m told real from generated cells better than by guessing")
    assert [line.split() for line in lines[3:6]] == [
        ["TE[1m", "called", "real", "called", "fake"],
        ["real", "44", "6"],
        ["fake", "23", "27"],
    ]
    row = "TE[1m  0.88 [0.76, 0.95] 0.54 [0.39, 0.68] 0.71 [0.61, 0.80] < 0.001 0.0"
    assert " ".join(lines[8].split()) == " ".join(row.split())
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
    assert re.search(r"^ *b\.json .* -$", text, re.MULTILINE)
    with pytest.raises(DataError, match=r"c\.json holds the same answers as .*a\.json"):
        score_answers([file, other, shutil.copy(file, tmp_path / "c.json")], key)


def test_a_result_says_what_it_found(thesis_trial, tmp_path, capsys):
    """By hand: 44 of 50 real and 27 of 50 generated cells are named right."""
    file, key, content = thesis_trial
    document = json.loads(key.read_text())
    document["classes"] = ["a", "b"] * 50
    key.write_text(json.dumps(document))
    sure = [3] * 44 + [1] * 6 + [2] * 23 + [3] * 27
    content |= {"confidence": sure, "why": [["blur"]] * 2 + [[]] * 98}
    file.write_text(json.dumps(content))
    second = tmp_path / "b.json"
    said = [*content["said_real"][:50], *[True] * 10, *[False] * 40]
    second.write_text(json.dumps(content | {"said_real": said, "initials": "b", "why": None}))
    scores = score_answers([file, second], key)
    first, other = scores["readers"]
    assert first["sentence"] == (
        "TE[1m told real from generated cells better than by guessing: 71 of 100 (0.71, 95 % "
        "interval 0.61 to 0.80) were right, p < 0.001."
    )
    assert first["by_class"] == {
        "a": {"fake": [13, 25], "real": [22, 25]},
        "b": {"fake": [14, 25], "real": [22, 25]},
    }
    assert first["by_confidence"] == {"1": [0, 6], "2": [0, 23], "3": [71, 71]}
    assert first["why"] == {"blur": 2} and first["hasty"] == 100 and other["why"] == {}
    # they differ in 13 generated cells; by hand: 67 and 54 of 100 called real
    chance = 0.67 * 0.54 + 0.33 * 0.46
    (pair,) = scores["agreement"]
    assert pair["readers"] == ["TE[1m", "b"] and pair["same"] == 0.87
    assert pair["kappa"] == pytest.approx((0.87 - chance) / (1 - chance))
    rated = scores["generated"]
    assert [cell["index"] for cell in rated[:10]] == list(range(50, 60))
    assert rated[0]["called_real"] == 2 and rated[0]["rating"] == 2
    assert rated[-1]["called_real"] == 0 and rated[-1]["rating"] == -3
    text = as_text(scores)
    assert "guessed 0 of 6, fairly sure 0 of 23, sure 71 of 71" in text
    assert "Warning: TE[1m gave 100 answers in under 0.5 seconds." in text
    assert "TE[1m and b: 0.87," in text and "what gave it away: blur 2." in text


@pytest.mark.parametrize(
    ("right", "words"),
    [
        (50, "no better than by guessing, as far as so many images can show"),
        (80, "better than by guessing"),
        (20, "worse than by guessing"),
    ],
)
def test_the_sentence_follows_from_the_test(thesis_trial, right, words):
    file, key, content = thesis_trial
    half = right // 2
    content["said_real"] = [k < half for k in range(50)] + [k >= half for k in range(50)]
    file.write_text(json.dumps(content))
    (reader,) = score_answers([file], key)["readers"]
    assert f"generated cells {words}: {right} of 100" in reader["sentence"]


def test_the_most_convincing_and_the_most_obvious_cells_as_a_picture(made, tmp_path, capsys):
    out, key = made
    fake = [index for index, real in enumerate(key["real"]) if not real]
    said = [True] * 12
    said[fake[0]] = said[fake[1]] = False
    content = {"format": 1, "trial": key["trial"], "said_real": said}
    content["confidence"] = [3 if k in (fake[1], fake[4]) else 1 for k in range(12)]
    file, drawn = tmp_path / "a.json", tmp_path / "cells.png"
    file.write_text(json.dumps(content))
    words = ["expert-score", str(file), str(out / "key.json"), "--figure", str(drawn)]
    assert cli.main(words) == 0
    assert cv2.imread(str(drawn)).shape[0] > 100
    text = capsys.readouterr().out
    assert f"most convincing generated cells:\n{key['files'][fake[4]]}  rating +3.0" in text
    assert f"most obvious generated cells:\n{key['files'][fake[1]]}  rating -3.0" in text
    scores = score_answers([file], out / "key.json")
    rows, _, captions = expert_score.extremes(scores, out / "key.json")
    trial = [decoded(png) for png in pictures((out / "expert-test.html").read_text())]
    assert {name: len(images) for name, images in rows.items()} == {
        "most convincing": 4, "most obvious": 2,
    }  # fmt: skip
    assert np.array_equal(rows["most convincing"][0], trial[fake[4]])
    assert np.array_equal(rows["most obvious"][0], trial[fake[1]])
    assert captions[0] == "\nreal: 1 of 1" and captions[-1] == "\nreal: 0 of 1"
    (out / "expert-test.html").unlink()
    assert cli.main(words) == 2
    assert "the page beside its key" in capsys.readouterr().err


def test_score_of_classes(tmp_path, capsys):
    """By hand: 3 of 4 real and 1 of 4 generated cells get the class of their label."""
    key, file = tmp_path / "key.json", tmp_path / "a.json"
    document = {"format": 1, "trial": "aa", "real": [True] * 4 + [False] * 4, "ask": "class"}
    document["classes"] = ["mono", "baso"] * 4
    key.write_text(json.dumps(document))
    said = ["mono", "baso", "mono", "mono", "baso", "baso", "baso", "mono"]
    content = {"format": 1, "trial": "aa", "said_class": said, "initials": "x"}
    file.write_text(json.dumps(content))
    assert cli.main(["expert-score", str(file), str(key), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    (reader,) = scores["readers"]
    assert reader["real"]["successes"] == 3 and reader["fake"]["successes"] == 1
    assert reader["confused"] == [["mono", "baso", 2], ["baso", "mono", 1]]
    # of 8 images 4 are right; the table [[3, 1], [1, 3]] has p = 34 / 70
    assert reader["difference"] == pytest.approx(34 / 70)
    assert reader["by_class"]["mono"] == {"fake": [0, 2], "real": [2, 2]}
    assert scores["generated"] == []
    assert cli.main(["expert-score", str(file), str(key)]) == 0
    text = capsys.readouterr().out
    assert "x gave generated cells the class that they were made as in 1 of 4 (0.25" in text
    assert "mono called baso: 2; baso called mono: 1" in text and "guessing" not in text
    file.write_text(json.dumps({"format": 1, "trial": "aa", "said_real": [True] * 8}))
    with pytest.raises(DataError, match="expected said_class, because the key asks for that"):
        score_answers([file], key)


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
        ({"confidence": [4] * 100}, "confidence should be a list of 100 numbers from 1 to 3"),
        ({"why": ["blur"] * 100}, "why should be a list of 100 lists"),
        ({"said_class": [1] * 100}, "said_class should be a list of texts and null"),
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
        ('{"format": 1, "trial": "aa", "real": [true], "classes": []}', "list of 1 texts"),
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
    assert "4 images are too few" in expert_score.power_statement(4)
    # 0.7039, not 0.70
    assert "50 images tell a true accuracy of 0.71 or more" in expert_score.power_statement(50)


def test_page_refuses():
    with pytest.raises(ValueError, match="at least one"):
        page(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="images: expected uint8"):
        page(np.zeros((1, 8, 8, 3)))
