"""Networks in files of other runtimes: the graph, the formats, and whether answers are equal."""
