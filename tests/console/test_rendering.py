"""Templates, static files, and live parts that are rendered once."""

from __future__ import annotations

from pathlib import Path

from jinja2 import UndefinedError
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from routemaster.console.rendering import Fragments, Rendering


class RenderingTests(SynchronousTestCase):
    """With templates of the test."""

    def setUp(self) -> None:
        self.templates, self.static = Path(self.mktemp()), Path(self.mktemp())
        for directory in (self.templates, self.static / "lib"):
            directory.mkdir(parents=True)
        (self.templates / "base.html").write_text("<{% block live %}{% endblock %}>")
        (self.templates / "fragment.html").write_text("{% block live %}{% endblock %}")
        (self.templates / "page.html").write_text(
            "{% extends layout %}{% block live %}{{ text }}|{{ version|length > 3 }}{% endblock %}"
        )
        (self.static / "app.css").write_text("a {}")
        (self.static / "lib" / "x.mjs").write_text("1")
        self.rendering = Rendering(self.templates, self.static)

    def test_escaped(self) -> None:
        """Everything is escaped, and a request of htmx gets the live part alone."""
        page = self.rendering.page("page.html", text="<script>", fragment=False)
        self.assertEqual(page, "<&lt;script&gt;|True>")
        self.assertEqual(self.rendering.page("page.html", text="x", fragment=True), "x|True")

    def test_missing_values(self) -> None:
        """A template that needs what it is not given fails, rather than show nothing."""
        self.assertRaises(UndefinedError, self.rendering.page, "page.html")

    def test_static(self) -> None:
        """The address of a file changes with its content; scripts are served as such."""
        link = self.rendering.static_link("app.css")
        (self.static / "app.css").write_text("b {}")
        self.assertNotEqual(Rendering(self.templates, self.static).static_link("app.css"), link)
        types = {name: file.type for name, file in self.rendering.static.items()}
        self.assertEqual(
            types, {"app.css": "text/css; charset=utf-8", "lib/x.mjs": "text/javascript; charset=utf-8"}
        )

    def test_shipped(self) -> None:
        """The shipped templates compile, and the files that they name are there."""
        shipped = Rendering()
        for name in shipped._environment.list_templates():
            shipped._environment.get_template(name)


class FragmentTests(SynchronousTestCase):
    """Live parts."""

    def setUp(self) -> None:
        self.fragments = Fragments()
        self.made: list[Deferred[str]] = []

    async def make(self) -> str:
        self.made.append(Deferred())
        return await self.made[-1]

    def get(self, version: int = 1, key: object = "a") -> Deferred[str]:
        return self.fragments.get(version, key, self.make)

    def test_once(self) -> None:
        """All who ask for the same, before and after it is made, get one text."""
        waiting = [self.get(), self.get()]
        self.made[0].callback("text")
        self.assertEqual([self.successResultOf(each) for each in [*waiting, self.get()]], ["text"] * 3)
        self.assertEqual(len(self.made), 1)

    def test_by_key_and_version(self) -> None:
        """Another address or another snapshot is another text; what an old snapshot still makes is its own."""
        old = self.get()
        self.get(key="b")
        new = self.get(2)
        for number, text in enumerate(("old", "b", "new")):
            self.made[number].callback(text)
        self.assertEqual((self.successResultOf(old), self.successResultOf(new)), ("old", "new"))
        self.assertEqual(self.successResultOf(self.get(2)), "new")

    def test_failure(self) -> None:
        """A failure is that of all who wait, and is not kept."""
        waiting = [self.get(), self.get()]
        self.made[0].errback(ValueError("x"))
        for each in waiting:
            self.failureResultOf(each, ValueError)
        self.get()
        self.assertEqual(len(self.made), 2)

    def test_cancelled(self) -> None:
        """A browser that goes away takes nothing from the others."""
        gone, stays = self.get(), self.get()
        gone.addErrback(lambda _: None)
        gone.cancel()
        self.made[0].callback("text")
        self.assertEqual(self.successResultOf(stays), "text")
