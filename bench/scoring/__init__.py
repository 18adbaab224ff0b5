"""Images and their scorers: image folders, cached scores, and scoring locally or over HTTP."""
