"""Feature spaces: what images look like, apart from any reward, to measure their diversity."""
