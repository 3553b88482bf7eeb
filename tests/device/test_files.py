import pytest

from entropi.device.files import staged


def test_staged_files_take_their_places_when_all_is_well(tmp_path):
    folder = tmp_path / "made" / "here"
    with staged(folder, "last") as stage:
        (stage / "last").write_text("new")
        (stage / "deep").mkdir()
        (stage / "deep" / "file").write_text("new")
        assert not folder.exists()
    assert (folder / "last").read_text() == (folder / "deep" / "file").read_text() == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "last").write_text("old")
    with pytest.raises(RuntimeError), staged(tmp_path / "here", "last") as stage:
        (stage / "last").write_text("new")
        raise RuntimeError
    assert (tmp_path / "here" / "last").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_what_an_earlier_run_left_goes_and_what_is_somebodys_stays(tmp_path):
    for name in ("last", "old", "theirs"):
        (tmp_path / name).write_text("old")
    with staged(tmp_path, "last", ["old", "never"]) as stage:
        (stage / "last").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"last": "new", "theirs": "old"}
