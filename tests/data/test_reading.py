import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_llm_recipes.data.reading import READERS, read_table
from hf_llm_recipes.errors import DataError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(folder, name, content, **options):
    return read_table(write(folder, name, content), **options).data.to_list()


def test_csv_keeps_every_field_as_the_text_it_is(tmp_path):
    content = 'text,label\nNA,007\nnull,1.0\n,None\n"a ""b"", c\nd",nan\n'
    assert rows(tmp_path, "a.csv", content) == [
        {"text": "NA", "label": "007"},
        {"text": "null", "label": "1.0"},
        {"text": "", "label": "None"},
        {"text": 'a "b", c\nd', "label": "nan"},
    ]


def test_csv_written_by_the_csv_module_comes_back(tmp_path):
    values = ['"', "a,b", "\r\n", "\u2028", " lead", "é", "x\ty", "'", "\\", '""']
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([["text", "id"], *([value, str(i)] for i, value in enumerate(values))])
    read = rows(tmp_path, "a.csv", buffer.getvalue())
    assert [row["text"] for row in read] == values
    assert len(read) == 10


def test_tsv_bom_crlf_delimiter_and_encoding(tmp_path):
    assert rows(tmp_path, "a.tsv", "text\tn\na,b\t1\n") == [{"text": "a,b", "n": "1"}]
    assert rows(tmp_path, "b.csv", b"\xef\xbb\xbftext,n\r\nx,1\r\n") == [{"text": "x", "n": "1"}]
    assert rows(tmp_path, "c.csv", "text;n\nx,y;1\n", delimiter=";") == [{"text": "x,y", "n": "1"}]
    assert rows(tmp_path, "d.csv", b"text,n\ncaf\xe9,1\n", encoding="cp1252") == [{"text": "café", "n": "1"}]
    assert rows(tmp_path, "e.csv", "text,n\nä,1\n".encode("utf-16"), encoding="utf-16") == [
        {"text": "ä", "n": "1"}
    ]


def test_csv_with_an_unnamed_index_and_line_breaks_says_so(tmp_path):
    table = read_table(write(tmp_path, "a.csv", ',text\n0,"a\nb"\n\n1,c\n'))
    assert table.data.column_names == ["Unnamed: 0", "text"]
    assert [row["text"] for row in table.data.to_list()] == ["a\nb", "c"]
    assert [note.split(": ", 1)[1] for note in table.notes] == [
        "the unnamed column 1 is called `Unnamed: 0`",
        "1 rows hold a line break inside quotes",
    ]


def test_a_field_over_the_csv_modules_limit_is_read_and_the_limit_stays(tmp_path):
    before = csv.field_size_limit()
    assert len(rows(tmp_path, "a.csv", "text,n\n" + "x" * 200_000 + ",1\n")[0]["text"]) == 200_000
    assert csv.field_size_limit() == before


def test_text_is_one_row_a_line_split_at_newlines_only(tmp_path):
    table = read_table(write(tmp_path, "a.txt", "a\u2028b\r\n\n c\x0bd"))
    assert table.data.to_list() == [{"text": "a\u2028b"}, {"text": ""}, {"text": " c\x0bd"}]
    assert "1 blank lines" in table.notes[0]


