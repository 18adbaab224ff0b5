"""Public prompt suites judged by vision-language models. Their files are the user's; none is in this repository."""
