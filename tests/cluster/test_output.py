"""What elements print, as it comes."""

import pytest

from hyperopt_cli.cluster.output import follow, pieces


class Job:
    """A job that writes a piece each time somebody waits for it, and one more as it ends."""

    def __init__(self, path, written, last=b""):
        self.path, self.left, self.last = path, list(written), last

    def write(self, content):
        with self.path.open("ab") as file:
            file.write(content)

    def sleep(self, seconds):
        assert seconds > 0
        self.write(self.left.pop(0))

    def is_live(self):
        if not self.left:
            self.write(self.last)
        return bool(self.left)


def followed(job):
    return [text for _, text in follow([job.path], job.is_live, job.sleep, ask_s=0.0)]


def test_files_that_are_not_there_are_left_out(tmp_path):
    (tmp_path / "1").write_text("one\n")
    assert list(pieces([tmp_path / "0", tmp_path / "1"])) == [(1, "one\n")]


def test_following_yields_what_is_added_and_the_last_of_it_after_the_end(tmp_path):
    job = Job(tmp_path / "0", [b"line 1\n", b"line 2\n"], last=b"the end\n")
    assert followed(job) == ["line 1\n", "line 2\nthe end\n"]


@pytest.mark.parametrize("text", ["\u00e9", "\u20ac", "\U0001d11e", "a\u20acb"])
def test_a_character_that_is_half_written_waits_for_the_rest(tmp_path, text):
    job = Job(tmp_path / "0", [bytes([byte]) for byte in text.encode()])
    assert followed(job) == list(text)


def test_bytes_that_are_no_text_are_shown_and_do_not_stop_it(tmp_path):
    path = tmp_path / "0"
    path.write_bytes(b"\xff\xfe ok \x80\n")
    ((_, text),) = pieces([path])
    assert "ok" in text
