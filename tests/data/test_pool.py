import itertools
import math
import random
from collections import Counter

import pytest
from datasets import Dataset, Image

from hf_llm_recipes.data.pool import (
    OTHER_DOMAIN,
    OTHER_LANGUAGE,
    check_pool,
    cosine,
    few_labels,
    likeness,
)
from hf_llm_recipes.errors import DataError

ENGLISH = """\
The soup was cold when it came and nobody said sorry.
We stayed for three nights and the room was clean and quiet.
I would not buy this kettle again because the lid does not close.
The film is too long, but the last scene is worth the wait.
Our train left an hour late and there was no one to ask.
My daughter has read the book twice and wants another one.
The shoes fit well at first and fell apart after a month.
Two goals in the last minute gave the guests the match.
The minister said that the new law would come into force in May.
Prices of bread and milk have risen again this winter.
She plays the piano as if it were a much larger instrument.
The phone is fast, the screen is bright and the battery is poor.
If you like quiet beaches, do not come here in August.
He was asked three times and did not answer once.
The bank opens a branch in the old post office next week.
There is a small garden behind the house with two apple trees.
The waiter was friendly and told us where to park the car.
A storm took the roof off the school on Monday night.
It is the best coffee that I have had in this town.
The second half of the season was worse than the first.
You can see the mountains from the window when the sky is clear.
They have closed the bridge for repairs until the end of June.
The jacket is warm, but the sleeves are far too short for me.
All the songs on this record sound the same after a while.""".splitlines()
GERMAN = """\
Die Suppe war kalt, als sie kam, und niemand hat sich entschuldigt.
Wir sind drei Nächte geblieben, und das Zimmer war sauber und ruhig.
Ich würde diesen Kessel nicht wieder kaufen, weil der Deckel nicht schließt.
Der Film ist zu lang, aber die letzte Szene ist das Warten wert.
Unser Zug fuhr eine Stunde zu spät ab, und man konnte niemanden fragen.
Meine Tochter hat das Buch zweimal gelesen und will noch eines.
Die Schuhe passten am Anfang gut und sind nach einem Monat auseinandergefallen.
Zwei Tore in der letzten Minute brachten den Gästen den Sieg.
Der Minister sagte, dass das neue Gesetz im Mai in Kraft tritt.
Die Preise für Brot und Milch sind in diesem Winter wieder gestiegen.
Sie spielt das Klavier, als wäre es ein viel größeres Instrument.
Das Telefon ist schnell, der Bildschirm ist hell und der Akku ist schwach.
Wer ruhige Strände mag, sollte im August nicht hierher kommen.
Er wurde dreimal gefragt und hat nicht ein einziges Mal geantwortet.
Die Bank eröffnet nächste Woche eine Filiale in der alten Post.
Hinter dem Haus liegt ein kleiner Garten mit zwei Apfelbäumen.
Der Kellner war freundlich und sagte uns, wo wir parken können.
Ein Sturm hat am Montagabend das Dach der Schule abgedeckt.
Es ist der beste Kaffee, den ich in dieser Stadt getrunken habe.
Die zweite Hälfte der Saison war schlechter als die erste.
Bei klarem Himmel sieht man vom Fenster aus die Berge.
Die Brücke ist wegen Bauarbeiten bis Ende Juni gesperrt.
Die Jacke ist warm, aber die Ärmel sind mir viel zu kurz.
Alle Lieder auf dieser Platte klingen nach einer Weile gleich.""".splitlines()
CHINESE = """\
汤端上来的时候已经凉了,也没有人道歉。
我们住了三个晚上,房间又干净又安静。
这个水壶我不会再买了,因为盖子盖不紧。
电影太长了,不过最后一幕值得等。
我们的火车晚点一个小时,也没有人可以问。
我女儿把这本书看了两遍,还想再要一本。
鞋子刚买的时候很合脚,一个月以后就坏了。
最后一分钟的两个进球让客队赢了比赛。
部长说新的法律将在五月开始实行。
今年冬天面包和牛奶的价格又涨了。
她弹钢琴的时候好像那是一件大得多的乐器。
手机很快,屏幕很亮,但是电池不好。
如果你喜欢安静的海滩,八月就不要来这里。
问了他三次,他一次也没有回答。
银行下个星期在老邮局开一家分行。
房子后面有一个小花园,里面有两棵苹果树。
服务员很友好,告诉我们在哪里停车。
星期一晚上的大风把学校的屋顶吹走了。
这是我在这个城市喝过的最好的咖啡。
下半个赛季的成绩比上半个赛季差。
天气好的时候从窗户可以看到山。
大桥因为维修关闭到六月底。
外套很暖和,但是袖子对我来说太短了。
这张唱片上的歌听久了都差不多。""".splitlines()

