"""OCR: text rendering."""
