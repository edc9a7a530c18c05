"""The old name of `notebook.show_map`; it goes when every notebook says the new one."""

from minidalle.notebook import show_map

__all__ = ["show_map"]