# How programs are described, after the ball games and kettles above: another domain of English.
DOCSTRINGS = """\
Return the index of the first row that matches the given label.
Raise an error if the array is not two-dimensional.
Compute the mean of the values along the given axis.
Parameters that are not given are taken from the configuration file.
Create a new graph with the same nodes as the input and no edges.
This function is called once for each batch of the data set.
The default is to copy the input; set the flag to work in place.
Check that the two matrices have the same shape and type.
Returns True if the node is in the tree and False if it is not.
Convert a string to a number, or return it as it is.
The result is a sorted list of the names of all columns.
Write the table to a file in the format that its name says.
Solve the system of equations with the method of the user.
An iterator over the pairs of keys and values in the order they were added.
Remove the last item of the list and return it.
Wrap the function so that its result is kept for the next call.""".splitlines()


def texts(*values):
    return Dataset.from_dict({"text": list(values)})


def checked(pool, labeled=("some labeled row",), overlap="refuse", columns=("text",), **held_out):
    held_out = {name: texts(*values) for name, values in held_out.items()}
    return check_pool(
        texts(*pool), labeled=texts(*labeled), held_out=held_out, columns=columns, overlap=overlap
    )


LABELS = [f"class {i % 3}" for i in range(60)]


def test_few_labels_are_so_many_of_each_class():
    kept, rest = few_labels(LABELS, 4, seed=0)
    assert Counter(LABELS[i] for i in kept) == {"class 0": 4, "class 1": 4, "class 2": 4}
    assert sorted([*kept, *rest]) == list(range(60))
    assert list(kept) == sorted(kept)
    assert list(rest) == sorted(rest)


def test_the_rows_of_a_class_are_the_first_of_the_seeds_order():
    # np.random.RandomState(0).permutation(10) is 2 8 4 9 1 6 7 3 0 5
    labels = ["a", "b"] * 5
    assert few_labels(labels, 1, seed=0)[0].tolist() == [2, 9]
    assert few_labels(labels, 2, seed=0)[0].tolist() == [1, 2, 8, 9]
    assert few_labels(labels, 3, seed=0)[0].tolist() == [1, 2, 4, 7, 8, 9]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_labels_are_among_more_labels(seed):
    four, ten = (set(few_labels(LABELS, k, seed)[0].tolist()) for k in (4, 10))
    assert len(four) == 12
    assert four < ten


