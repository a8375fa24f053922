"""Components that join the results of several retrievers."""
