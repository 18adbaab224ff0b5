"""GenEval: composition of objects, counts, colours and positions."""
