"""Text rendering."""
