"""The micro world: a procedurally drawn text-to-image world and a tiny flow model trained on it."""
