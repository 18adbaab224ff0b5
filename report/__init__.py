"""Reports made from the records of runs; nothing here trains or samples."""
