"""What all views of the run have in common: each shows the book when it has changed."""

from __future__ import annotations

from textual.containers import Container

from .book import Book


class Pane(Container):
    """One view. It is asked to show the book only while it is the one on the screen."""

    def __init__(self, book: Book, *, id: str) -> None:
        super().__init__(id=id)
        self.book = book
        self._shown_version = -1

    def show(self, *, force: bool = False) -> None:
        """Bring the view up to date, if it is not."""
        if force or self._shown_version != self.book.version:
            self._shown_version = self.book.version
            self.update_view()

    def update_view(self) -> None:
        """Show the book as it is now."""
        raise NotImplementedError

    def take_focus(self) -> None:
        """Put the keyboard where this view's keys work."""
        self.focus()

    def chosen(self) -> str:
        """Return the node or checkpoint that the cursor is on, "" where there is none."""
        return ""
