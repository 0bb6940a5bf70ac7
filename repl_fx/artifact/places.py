"""The places of what lies in the directory of an artifact besides its own files."""

# The result of the verification by `repl-fx export`.
PROOF = "verify.json"
# What `repl-fx bench` measured, and a picture of it.
BENCH, CHART = "bench.json", "bench.svg"
# The page of `repl-fx report`.
REPORT = "report.html"
# The directory of the state of a compression, which is there before the artifact.
COMPRESSION = "compression"
SCORES = "scores.json"
# The directory of a run of training, and in it the log, the other runs of a comparison and the figures.
STATE, LOGS, OTHERS = "train_state", "logs", "others"
RESULT, COMPARISON, FIGURES = "result.json", "comparison.json", "healing.json"
# A file in it that says that the artifact got the weights of the run.
KEPT = "kept"
