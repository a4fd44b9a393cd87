"""Changes to another project: insertions and new files, written, as a patch, and checked."""

import subprocess
from pathlib import Path

import pytest

from adapters.change import Change, ChangeError, Edit, main

NAMES = "def names():\n    return [\n        1,\n    ]\n\n\ndef more():\n    return [\n        1,\n    ]\n"
EDITS = (
    Edit("pkg/names.py", "        1,", "        2,\n        3,"),
    Edit("pkg/names.py", "def more():\n    return [", "        0,"),
    Edit("docs/list.rst", "* one", "* two", optional=True),
)


@pytest.fixture
def tree(tmp_path):
    """A project, as a git repository."""
    root = tmp_path / "project"
    for path, text in {"pkg/names.py": NAMES, "docs/list.rst": "Names:\n\n* one"}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return root


@pytest.fixture
def change(tmp_path):
    """A change with a new file that has generated statements, and edits."""
    folder = tmp_path / "mine" / "topic"
    (folder / "pkg").mkdir(parents=True)
    (folder / "message.md").write_text("A title\n\nA text.\n")
    (folder / "pkg" / "new.py").write_text("def f(x):\n    #: body\n    return x\n")
    (folder / "pkg" / "end.txt").write_text("no newline at the end")
    return Change(folder, "project 1", {"body": ["x = x + 1", "x = -x"]}, EDITS)


def git(root, *command):
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(root), *settings, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_a_change_is_written(tree, change):
    assert sorted(change.write(tree)) == ["docs/list.rst", "pkg/end.txt", "pkg/names.py", "pkg/new.py"]
    found = files(tree)
    assert found["pkg/new.py"] == "def f(x):\n    x = x + 1\n    x = -x\n    return x\n"
    ones = "        1,\n        2,\n        3,\n    ]\n"
    assert (
        found["pkg/names.py"] == f"def names():\n    return [\n{ones}\n\ndef more():\n    return [\n        0,\n{ones}"
    )


@pytest.mark.parametrize("command", ["apply", "am"])
def test_the_patch_makes_the_same_tree(tree, change, command, tmp_path):
    before = files(tree)
    (tmp_path / "patch").write_text(change.patch(tree))
    assert files(tree) == before
    git(tree, command, str(tmp_path / "patch"))
    patched = files(tree)
    git(tree, "reset", "-q", "--hard", *(["HEAD~"] if command == "am" else []))
    git(tree, "clean", "-qfd")
    change.write(tree)
    assert files(tree) == patched != before


def test_the_message_is_what_git_takes(tree, change, tmp_path):
    (tmp_path / "patch").write_text(change.patch(tree))
    git(tree, "am", str(tmp_path / "patch"))
    assert git(tree, "log", "-1", "--format=%s%n%b") == "A title\nA text.\n\nBase: project 1\n\n"


def test_check_knows_its_own_patch(tree, change):
    assert list(change.check(change.patch(tree))) == []
    (tree / "docs/list.rst").unlink()
    assert list(change.check(change.patch(tree))) == []


@pytest.mark.parametrize(
    ("alter", "found"),
    [
        (lambda patch, c: (patch, made(c, generated={"body": ["x = x + 2", "x = -x"]})), ["pkg/new.py"]),
        (lambda patch, c: (patch.replace("+    x = -x\n", ""), c), ["pkg/new.py"]),
        (lambda patch, c: (patch.replace("+        3,", "+        4,", 1), c), ["pkg/names.py"]),
        (lambda patch, c: (patch, made(c, edits=(*c.edits, Edit("pkg/names.py", "x", "y")))), ["pkg/names.py"]),
        (lambda patch, c: (patch, made(c, edits=c.edits[1:])), ["pkg/names.py"]),
        (lambda patch, c: (patch, made(c, edits=c.edits[:2])), ["docs/list.rst"]),
        (lambda patch, c: (patch, made(c, edits=(*c.edits, Edit("setup.py", "x", "y")))), ["setup.py"]),
        (lambda patch, c: (patch.replace("A text", "Another text"), c), ["the message"]),
        (lambda patch, c: (patch, made(c, base="project 2")), ["the message"]),
        (lambda patch, c: (patch.replace("no newline at the end\n\\ No newline", "one at the end\n\\ No newline"), c),
         ["pkg/end.txt"]),
        (lambda patch, c: (patch.replace("\\ No newline at end of file\n", ""), c), ["pkg/end.txt"]),
    ],
    ids=range(11),
)  # fmt: skip
def test_check_sees_what_differs(tree, change, alter, found):
    patch, other = alter(change.patch(tree), change)
    assert (patch, other) != (change.patch(tree), change)
    assert list(dict.fromkeys(other.check(patch))) == found


def made(change, **settings):
    return Change(**{"folder": change.folder, "base": change.base, "generated": change.generated,
                     "edits": change.edits, **settings})  # fmt: skip


def break_place(tree, change):
    (tree / "pkg/names.py").write_text(NAMES.replace("        1,", "        5,"))
    return "pkg/names.py: there is no line '        1,'"


def break_file(tree, change):
    (tree / "pkg/names.py").unlink()
    return "has no pkg/names.py; expected a checkout of project 1"


def break_new(tree, change):
    (tree / "pkg/new.py").write_text("")
    return "has a file pkg/new.py already"


def break_mark(tree, change):
    (change.folder / "pkg/new.py").write_text("#: other\n")
    return "pkg/new.py: nothing is generated for the mark 'other'"


@pytest.mark.parametrize("wrong", [break_place, break_file, break_new, break_mark])
def test_an_error_leaves_the_tree_as_it_is(tree, change, wrong, capsys):
    says = wrong(tree, change)
    before = files(tree)
    for call in (change.write, change.patch):
        with pytest.raises(ChangeError) as error:
            call(tree)
        assert says in str(error.value)
    assert main("project", [change], ["--into", str(tree)]) == 1
    assert says in capsys.readouterr().err
    assert files(tree) == before


def test_the_command(tree, change, capsys, tmp_path):
    assert main("project", [change], ["--check"]) == 1
    assert capsys.readouterr().out == "topic: differs: there is no patch\n"
    assert main("project", [change], ["--into", str(tree), "--patch", str(change.patch_file), "topic"]) == 0
    assert main("project", [change], ["--check"]) == 0
    assert capsys.readouterr().out == "topic: as generated\n"
    assert main("project", [change], ["--into", str(tree)]) == 0
    assert set(capsys.readouterr().out.split()) == {"docs/list.rst", "pkg/end.txt", "pkg/names.py", "pkg/new.py"}
    for wrong in ([], ["--check", "--into", "x"], ["--check", "other"], ["--check", "--patch", "x"]):
        with pytest.raises(SystemExit):
            main("project", [change], wrong)
    assert not Path("x").exists()
