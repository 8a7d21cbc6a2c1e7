"""Folders of images and texts, one folder a class."""

from pathlib import Path

import pytest
from PIL import Image

from hf_llm_recipes.data.loading import Source, load, read_rows
from hf_llm_recipes.errors import DataError


def images(folder: Path, grey: int, count: int = 1) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", (4, 4), grey + number).save(folder / f"{number}.png")


def rows(data) -> list[tuple[str, str]]:
    """File and class of each row."""
    return [(Path(row["image"]["path"]).name, row["label"]) for row in data]


def test_images_in_folders_of_splits_and_classes(tmp_path):
    images(tmp_path / "photos/train/cat", 10, count=2)
    images(tmp_path / "photos/train/sea dog/young", 20)
    images(tmp_path / "photos/val_later/cat", 70)  # names no split
    images(tmp_path / "photos/validation/cat", 30)
    images(tmp_path / "photos/test/sea dog", 40)
    (tmp_path / "photos/train/cat/notes.md").write_text("no image\n")
    (tmp_path / "photos/train/cat/.DS_Store").write_text("not seen\n")
    (tmp_path / "photos/train/__MACOSX").mkdir()
    loaded = load(Source(name=str(tmp_path / "photos")))
    assert rows(loaded.train) == [("0.png", "cat"), ("1.png", "cat"), ("0.png", "sea dog")]
    assert rows(loaded.eval) == [("0.png", "cat")]
    assert rows(loaded.test) == [("0.png", "sea dog")]
    notes = loaded.description["notes"]
    assert f"{tmp_path}/photos/train: image files: 3, classes named by their folders: 2" in notes
    assert f"{tmp_path}/photos/train: not used, since no image: notes.md (1 in all)" in notes
    assert "files that name no split are not used: val_later/" in notes


def test_images_in_folders_of_classes_are_held_out(tmp_path):
    images(tmp_path / "photos/cat", 10, count=10)
    images(tmp_path / "photos/dog", 50, count=10)
    loaded = load(Source(name=str(tmp_path / "photos")), stratify_by="label")
    found = [sorted(label for _, label in rows(part)) for part in (loaded.train, loaded.eval, loaded.test)]
    assert found == [["cat"] * 8 + ["dog"] * 8, ["cat", "dog"], ["cat", "dog"]]


def test_a_fingerprint_follows_content_and_class(tmp_path):
    prints = []
    for number, (name, grey) in enumerate((("cat", 10), ("cat", 10), ("cat", 11), ("dog", 10))):
        images(tmp_path / f"{number}/train/{name}", grey)
        images(tmp_path / f"{number}/test/{name}", 99)
        loaded = load(Source(name=str(tmp_path / str(number)), eval_fraction=0))
        prints.append(loaded.description["splits"]["train"]["fingerprint"])
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_folder_of_images_as_the_pool(tmp_path, monkeypatch):
    images(tmp_path / "photos/train/cat", 10, count=3)
    images(tmp_path / "photos/test/cat", 30)
    images(tmp_path / "raw", 30, count=3)  # the first is the test's image
    monkeypatch.chdir(tmp_path)
    section = Source(name="photos", unlabeled="raw", eval_fraction=0, pool_overlap="drop")
    loaded = load(section, stratify_by="label", input_columns=["image"])
    assert [Path(row["image"]["path"]).name for row in loaded.unlabeled] == ["1.png", "2.png"]


def test_texts_in_folders_of_classes(tmp_path):
    for place, text in (("good/1.txt", "Größe\npasst\n"), ("good/2.txt", "fein"), ("bad/1.txt", "zu klein")):
        (tmp_path / "films" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / place).write_text(text, encoding="cp1252")
    with pytest.raises(DataError, match="byte 0xf6 at offset 2 is not utf-8"):
        load(Source(name=str(tmp_path / "films"), eval_fraction=0))
    loaded = load(Source(name=str(tmp_path / "films"), eval_fraction=0, encoding="cp1252"))
    found = sorted((row["text"], row["label"]) for part in (loaded.train, loaded.test) for row in part)
    assert found == [("Größe\npasst\n", "good"), ("fein", "good"), ("zu klein", "bad")]


def test_a_folder_of_files_of_rows_is_a_pool_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("raw").mkdir()
    Path("raw/a.txt").write_text("one\ntwo\n")
    Path("raw/b.txt").write_text("three\n")
    Path("rows.csv").write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(10)))
    loaded = load(Source(name="rows.csv", unlabeled="raw"), stratify_by="label", input_columns=["text"])
    assert list(loaded.unlabeled["text"]) == ["one", "two", "three"]
    assert "raw: 2 text files, of which each line is a row" in loaded.description["notes"]


def test_what_such_a_folder_must_not_hold(tmp_path):
    images(tmp_path / "mixed/cat", 10)
    (tmp_path / "mixed/dog").mkdir()
    with pytest.raises(DataError, match="the folder of the class `dog` holds no image"):
        load(Source(name=str(tmp_path / "mixed")))
    (tmp_path / "mixed/dog/1.txt").write_text("a dog")
    with pytest.raises(DataError, match="folders of classes hold images and texts"):
        load(Source(name=str(tmp_path / "mixed")))
    (tmp_path / "videos/cat").mkdir(parents=True)
    (tmp_path / "videos/cat/1.mp4").write_bytes(b"?")
    with pytest.raises(DataError, match="holds no file of rows; it holds 1 folder cat/"):
        load(Source(name=str(tmp_path / "videos")))


def test_rows_to_predict_on_may_be_a_folder(tmp_path):
    images(tmp_path / "new", 10, count=2)
    data = read_rows(tmp_path / "new")
    assert [Path(row["image"]["path"]).name for row in data] == ["0.png", "1.png"]
    assert data.column_names == ["image"]
    images(tmp_path / "test/cat", 10)
    assert rows(read_rows(tmp_path / "test")) == [("0.png", "cat")]