def test_json_lines_keep_types_and_unite_the_keys(tmp_path):
    table = read_table(write(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": null, "b": ["x"]}\n'))
    assert table.data.to_list() == [{"a": 1, "b": None}, {"a": None, "b": ["x"]}]
    assert "`b` is absent in 1 of 2 rows" in table.notes[0]


def test_json_is_a_list_or_lines(tmp_path):
    expected = [{"t": "2020-01-01"}, {"t": "x"}]
    assert rows(tmp_path, "a.json", '[{"t": "2020-01-01"},\n {"t": "x"}]') == expected
    assert rows(tmp_path, "b.json", '{"t": "2020-01-01"}\n{"t": "x"}') == expected


def test_parquet_and_both_arrow_formats(tmp_path):
    table = pa.table({"text": ["a", "b"], "n": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    read = [read_table(tmp_path / name).data.to_list() for name in ("a.parquet", "b.arrow", "c.arrow")]
    assert read == [[{"text": "a", "n": 1}, {"text": "b", "n": 2}]] * 3


def test_the_fingerprint_is_the_files_sha256(tmp_path):
    # printf 'text\nhello\n' | sha256sum
    path = write(tmp_path, "a.csv", "text\nhello\n")
    assert read_table(path).fingerprint == "f39ec8a67de8a2d828ea5f79111ba0382e5323e9661537ade98f955885cbd236"


BAD_FILES = {
    "empty": ("a.csv", b"", "a.csv: the file is empty (0 bytes)"),
    "header only": ("a.csv", "text,label\n", "a.csv: the file has columns but no rows"),
    "blank csv": ("a.csv", "\n\n", "a.csv: the file holds only blank lines"),
    "blank text": ("a.txt", "\n  \n", "a.txt: the file holds only blank lines"),
    "encoding": (
        "a.csv",
        b"text,label\nok,1\ncaf\xe9,2\n",
        "a.csv:3: byte 0xe9 at offset 19 is not utf-8",
        "`encoding: cp1252`",
    ),
    "utf-16": ("a.txt", "x\ny".encode("utf-16"), "a.txt:1: byte 0xff at offset 0", "`encoding: utf-16`"),
    "nul": ("a.txt", "a\nb\0c\n", "a.txt:2: a NUL byte"),
    "too many fields": (
        "a.csv",
        'text,label\n"x\ny",1\na,b,c\n',
        "a.csv:4: 3 fields where the header has 2",
        "one for each column: text, label",
    ),
    "too few fields": ("a.csv", "text,label\na\n", "a.csv:2: 1 field where the header has 2"),
    "open quote": ("a.csv", 'text,n\na,1\n"b,2\nc,3\n', "a.csv:3: a quoted field that starts in this row"),
    "quote inside": ("a.csv", 'text,n\n"b"c,2\n', "a.csv:2: a quoted field that starts in this row"),
    "twice": ("a.csv", "text,text\na,b\n", "a.csv:1: the header names `text` twice"),
    "delimiter": ("a.csv", "text;label\na;1\n", "a.csv:1: the header is one column", 'set `delimiter: ";"`'),
    "tab": ("a.csv", "text\tlabel\na\t1\n", "a.csv:1: the header is one column", 'set `delimiter: "\\t"`'),
    "json line": ("a.jsonl", '{"a": 1}\n{"a": 1,}\n', "a.jsonl:2: invalid JSON:"),
    "json file": ("a.json", '[{"a": 1},\n{"a" 2}]', "a.json:2: invalid JSON:"),
    "json array row": ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl:2: `[1]` is not an object"),
    "json item": ("a.json", '[{"a": 1}, "x"]', 'a.json: item 1: `"x"` is not an object'),
    "json empty list": ("a.json", "[]", "a.json: the file holds no rows"),
    "json empty rows": ("a.jsonl", "{}\n{}\n", "a.jsonl: every object is empty"),
    "json types": (
        "a.jsonl",
        '{"n": 1}\n{"n": 2}\n{"n": "three"}\n{"n": 4}\n',
        'a.jsonl:3: the column `n` mixes types, or holds what no column can: `"three"`',
    ),
    "json big number": ("a.jsonl", '{"n": 1}\n{"n": 100000000000000000000}\n', "a.jsonl:2: the column `n`"),
    "json surrogate": ("a.jsonl", '{"n": "a"}\n{"n": "\\ud800"}\n', "a.jsonl:2: the column `n`"),
    "json depth": ("a.jsonl", "[" * 100_000, "a.jsonl:1: the JSON is nested too deep"),
    "json key twice": (
        "a.jsonl",
        '{"n": 1}\n{"n": 1, "n": 2}\n',
        "a.jsonl:2: an object has the key `n` twice",
    ),
    "json wrapped": (
        "a.json",
        '{"version": 1,\n "data": [{"n": 1}]}',
        "a.json: the file is one object, with a list of objects under `data`",
    ),
    "json object": ("a.json", '{\n "n": 1,\n}', "a.json:3: invalid JSON"),
    "parquet": ("a.parquet", b"PAR1 nothing PAR1", "a.parquet: the parquet file is damaged"),
    "arrow stream": ("a.arrow", b"nothing at all", "a.arrow: the arrow file is damaged"),
    "arrow file": ("a.arrow", b"ARROW1\0\0nothing", "a.arrow: the arrow file is damaged"),
    "extension": ("a.xlsx", b"PK", "`a.xlsx` has the unsupported extension `.xlsx`", ".csv, .tsv"),
    "compressed": ("a.csv.gz", b"x", "unsupported extension `.gz`", "unpack it first"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_says_what_where_and_what_to_do(tmp_path, case):
    name, content, *expected = BAD_FILES[case]
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, name, content))
    for text in expected:
        assert text in str(caught.value)


def test_bad_options(tmp_path):
    path = write(tmp_path, "a.csv", "text\nx\n")
    with pytest.raises(DataError, match="unknown encoding `utf-9`"):
        read_table(path, encoding="utf-9")
    with pytest.raises(DataError, match="the delimiter '::' cannot part columns"):
        read_table(path, delimiter="::")


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path, "reviews.csv", "text\nx\n")
    with pytest.raises(DataError, match=r"does not exist(.|\n)*there is: reviews\.csv"):
        read_table(tmp_path / "review.csv")
    with pytest.raises(DataError, match=r"there is: reviews\.csv"):
        read_table(tmp_path / "no" / "folder" / "a.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)


def test_a_column_type_that_datasets_lacks(tmp_path):
    pairs = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"m": pairs}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a column has a type that is not read here"):
        read_table(tmp_path / "a.parquet")


def test_a_truncated_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"n": list(range(1000))}), tmp_path / "whole.parquet")
    path = write(tmp_path, "a.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: the parquet file is damaged"):
        read_table(path)


def test_every_format_refuses_an_empty_file(tmp_path):
    seen = 0
    for suffix in READERS:
        with pytest.raises(DataError, match="the file is empty"):
            read_table(write(tmp_path, f"a{suffix}", b""))
        seen += 1
    assert seen == 8
