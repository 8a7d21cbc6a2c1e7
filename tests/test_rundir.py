import errno
import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_llm_recipes import rundir
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.rundir import RunDirectory, check_new, full_disk_told, need_space, writing


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {name: x}\n")
    return RunDirectory(tmp_path)


def test_runs_of_one_name_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [RunDirectory.create(None, "lora").path for _ in range(3)]
    assert [str(p) for p in paths] == ["runs/lora", "runs/lora-2", "runs/lora-3"]
    paths[1].rmdir()
    assert str(RunDirectory.create(None, "lora").path) == "runs/lora-2"


def test_a_wanted_directory_is_made_with_its_parents(tmp_path):
    wanted = tmp_path / "a" / "b"
    assert RunDirectory.create(str(wanted), "x").path == wanted
    assert wanted.is_dir()
    assert RunDirectory.create(str(wanted), "x").path == wanted  # empty still


def test_a_directory_in_use_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("x")
    with pytest.raises(RunError, match="holds an unfinished run already; nothing was changed") as caught:
        RunDirectory.create(str(tmp_path), "x")
    assert f"hf-llm-recipes run {tmp_path}/recipe.yaml output={tmp_path} resume=true" in str(caught.value)


def test_a_finished_run_in_use_is_gone_on_with_only_where_its_baseline_is_to_come(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    for recipe, goes_on in (("name: x\n", False), ("compare: true\n", True)):
        (tmp_path / "recipe.yaml").write_text(recipe)
        with pytest.raises(RunError, match="holds a finished run already; nothing was changed") as caught:
            check_new(tmp_path)
        assert ("resume=true" in str(caught.value)) is goes_on
    (tmp_path / "metrics.json").write_text('{"comparison": {}}')
    with pytest.raises(RunError, match=r"do: choose another output$"):
        check_new(tmp_path)


def test_anything_else_there_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    for wanted in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(
            RunError, match="exists and is not empty; nothing was changed\n  do: choose another"
        ):
            RunDirectory.create(str(wanted), "x")
    with pytest.raises(RunError, match="cannot be made: Not a directory\n  do: choose another output"):
        RunDirectory.create(str(tmp_path / "mine.txt" / "run"), "x")
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_runs_that_cannot_be_made_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("a file")
    with pytest.raises(RunError, match=r"runs/x: cannot be made: .*\n  do: set output=DIR"):
        RunDirectory.create(None, "x")


def test_an_existing_run(run):
    assert RunDirectory.existing(run.path).path == run.path
    assert run.recipe().section("model") == {"name": "x"}
    with pytest.raises(
        RunError, match=r"has no metrics.json: the run has not finished\n  do: hf-llm-recipes run"
    ):
        run.metrics()
    run.write_json("metrics.json", {"test": {"accuracy": 0.5}})
    assert run.metrics() == {"test": {"accuracy": 0.5}}


def test_what_is_no_run(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"is no run directory: there is no recipe.yaml"):
        RunDirectory.existing(tmp_path / "empty")
    with pytest.raises(RunError, match="no such run directory\n  do: `hf-llm-recipes run` makes one"):
        RunDirectory.existing(tmp_path / "nowhere")
    mine = tmp_path / "runs" / "mine"
    mine.mkdir(parents=True)
    (mine / "recipe.yaml").write_text("name: mine\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"no such run directory\n  do: runs in .*: mine$"):
        RunDirectory.existing(tmp_path / "runs" / "nowhere")


def test_a_file_is_written_whole_or_not_at_all(run, monkeypatch):
    run.write_text("a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        run.write_text("a.txt", "\ud800")  # no UTF-8
    assert (run / "a.txt").read_text() == "old"
    assert run.write_text("a.txt", "größer") == run / "a.txt"
    assert (run / "a.txt").read_bytes() == "größer".encode()
    assert not list(run.path.glob(".*.part"))


def test_json_is_readable_and_takes_paths(run):
    run.write_json("a.json", {"ä": [1, 2.5, None], "path": Path("x/y")})
    text = (run / "a.json").read_text()
    assert '"ä"' in text
    assert json.loads(text) == {"ä": [1, 2.5, None], "path": "x/y"}
    assert text.endswith("}\n")


def fill(run, text, error=None):
    with run.replacing("model") as folder:
        (folder / "weights").write_text(text)
        assert folder != run / "model"
        if error:
            raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_replacing_leaves_the_old_folder_when_it_fails(run, error):
    fill(run, "old")
    with pytest.raises(type(error)):
        fill(run, "new", error)
    assert (run / "model" / "weights").read_text() == "old"
    fill(run, "new")
    assert (run / "model" / "weights").read_text() == "new"
    assert sorted(p.name for p in run.path.iterdir()) == ["model", "recipe.yaml"]


def test_replacing_takes_a_left_over_away_and_the_old_files_too(run):
    for name in (".model.part", ".model.old", "model"):
        (run / name).mkdir()
        (run / name / "stale").write_text("x")
    fill(run, "new")
    assert [p.name for p in (run / "model").iterdir()] == ["weights"]
    assert sorted(p.name for p in run.path.iterdir()) == ["model", "recipe.yaml"]


def test_the_newest_checkpoint_is_the_largest_number(run):
    assert run.checkpoint().path is None
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-9", "checkpoint-best", "other-99"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "trainer_state.json").write_text("{}")
    assert run.checkpoint().path == run / "checkpoints" / "checkpoint-10"


def test_checkpoints_of_later_rounds_are_newer(run):
    rounds = ("round-1/checkpoint-50", "round-2/checkpoint-4", "round-2/checkpoint-10")
    for name in (*rounds, "stage-3/checkpoint-99"):
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "trainer_state.json").write_text("{}")
    (run / "checkpoints" / "round-10" / "checkpoint-1").mkdir(parents=True)  # not whole
    assert run.checkpoint().path == run / "checkpoints" / "round-2" / "checkpoint-10"
    (run / "checkpoints" / "round-10" / "checkpoint-1" / "trainer_state.json").write_text("{}")
    assert run.checkpoint().path == run / "checkpoints" / "round-10" / "checkpoint-1"


def test_a_checkpoint_that_was_not_finished_is_passed_over(run):
    for step in (1, 2):
        (run / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (run / "checkpoints" / f"checkpoint-{step}" / "model.safetensors").write_text("x")
    assert run.checkpoint().path is None
    (run / "checkpoints" / "checkpoint-1" / "trainer_state.json").write_text("{}")  # the Trainer's last file
    assert run.checkpoint().path == run / "checkpoints" / "checkpoint-1"


def test_the_second_process_in_a_directory_is_told_of_the_first(tmp_path):
    with rundir.locked(tmp_path):
        with (
            pytest.raises(RunError, match=rf"directory: process {os.getpid()} on .*; nothing was") as caught,
            rundir.locked(tmp_path),
        ):
            pass
        assert "do: wait for it, stop it, or choose another output" in str(caught.value)
        (tmp_path / rundir.HOLDER).unlink()
        with (
            pytest.raises(RunError, match="a process that has not yet said its number"),
            rundir.locked(tmp_path),
        ):
            pass
    assert [p.name for p in tmp_path.iterdir()] == [rundir.LOCK]
    check_new(tmp_path)  # a lock that is left over is nothing
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    with rundir.locked(tmp_path), pytest.raises(RunError, match="another run is going on in this directory"):
        check_new(tmp_path)
    with pytest.raises(RunError, match="holds an unfinished run already"):
        check_new(tmp_path)


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom hf_llm_recipes.rundir import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {child.pid} on "), rundir.locked(tmp_path):
        pass
    child.kill()
    child.communicate()
    assert (tmp_path / rundir.HOLDER).is_file()
    with rundir.locked(tmp_path):
        assert json.loads((tmp_path / rundir.HOLDER).read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_told(tmp_path):
    def write():
        with full_disk_told(tmp_path, "free some space"), open("/dev/full", "w") as file:
            file.write("x")
            file.flush()

    with pytest.raises(
        RunError, match=r"the disk is full \(\d+\.\d\d GiB left\)\n  do: free some space"
    ) as caught:
        write()
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "answers.csv"
    with (
        pytest.raises(RunError, match=r"answers.csv: cannot be written: Not a directory\n  do: elsewhere$"),
        writing(target, "elsewhere"),
    ):
        target.write_text("x")
    with pytest.raises(FileNotFoundError), writing(target, "elsewhere"):  # no matter of the place
        (tmp_path / "nothing").read_text()


@pytest.mark.parametrize(
    ("error", "free", "told"),
    [
        (OSError(errno.EDQUOT, "quota"), 2**40, True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2**40, True),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed"), 2**20, True),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed"), 2**40, False),
        (OSError(errno.EACCES, "no"), 2**20, False),
        (ValueError("something else"), 2**20, False),
    ],
)
def test_a_full_disk_has_many_names(tmp_path, monkeypatch, error, free, told):
    monkeypatch.setattr(rundir, "free_bytes", lambda path: free)

    def fail():
        with full_disk_told(tmp_path, "advice"):
            raise error

    with pytest.raises(RunError if told else type(error)) as caught:
        fail()
    assert ("the disk is full" in str(caught.value)) is told


def test_space_is_looked_at_where_the_directory_will_be(tmp_path, monkeypatch):
    deep = tmp_path / "not" / "there"
    assert rundir.free_bytes(deep) > 0
    monkeypatch.setattr(rundir, "free_bytes", lambda path: 3 * 2**29)
    need_space(deep, 3 * 2**29, "weights")
    with pytest.raises(
        RunError, match=r"weights need about 2.00 GiB, 1.50 GiB are free\n  do: free some space"
    ):
        need_space(deep, 2**31, "weights")
    assert not deep.exists()


def test_the_environment_names_no_person_and_no_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    found = rundir.environment()
    text = json.dumps(found)
    assert found["packages"]["hf_llm_recipes"]
    assert set(found) == {"python", "platform", "packages", "device", "git_commit"}
    assert found["git_commit"] is None  # started outside a repository
    words = set(text.replace('"', " ").split())
    assert getpass.getuser() not in words
    assert os.uname().nodename not in words
    for private in (str(Path.home()), str(tmp_path), "hf_secret"):
        assert private not in text


def test_the_commit_says_whether_there_are_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    Path("a.txt").write_text("x")
    rundir._git("init", "-q")
    rundir._git("add", "a.txt")
    rundir._git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "x")
    commit = rundir._git_commit()
    assert len(commit) == 40
    Path("a.txt").write_text("y")
    assert rundir._git_commit() == f"{commit}+changes"


def test_peak_memory_is_in_gib():
    peaks = rundir.peak_memory_gib()
    assert 0.05 < peaks["host"] < 1024
