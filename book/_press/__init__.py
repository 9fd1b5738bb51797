"""What turns the chapters into notebooks, executed notebooks and pages: the book's, not the package's."""
