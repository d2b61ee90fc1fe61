"""Tasks, graders, the evaluation loop with its journal, reports."""
