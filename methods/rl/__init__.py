"""RL objectives ("engines") and the method base that runs any of them on any plan over tasks."""