def test_few_labels_depend_on_the_seed_only():
    first, again, other = (few_labels(LABELS, 4, seed)[0].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_all_labels_of_a_class_may_be_kept():
    kept, rest = few_labels(["a", "b", "b", "a", "b"], 2, seed=0)
    assert len(kept) == 4
    assert [["a", "b", "b", "a", "b"][i] for i in rest] == ["b"]


def test_rows_without_a_label_are_never_labeled_rows():
    labels = ["a", None, "b", "", None, "a", "b"]
    kept, rest = few_labels(labels, 2, seed=0)
    assert kept.tolist() == [0, 2, 5, 6]
    assert rest.tolist() == [1, 3, 4]
    with pytest.raises(DataError, match=r"data\.labels_per_class: none of 2 rows has a label"):
        few_labels([None, ""], 1, seed=0)


def test_a_class_with_too_few_rows():
    with pytest.raises(DataError) as raised:
        few_labels(["a"] * 5 + ["b"] * 3 + ["c"] * 2, 4, seed=0)
    assert str(raised.value) == (
        "data.labels_per_class: class 'b' has 3 rows, fewer than `labels_per_class: 4`\n  allowed: at most 2"
    )


@pytest.mark.parametrize("per_class", [0, -1])
def test_less_than_one_label_a_class(per_class):
    with pytest.raises(DataError) as raised:
        few_labels(LABELS, per_class, seed=0)
    assert str(raised.value) == (
        f"data.labels_per_class: `labels_per_class: {per_class}` is out of range\n  allowed: 1 or more"
    )


def test_a_clean_pool_stays_as_it_is():
    found = checked(["one", "two"], labeled=["three"], eval=["four"], test=["five"])
    assert found.rows["text"][:] == ["one", "two"]
    assert found.notes == []
    assert found.findings == {
        "empty": 0,
        "eval_rows_in_pool": 0,
        "test_rows_in_pool": 0,
        "labeled_rows_in_pool": 0,
    }


@pytest.mark.parametrize("part", ["eval", "test"])
def test_rows_of_a_held_out_part_are_refused(part):
    pool = ["a", "The  new BALL\n", "b", "the new ball", "an old song"]
    with pytest.raises(DataError) as raised:
        checked(pool, **{part: ["the new ball", "An old song ", "c"]})
    assert str(raised.value) == (
        f"data.unlabeled: 3 of 5 unlabeled rows are rows of the {part} split "
        "(the first is row 1: 'the new ball')\n  do: take them out, or set `data.pool_overlap: drop`"
    )


def test_rows_of_held_out_parts_are_dropped_and_counted():
    found = checked(["A", "b", "c ", "d", "b"], overlap="drop", eval=["a", "c"], test=["B", "c"])
    assert found.rows["text"][:] == ["d"]
    assert found.findings["eval_rows_in_pool"] == 2
    assert found.findings["test_rows_in_pool"] == 2  # `c` is gone already
    assert found.notes == [
        "2 rows of the pool are rows of the eval split: left out",
        "2 rows of the pool are rows of the test split: left out",
    ]


def test_a_pool_of_held_out_rows_only():
    with pytest.raises(DataError, match=r"data\.unlabeled: no unlabeled row is left"):
        checked(["a", "b"], overlap="drop", test=["a", "b", "c"])


def test_labeled_rows_in_the_pool_are_counted_and_stay():
    found = checked(["one", "TWO", "three", "two "], labeled=["two", "four"])
    assert found.rows["text"][:] == ["one", "TWO", "three", "two "]
    assert found.findings["labeled_rows_in_pool"] == 2
    assert found.notes == ["2 rows of the pool are labeled rows too: they stay, without their label"]


def test_empty_rows_are_left_out_and_counted():
    found = checked(["", "one", " \n", None, "two"], test=["", "three"])  # an empty test row is no overlap
    assert found.rows["text"][:] == ["one", "two"]
    assert found.findings["empty"] == 3
    assert found.findings["test_rows_in_pool"] == 0
    assert found.notes == ["3 empty rows of the pool are left out"]


def test_a_pool_of_empty_rows():
    with pytest.raises(DataError) as raised:
        checked(["", " "])
    assert str(raised.value) == (
        "data.unlabeled: all 2 unlabeled rows are empty\n  do: check the column's name"
    )


def test_a_pool_of_no_rows():
    with pytest.raises(DataError, match=r"data.unlabeled: there is no unlabeled row\n  do: add rows"):
        check_pool(
            texts("a").select([]), labeled=texts("b"), held_out={}, columns=("text",), overlap="refuse"
        )


def test_a_pool_without_the_input_column():
    with pytest.raises(DataError) as raised:
        checked(["a"], columns=("body",))
    assert str(raised.value) == (
        "data.unlabeled: the unlabeled rows have no column `body`\n  allowed: text\n"
        "  do: rename it in `data.columns`, or in the file"
    )


def test_a_pair_is_the_same_when_both_texts_are():
    pool = Dataset.from_dict({"a": ["x", "x", "", "y z"], "b": ["y", "z", "", ""]})
    test = Dataset.from_dict({"a": ["X", "y"], "b": ["y", "z"]})
    given = {"labeled": pool.select([1]), "columns": ("a", "b"), "overlap": "drop"}
    found = check_pool(pool, held_out={"test": test}, **given)
    assert found.rows.to_list() == [{"a": "x", "b": "z"}, {"a": "y z", "b": ""}]
    assert found.findings["empty"] == 1
    assert found.findings["test_rows_in_pool"] == 1


def test_lists_of_words_are_compared_word_by_word():
    def tokens(*rows):
        return Dataset.from_dict({"tokens": list(rows)})

    pool = tokens(["New", "York"], ["new york"], ["the", "end"], [])
    found = check_pool(
        pool,
        labeled=tokens(["a"]),
        held_out={"test": tokens(["new", "york"])},
        columns=("tokens",),
        overlap="drop",
    )
    assert found.rows["tokens"][:] == [["new york"], ["the", "end"]]
    assert found.findings["empty"] == 1


def test_images_are_compared_by_their_bytes():
    from PIL import Image as Picture

    def images(*values):
        made = [Picture.new("L", (2, 2), value) for value in values]
        return Dataset.from_dict({"image": made}).cast_column("image", Image())

    given = {"labeled": images(7), "columns": ("image",), "overlap": "drop"}
    found = check_pool(images(1, 2, 3), held_out={"test": images(2, 9)}, **given)
    assert len(found.rows) == 2
    assert found.findings == {"empty": 0, "test_rows_in_pool": 1, "labeled_rows_in_pool": 0}


def test_copies_of_an_image_file_are_one_image(tmp_path):
    from PIL import Image as Picture

    for name, value in (("a", 1), ("copy_of_a", 1), ("b", 2)):
        Picture.new("L", (2, 2), value).save(tmp_path / f"{name}.png")

    def images(*names):
        paths = [str(tmp_path / f"{name}.png") for name in names]
        return Dataset.from_dict({"image": paths}).cast_column("image", Image())

    with pytest.raises(DataError, match=r"1 of 2 unlabeled rows .* test split \(the first is row 1"):
        check_pool(
            images("b", "copy_of_a"),
            labeled=images("b"),
            held_out={"test": images("a")},
            columns=("image",),
            overlap="refuse",
        )


def test_the_cosine_of_word_counts():
    # roots 2 1 and 1 3: 2·1 / (√5 · √10)
    assert cosine(Counter(a=4, b=1), Counter(a=1, c=9)) == pytest.approx(2 / math.sqrt(50))
    assert cosine(Counter(a=4, b=1), Counter(a=8, b=2)) == pytest.approx(1)
    assert cosine(Counter("a"), Counter("b")) == 0
    assert cosine(Counter(), Counter("b")) == 0


def test_likeness_is_measured_against_parts_of_the_larger_set():
    # {x: 1, y: 1} and {x: 4}: 2 / (√2 · 2); the parts of the larger set are the same
    assert likeness([["x", "y"]], [["x", "x"], ["x", "x"]]) == pytest.approx(1 / math.sqrt(2))
    assert likeness([["x", "x"], ["x", "x"]], [["x", "y"]]) == pytest.approx(1 / math.sqrt(2))
    # the parts share one word of two: 1/2; the sets {x: 1, z: 1} and {x: 2, a: 1, b: 1}: √2 / (√2 · 2)
    assert likeness([["x", "z"]], [["x", "a"], ["x", "b"]]) == pytest.approx(1)
    assert likeness([["x"]], [["a", "a"], ["a", "a"]]) == 0
    assert likeness([["a"]], [["a"], ["b"], ["c"]]) is None
    assert likeness([], [["a"]]) is None


UNLIKE_NOTE = "the pool reads unlike the other rows"


@pytest.mark.parametrize(
    ("pool", "labeled", "others"),
    [
        (ENGLISH[:12], ENGLISH[12:14], ENGLISH[14:]),
        (ENGLISH, DOCSTRINGS[:4], DOCSTRINGS[4:]),
        (DOCSTRINGS, ENGLISH[:12], ENGLISH[12:]),
        (GERMAN[:12], GERMAN[12:14], GERMAN[14:]),
        (CHINESE[:12], CHINESE[12:14], CHINESE[14:]),
    ],
    ids=["english", "english, another domain", "the other way", "german", "chinese"],
)
def test_the_same_language_is_no_finding(pool, labeled, others):
    found = checked(pool, labeled=labeled, eval=others)
    assert found.findings["likeness"] > OTHER_DOMAIN
    assert found.notes == []


@pytest.mark.parametrize(
    ("pool", "labeled", "others"),
    [
        (GERMAN, ENGLISH[:12], ENGLISH[12:]),
        (ENGLISH, GERMAN[:12], GERMAN[12:]),
        (GERMAN, DOCSTRINGS[:4], DOCSTRINGS[4:]),
        (CHINESE, ENGLISH[:12], ENGLISH[12:]),
        (ENGLISH, CHINESE[:12], CHINESE[12:]),
    ],
    ids=["german", "english", "german and docstrings", "chinese", "english and chinese"],
)
def test_another_language_is_said(pool, labeled, others):
    found = checked(pool, labeled=labeled, eval=others)
    assert found.findings["likeness"] < OTHER_LANGUAGE / 2
    assert len(found.notes) == 1
    assert found.notes[0].startswith(UNLIKE_NOTE)
    assert found.notes[0].endswith("is it another language?")
    assert len(found.rows) == len(pool)


def test_rows_that_are_one_long_word_each_tell_no_language():
    def genes(first, count):
        # digits in base 4, least significant first
        return ["".join("ACGT"[n // 4**k % 4] for k in range(8)) for n in range(first, first + count)]

    found = checked(genes(0, 40), labeled=genes(100, 8), eval=genes(200, 20))
    assert "likeness" not in found.findings
    assert found.notes == []


def test_another_domain_is_said():
    # `the` alone is shared, half of all words on either side: √30 · √30 / 60 over 1
    found = checked(["the ball"] * 30, labeled=["the soup"] * 10, eval=["the soup"] * 20)
    assert found.findings["likeness"] == 0.5
    assert found.notes == [
        "the pool reads unlike the other rows (likeness of word frequencies 0.50; rows of one source have "
        "about 1): is it another domain?"
    ]


def test_few_words_tell_no_domain():
    found = checked(["the ball"] * 30, labeled=["the soup"] * 4, eval=["the soup"] * 20)  # 48 words
    assert found.findings["likeness"] == 0.5
    assert found.notes == []


def test_twelve_labeled_rows_do_not_look_foreign_for_being_few():
    # Zipf's law: the word of rank r is drawn with a weight of 1 / r
    rng = random.Random(0)
    vocabulary = ["".join(pair) for pair in itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=2)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    rows = [" ".join(rng.choices(vocabulary, weights, k=8)) for _ in range(912)]
    found = checked(rows[12:], labeled=rows[:12])
    counts = (Counter(" ".join(part).split()) for part in (rows[:12], rows[12:]))
    assert cosine(*counts) < OTHER_DOMAIN < found.findings["likeness"]
    assert found.notes == []
