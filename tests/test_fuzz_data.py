"""Random and spoilt files of rows give rows or a DataError, whatever their bytes."""

from _fuzzing import load_fuzz, outcomes

from hf_llm_recipes.data.reading import READERS, read_table


def test_files(tmp_path):
    found = outcomes("files", 500, tmp_path)
    assert sum(found.values()) >= 450
    assert set(found) == {"rows", "DataError"}
    assert min(found.values()) > 40


def test_sections(tmp_path):
    found = outcomes("sections", 200, tmp_path)
    assert sum(found.values()) >= 150
    assert set(found) == {"rows", "DataError", "RecipeError"}
    assert min(found.values()) > 10


def test_the_files_that_are_spoilt_are_whole_before(tmp_path):
    files = load_fuzz().whole_files()
    assert set(files) == set(READERS)
    for suffix, content in files.items():
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(content)
        assert read_table(path).data["text"][:2] == ["a b", ""]


def test_every_place_where_a_file_may_end(tmp_path):
    """Cut at each byte, a file gives rows, never more than it had, or a DataError."""
    fuzz, tried = load_fuzz(), 0
    for suffix in (".csv", ".jsonl", ".json"):
        content = fuzz.whole_files()[suffix]
        for end in range(len(content)):
            _, fault = fuzz.outcome(fuzz.judge_file, (suffix, content[:end], "utf-8", None), tmp_path)
            assert fault is None, (suffix, end, fault)
            tried += 1
    assert tried > 250
