import pytest

from jina_jax.errors import UserError
from jina_jax.sources import pydocs
from jina_jax.types import BadRecord, Origin, Pair

REST = "It has an explanation of eight words or more, which follows."


def docstring(summary):
    return f'"""{summary}\n\n    {REST}\n    """'


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A site-packages folder of our own."""
    monkeypatch.setattr(pydocs, "_folders", lambda: [tmp_path])
    return tmp_path


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_modules_classes_functions_and_methods_in_order(packages):
    write(packages, "zed.py", docstring("The zed module here."))
    write(
        packages,
        "pack/_inner/core.py",
        f"class Thing:\n    {docstring('A thing of use.')}\n"
        f"    def do(self):\n        {docstring('Does it very well.')}\n"
        f"        def local():\n            {docstring('Not seen by anyone.')}\n"
        "if True:\n"
        f"    async def later():\n        {docstring('Does it some time.')}\n",
    )
    write(packages, "pack/__init__.py", docstring("The pack is here."))
    got = list(pydocs.read_pydocs(()))
    assert got == [
        Pair("The pack is here.", f"pack: {REST}", Origin("pack", 1)),
        Pair("A thing of use.", f"pack.core.Thing: {REST}", Origin("pack._inner.core", 1)),
        Pair("Does it very well.", f"pack.core.Thing.do: {REST}", Origin("pack._inner.core", 6)),
        Pair("Does it some time.", f"pack.core.later: {REST}", Origin("pack._inner.core", 17)),
        Pair("The zed module here.", f"zed: {REST}", Origin("zed", 1)),
    ]


def test_only_the_packages_asked_for(packages):
    for name in ("one", "two", "three"):
        write(packages, f"{name}.py", docstring(f"This is {name}."))
    got = [r.origin.file for r in pydocs.read_pydocs(("two", "one"))]
    assert got == ["one", "two"]
    with pytest.raises(UserError, match="no package 'four'"):
        list(pydocs.read_pydocs(("four",)))


def test_tests_are_left_out(packages):
    for name in ("a/tests/x.py", "a/test_x.py", "a/conftest.py", "test/x.py", "x-1.dist-info/a.py"):
        write(packages, name, docstring("This is a test."))
    write(packages, "a/testing.py", docstring("This is no test."))
    assert [r.origin.file for r in pydocs.read_pydocs(())] == ["a.testing"]


def test_files_that_do_not_parse_are_bad_records_and_nothing_is_executed(packages):
    write(packages, "a.py", "print 'python 2'")
    write(packages, "b.py", "x = '\0'")
    write(packages, "c.py", docstring("This one is good.") + "\nraise SystemExit(1)")
    write(packages, "d.py", "x = 1\n" * 200_000)
    got = list(pydocs.read_pydocs(()))
    assert [r.reason if isinstance(r, BadRecord) else r.query for r in got] == [
        "malformed_python",
        "malformed_python",
        "This one is good.",
        "too_large",
    ]


def test_what_is_not_language_is_left_out():
    doc = (
        "Sums\n  two numbers.\n\nNotes\n-----\nThe sum is exact for integers of any size.\n\n"
        ">>> add(1, 2)\n3\n\n.. versionadded:: 1.2\n\n```python\nadd(1, 2)\n```\nSee also sub."
    )
    pair = pydocs.docstring_pair("m.add", doc, Origin("m", 1))
    assert pair is not None
    assert pair.query == "Sums two numbers."
    assert pair.positive == (
        "m.add: Notes\nThe sum is exact for integers of any size.\nSee also sub."
    )


@pytest.mark.parametrize(
    "doc",
    [None, "", "Only a summary is here.", f"Two words\n\n{REST}", "Three words here\n\nToo short."],
)
def test_too_little_text_is_no_pair(doc):
    assert pydocs.docstring_pair("m", doc, Origin("m", 1)) is None


def test_the_standard_library_gives_pairs():
    got = [r for r in pydocs.read_pydocs(("textwrap", "json")) if isinstance(r, Pair)]
    assert any(r.positive.startswith("textwrap.wrap: ") for r in got)
    assert {r.origin.file.split(".")[0] for r in got} == {"json", "textwrap"}
