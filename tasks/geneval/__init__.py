"""GenEval: composition."""
